"""Knows no dialect: the calls of an answer, gathered from their pieces."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic_core import from_json

from localrun.chat.messages import CallDelta
from localrun.server.body import finite


class GatheredCalls:
    """Iterates (id, name, arguments) in the order of the calls; ``arguments`` is JSON text."""

    def __init__(self) -> None:
        self._calls: dict[int, tuple[str, str, list[str]]] = {}

    def take(self, call: CallDelta) -> None:
        if call.index not in self._calls:
            self._calls[call.index] = call.id, call.name, []
        self._calls[call.index][2].append(call.arguments)

    def __bool__(self) -> bool:
        return bool(self._calls)

    def __iter__(self) -> Iterator[tuple[str, str, str]]:
        for _, (id_, name, arguments) in sorted(self._calls.items()):
            yield id_, name, "".join(arguments) or "{}"


def arguments_of(arguments: str, *, cut: bool = False) -> dict[str, Any] | None:
    """A call's arguments as an object that can be told as JSON; None where they are none, as a
    model may write them. Of arguments that were ``cut`` those that are there."""
    try:
        value = from_json(arguments or "{}", allow_inf_nan=False, allow_partial=cut)
    except ValueError:
        return None
    return value if isinstance(value, dict) and finite(value) else None
