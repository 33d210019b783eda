"""Knows no library: the seam that llama.cpp, torch and MLX runners implement.

A runner holds the weights and any number of sequences (token timelines with their KV state) and
does what it is told, on the one thread that owns it. ``abort`` alone may come from another thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NewType, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SequenceId = NewType("SequenceId", int)
LogitsWanted = Literal["none", "last", "all"]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a runner can do.

    ``rollback_depth`` is how many tokens ``rollback`` can take back exactly; None is any number.
    """

    n_ctx: int
    max_sequences: int
    max_batch: int
    can_fork: bool
    rollback_depth: int | None
    embeddings: bool = False
    images: bool = False


@dataclass(frozen=True, slots=True)
class BatchItem:
    """Tokens to append to one sequence, and which of their positions want logits."""

    sequence: SequenceId
    tokens: Sequence[int]
    logits: LogitsWanted = "last"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """``tokens[i]`` are the bytes token ``i`` stands for; empty for control tokens.

    ``end`` holds every id that ends a turn; ``names`` the text of control tokens by id, as a
    template writes them (``<|im_end|>``).
    """

    tokens: tuple[bytes, ...]
    bos: int | None
    eos: int | None
    end: frozenset[int]
    add_bos: bool
    names: dict[int, str]


@dataclass(frozen=True, slots=True)
class RunnerStats:
    """Counters since load. Bytes read are weights touched, by tier.

    ``memory_parts`` splits ``memory_bytes`` by tier into what the bytes are for: ``weights``,
    ``kv``, ``compute``, ``output``, ``other``. Empty where a runner cannot say. ``forward_s`` is
    the time spent in ``forward`` up to its logits.
    """

    memory_bytes: dict[str, int]
    bytes_read: dict[str, int]
    tokens: int
    memory_parts: dict[str, dict[str, int]] = field(default_factory=dict)
    forward_s: float = 0.0


class Logits(Protocol):
    """Rows of logits still where they were computed. Valid until the next ``forward``.

    Rows are numbered in the order of the batch: item by item, position by position.
    """

    @property
    def rows(self) -> int: ...

    def argmax(self, row: int) -> int: ...

    def topk(self, row: int, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The k largest as (ids, logits), largest first; ties by the lower id."""
        ...

    def numpy(self) -> NDArray[np.float32]:
        """All rows, ``[rows, vocab]``."""
        ...


class ModelRunner(Protocol):
    """One loaded model. See each method for what it may leave undone."""

    @property
    def capabilities(self) -> Capabilities: ...

    def vocabulary(self) -> Vocabulary: ...

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Safe to call from another thread than ``forward``'s."""
        ...

    def new_sequence(self) -> SequenceId:
        """Raises EngineError when ``max_sequences`` are in use."""
        ...

    def fork(self, sequence: SequenceId) -> SequenceId: ...

    def free(self, sequence: SequenceId) -> None: ...

    def truncate(self, sequence: SequenceId, length: int) -> int:
        """Cut to at most ``length`` tokens; returns how many are kept, down to 0."""
        ...

    def checkpoint(self, sequence: SequenceId) -> None:
        """Mark where ``rollback`` counts from, before a verify step."""
        ...

    def rollback(self, sequence: SequenceId, count: int) -> None:
        """Take back the last ``count`` tokens, at most ``rollback_depth``."""
        ...

    def save(self, sequence: SequenceId) -> bytes: ...

    def restore(self, state: bytes) -> SequenceId: ...

    def forward(self, batch: Sequence[BatchItem]) -> Logits:
        """Run one step over at most ``max_batch`` tokens.

        Raises:
            ForwardAborted: ``abort`` was called; no token of the batch counts as appended.
            EngineError: the library failed.
        """
        ...

    def abort(self) -> None:
        """End the running ``forward`` soon. From any thread; does nothing when none runs."""
        ...

    def set_threads(self, threads: int) -> None:
        """CPU threads of the next ``forward``. No effect where none are used."""
        ...

    def stats(self) -> RunnerStats: ...

    def close(self) -> None: ...


class ForwardAborted(Exception):
    """A forward ended early because ``abort`` asked for it. Never leaves the engine."""
