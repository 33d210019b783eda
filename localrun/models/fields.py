"""Knows no architecture: numbers and texts out of a stranger's metadata, each within its range."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from localrun.errors import HeaderError
from localrun.formats.text import shown


@dataclass(frozen=True, slots=True)
class Fields:
    """A mapping of untrusted values. Absent is None; present and absurd is HeaderError.

    ``file`` is named in errors; metadata has no offsets any more, so they say byte 0.
    """

    values: Mapping[str, object]
    file: str

    def text(self, key: str) -> str | None:
        value = self.values.get(key)
        if value is None or isinstance(value, str):
            return value
        raise self.error(key, f"is a {type(value).__name__}, not a string")

    def integer(self, key: str, *, most: int, least: int = 1) -> int | None:
        value = self.values.get(key)
        return None if value is None else self._checked(key, value, least, most)

    def per_layer(
        self, key: str, layers: int, *, most: int, least: int = 1
    ) -> tuple[int, ...] | None:
        """One number for every layer, or one for all; a layer without attention has 0."""
        value = self.values.get(key)
        if not isinstance(value, tuple | list):
            one = self.integer(key, least=least, most=most)
            return None if one is None else (one,) * layers
        if len(value) != layers:
            raise self.error(key, f"has {len(value)} entries for {layers} layers")
        return tuple(
            self._checked(f"{key}[{index}]", item, 0, most) for index, item in enumerate(value)
        )

    def _checked(self, key: str, value: object, least: int, most: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(key, f"is a {type(value).__name__}, not an integer")
        if not least <= value <= most:
            raise self.error(key, f"{value} is not between {least} and {most}")
        return value

    def error(self, key: str, problem: str) -> HeaderError:
        return HeaderError(shown(key), 0, problem, file=self.file)
