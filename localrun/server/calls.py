"""Knows no dialect: the calls of an answer, gathered from their pieces."""

from __future__ import annotations

from collections.abc import Iterator

from localrun.chat.messages import CallDelta


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
