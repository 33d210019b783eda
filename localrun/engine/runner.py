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
Pooling = Literal["mean", "cls", "last"]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a runner can do.

    n_ctx: most tokens of one sequence.
    n_cells: most tokens of all sequences together; each counts its own, forks too.
    max_batch: sequences that one forward takes; 1 is allowed, the engine then takes turns.
    max_tokens: tokens that one forward takes, over all its sequences.
    least_chunk: pieces of a prompt of at least so many tokens are computed alike however they are
        cut; smaller ones by other kernels, which differ in the last digits.
    rollback_depth: how many tokens ``rollback`` can take back exactly after ``checkpoint``; None is
        any number, and then ``truncate`` cuts anywhere too.
    idle_costs: every step passes over what sequences hold that take no part in it; better they
        lie elsewhere.
    state_bytes_per_token: what ``save`` writes for each token, about; 0 where nobody knows.
    generates: whether it makes text at all; an encoder makes embeddings only.
    pooling: how the model was trained to make one embedding of a text's; None where it was not.
    """

    n_ctx: int
    max_sequences: int
    max_batch: int
    max_tokens: int
    n_cells: int
    can_fork: bool
    rollback_depth: int | None
    least_chunk: int = 1
    idle_costs: bool = False
    state_bytes_per_token: int = 0
    embeddings: bool = False
    generates: bool = True
    pooling: Pooling | None = None
    images: bool = False

    @property
    def longest_text(self) -> int:
        """Most tokens of a text for ``ModelRunner.embed``: each is computed whole, in one call."""
        return min(self.n_ctx, self.max_tokens)


@dataclass(frozen=True, slots=True)
class BatchItem:
    """Tokens to append to one sequence, and which of their positions want logits."""

    sequence: SequenceId
    tokens: Sequence[int]
    logits: LogitsWanted = "last"


@dataclass(frozen=True, slots=True)
class FillInMiddle:
    """Ids of the control tokens around a text that is to be filled in, as a model was trained on
    them: what stands before the gap, what stands behind it, and where its text begins.
    ``repository`` and ``file`` begin a repository's name and another file's.
    """

    prefix: int
    suffix: int
    middle: int
    repository: int | None = None
    file: int | None = None


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """``tokens[i]`` are the bytes token ``i`` stands for; empty for control tokens.

    ``end`` holds every id that ends a turn; ``names`` the text of control tokens by id, as a
    template writes them (``<|im_end|>``). ``fim`` is None where a model fills in nothing.
    """

    tokens: tuple[bytes, ...]
    bos: int | None
    eos: int | None
    end: frozenset[int]
    add_bos: bool
    names: dict[int, str]
    fim: FillInMiddle | None = None


@dataclass(frozen=True, slots=True)
class ExpertUse:
    """Of one tier: ``picks`` that found their expert there, ``bytes`` of those, ``seconds`` that
    were spent on it: computing in memory, waiting for disk."""

    picks: int = 0
    bytes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class RunnerStats:
    """Counters since load. Bytes read are weights touched, by tier.

    ``terms_s`` splits ``forward_s`` by the terms of a plan's prediction, ``terms_bytes`` are what
    was read for each: both by the names of ``plan.terms``. ``experts`` are picks by the tier that
    had them; ``picks[layer][expert]`` counts each. ``read_ahead`` experts were fetched before
    anything picked them, ``needed`` of those were picked then. ``notes`` say what happened that a
    user should know: a cache that shrank. Empty where a runner cannot say.

    ``memory_parts`` splits ``memory_bytes`` by tier into what the bytes are for: ``weights``,
    ``kv``, ``compute``, ``output``, ``other``. Empty where a runner cannot say. ``forward_s`` is
    the time spent in ``forward`` up to its logits. ``numerics`` is how exactly is computed, empty
    where a runner has one way.
    """

    memory_bytes: dict[str, int]
    bytes_read: dict[str, int]
    tokens: int
    memory_parts: dict[str, dict[str, int]] = field(default_factory=dict)
    forward_s: float = 0.0
    numerics: str = ""
    terms_s: dict[str, float] = field(default_factory=dict)
    terms_bytes: dict[str, int] = field(default_factory=dict)
    experts: dict[str, ExpertUse] = field(default_factory=dict)
    picks: dict[int, tuple[int, ...]] = field(default_factory=dict)
    read_ahead: int = 0
    needed: int = 0
    notes: tuple[str, ...] = ()


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
        """Run one step: at most ``max_batch`` items of different sequences, at most ``max_tokens``
        tokens in all.

        Raises:
            ForwardAborted: ``abort`` was called; no token of the batch counts as appended.
            EngineError: the library failed.
        """
        ...

    def embed(self, batch: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """Last hidden states ``[tokens, width]`` of each text, as the model's head gets them.

        Each text is computed alone, from an empty sequence that is freed again; together they hold
        at most ``max_tokens`` tokens and ``max_sequences`` must have room for one.

        Raises:
            ForwardAborted: ``abort`` was called.
            EngineError: the runner makes no embeddings, or the library failed.
        """
        ...

    def identity(self) -> str:
        """What a saved state depends on beside the weights: library, version, types of the cache.

        A state is restored only where the identity is the same.
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
