"""Knows whose every sequence is: a mock runner that follows tokens through forks and states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from localrun.engine.runner import BatchItem, SequenceId
from localrun.errors import EngineError
from tests.mock_runner import MockRunner

# Tokens that no mock says of itself: whose prompt they stand in, theirs is the sequence.
MARKS: Final = {254: "ann", 255: "bob"}


class OwnedRunner(MockRunner):
    """A sequence belongs to whoever appends to it: who is ``writing``, or has a token in ``MARKS``.
    Copies and states inherit; cutting changes nothing.

    ``crossings`` lists the sequences that had two owners. ``calls`` are the calls that make, cut
    and copy sequences; those named in ``broken`` raise EngineError.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.owners: dict[SequenceId, frozenset[str]] = {}
        self.writing: str | None = None
        self.broken: set[str] = set()
        self.calls: list[str] = []
        self.crossings: list[str] = []

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name in self.broken:
            raise EngineError(f"mock: {name} was told to fail")

    def new_sequence(self) -> SequenceId:
        self._called("new_sequence")
        sequence = super().new_sequence()
        self.owners[sequence] = frozenset()
        return sequence

    def fork(self, sequence: SequenceId) -> SequenceId:
        self._called("fork")
        copy = super().fork(sequence)
        self.owners[copy] = self.owners[sequence]
        return copy

    def free(self, sequence: SequenceId) -> None:
        super().free(sequence)
        del self.owners[sequence]

    def truncate(self, sequence: SequenceId, length: int) -> int:
        self._called("truncate")
        return super().truncate(sequence, length)

    def save(self, sequence: SequenceId) -> bytes:
        self._called("save")
        names = ",".join(self.owners[sequence]).encode()
        return names + b"\n" + super().save(sequence)

    def restore(self, state: bytes) -> SequenceId:
        self._called("restore")
        names, _, tokens = state.partition(b"\n")
        sequence = super().restore(tokens)
        self.owners[sequence] = frozenset(names.decode().split(",")) - {""}
        return sequence

    def forward(self, batch: Sequence[BatchItem]) -> Any:
        for item in batch:
            names = {MARKS[token] for token in item.tokens if token in MARKS}
            if self.writing is not None:
                names.add(self.writing)
            self.owners[item.sequence] |= names
            if len(self.owners[item.sequence]) > 1:
                self.crossings.append(", ".join(sorted(self.owners[item.sequence])))
        return super().forward(batch)
