"""Knows no format: JSON of strangers, without what two readers could read differently."""

from __future__ import annotations

import json
from collections import Counter
from typing import NoReturn

from localrun.errors import HeaderError
from localrun.formats import limits
from localrun.formats.reader import Source
from localrun.formats.text import shown


def parse_object(raw: bytes, field: str, offset: int) -> dict[str, object]:
    """Parse one JSON object: no duplicate keys, no NaN, bounded in values and depth.

    Raises:
        HeaderError: with ``field`` and the offset, ``offset`` being where ``raw`` begins.
    """
    return as_object(parse_json(raw, field, offset), field, offset)


def as_object(value: object, field: str, offset: int = 0) -> dict[str, object]:
    """``value`` if it is an object. Raises HeaderError."""
    if not isinstance(value, dict):
        raise HeaderError(field, offset, f"is a JSON {type(value).__name__}, not an object")
    return value


def read_config(source: Source, name: str) -> dict[str, object]:
    """A repository's config.json.

    Raises:
        HeaderError: too large, or not one JSON object.
    """
    try:
        if source.size > limits.CONFIG_BYTES_MAX:
            raise HeaderError("file", 0, f"{source.size} bytes are too many for a configuration")
        return parse_object(source.read(0, source.size), "config", 0)
    except HeaderError as error:
        raise error.in_file(name) from None


def parse_json(raw: bytes, field: str, offset: int) -> object:
    """JSON without duplicate keys, NaN, negative or fractional surprises left to guess.

    Raises:
        HeaderError: as ``parse_object``.
    """
    marks = raw.count(b",") + raw.count(b"[") + raw.count(b"{")
    if marks > limits.SAFETENSORS_JSON_MARKS_MAX:
        raise HeaderError(
            field, offset, f"{marks} values, at most {limits.SAFETENSORS_JSON_MARKS_MAX}"
        )

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) != len(pairs):
            twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise HeaderError(field, offset, f"the key {shown(twice)!r} stands twice")
        return found

    def constant(text: str) -> NoReturn:
        raise HeaderError(field, offset, f"{text} is no JSON number")

    def integer(text: str) -> int:
        if text == "-0":
            raise HeaderError(field, offset, "-0 is no integer to the library")
        return int(text)

    try:
        return json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=unique,
            parse_constant=constant,
            # Called for every number, so only where one may be at fault.
            parse_int=integer if b"-0" in raw else None,
        )
    except UnicodeDecodeError as error:
        raise HeaderError(field, offset + error.start, "is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise HeaderError(field, offset + error.pos, f"is not JSON: {error.msg}") from None
    except ValueError:
        raise HeaderError(field, offset, "holds a number of thousands of digits") from None
    except RecursionError:
        raise HeaderError(field, offset, "is nested too deeply") from None
