"""Knows whose every sequence is: a mock runner that follows tokens through forks and states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from localrun.engine.runner import BatchItem, SequenceId
from localrun.errors import EngineError
from tests.mock_runner import MockRunner


class OwnedRunner(MockRunner):
    """A sequence belongs to who appends to it first (``writing``); copies and states inherit.

    ``crossings`` lists where somebody appended to what another owned. ``calls`` are the calls that
    make, cut and copy sequences; those named in ``broken`` raise EngineError.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.owners: dict[SequenceId, str] = {}
        self.writing = ""
        self.broken: set[str] = set()
        self.calls: list[str] = []
        self.crossings: list[str] = []

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name in self.broken:
            raise EngineError(f"mock: {name} was told to fail")

    def new_sequence(self) -> SequenceId:
        self._called("new_sequence")
        return super().new_sequence()

    def fork(self, sequence: SequenceId) -> SequenceId:
        self._called("fork")
        copy = super().fork(sequence)
        if sequence in self.owners:
            self.owners[copy] = self.owners[sequence]
        return copy

    def free(self, sequence: SequenceId) -> None:
        super().free(sequence)
        self.owners.pop(sequence, None)

    def truncate(self, sequence: SequenceId, length: int) -> int:
        self._called("truncate")
        return super().truncate(sequence, length)

    def save(self, sequence: SequenceId) -> bytes:
        self._called("save")
        owner = self.owners.get(sequence, "").encode()
        return len(owner).to_bytes(4, "little") + owner + super().save(sequence)

    def restore(self, state: bytes) -> SequenceId:
        self._called("restore")
        end = 4 + int.from_bytes(state[:4], "little")
        sequence = super().restore(state[end:])
        self.owners[sequence] = state[4:end].decode()
        return sequence

    def forward(self, batch: Sequence[BatchItem]) -> Any:
        for item in batch:
            owner = self.owners.setdefault(item.sequence, self.writing)
            if owner != self.writing:
                self.crossings.append(f"{self.writing} wrote after {owner}")
        return super().forward(batch)
