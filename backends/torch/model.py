"""Knows no architecture: a model that is computed, a step of it, and what it is built with.

The tokens of all sequences of a step lie one behind another, ``[T]``. Whatever treats each token
alone computes them together; attention and what keeps state go span by span.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from localrun.backends.torch.caches.cache import Cache
from localrun.backends.torch.clock import Mark, unmeasured
from localrun.backends.torch.matrices.kernels import Kernels
from localrun.backends.torch.numerics import Numerics
from localrun.disk.reader import Reader
from localrun.plan.plan import KvType

if TYPE_CHECKING:
    from localrun.backends.torch.tiers.store import ExpertStore


def uninterrupted() -> None:
    """Nobody ends a step before it is done."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What a model is built for. ``capacity`` is most tokens of a sequence; ``kv`` how rows are
    kept where ``numerics`` leaves it open; ``threads`` are of libggml's products, 0 where none are
    used (any device but a CPU). ``engram`` is where tables lie: ``ram``, ``disk``,
    or ``vram`` for ``device``. Of those on disk ``hot_rows`` bytes are kept of what was looked up,
    and all scales where ``scales_in_memory`` says so; ``check_rows`` holds each row that is looked
    up, wherever it lies, against a plain computation and the file.
    ``approximate_prefill`` runs layers that keep nothing but windows on the end of a prompt only:
    its logits, and all after them, are not exactly the model's.
    ``kernels`` belong to whoever made them; without them matrices make their own of ``threads``.
    ``reader`` reads rows of tables that lie on disk, ahead of need. ``experts`` keeps routed
    experts in slots; without it each layer holds all of its own. ``cache_device`` is where rows of
    sequences lie, where that is not ``device``. Whoever waits for a disk calls ``interrupt`` ten
    times a second: it raises where the step is to end."""

    numerics: Numerics
    device: torch.device
    capacity: int
    kv: KvType = "native"
    threads: int = 0
    engram: str = "ram"
    approximate_prefill: bool = False
    kernels: Kernels | None = None
    reader: Reader | None = None
    experts: ExpertStore | None = None
    cache_device: torch.device | None = None
    interrupt: Callable[[], None] = uninterrupted
    hot_rows: int = 0
    scales_in_memory: bool = False
    check_rows: bool = False

    @property
    def home(self) -> torch.device:
        """Where rows of sequences lie."""
        return self.cache_device or self.device


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens ``start`` to ``stop`` of a step continue one sequence, the first at position
    ``first``, which is how many tokens ``cache`` holds before the step."""

    cache: Cache
    start: int
    stop: int
    first: int

    @property
    def count(self) -> int:
        return self.stop - self.start


def _no_watch(layer: int, x: Tensor) -> None:
    """Nobody looks."""


@dataclass(frozen=True, slots=True)
class Step:
    """``tokens`` and ``positions`` are int64 ``[T]``, on the model's device; ``wanted`` int64
    ``[R]`` are the rows of the step whose logits are computed. ``watch(layer, x)`` is called behind
    every layer with the residual stream, and may raise to end the step; -1 is the embedding.
    ``mark`` is told what the time since its last call went to."""

    tokens: Tensor
    positions: Tensor
    spans: tuple[Span, ...]
    wanted: Tensor
    watch: Callable[[int, Tensor], None] = field(default=_no_watch)
    mark: Mark = field(default=unmeasured)


@dataclass(frozen=True, slots=True)
class LayerBytes:
    """A layer's weights in memory: ``dense`` ones that every token reads, its ``experts``, what one
    token reads of them (``picked``), and its ``table`` of n-grams."""

    dense: int
    experts: int = 0
    picked: int = 0
    table: int = 0


@dataclass(frozen=True, slots=True)
class TableUse:
    """Of n-gram tables since the load: ``rows`` that were asked for, ``distinct`` of them in a step
    that were read in ``reads`` of ``bytes`` in all, ``hits`` that a cache had, and the ``seconds``
    that steps waited."""

    rows: int = 0
    distinct: int = 0
    hits: int = 0
    reads: int = 0
    bytes: int = 0
    seconds: float = 0.0


NO_TABLES = TableUse()


class Model(Protocol):
    """One architecture with its weights.

    ``forward`` writes to the caches of the step's spans and advances nothing else: whoever calls it
    counts ``Cache.tokens``, before it ``Cache.begin``.
    """

    @property
    def vocabulary(self) -> int:
        """Logits of a row."""
        ...

    @property
    def nbytes(self) -> int:
        """Of all weights as they lie in memory."""
        ...

    @property
    def read_bytes(self) -> int:
        """Of weights that a step of one token reads: of experts only those it picks."""
        ...

    @property
    def layer_bytes(self) -> tuple[LayerBytes, ...]:
        """Of each layer, in order."""
        ...

    @property
    def head_bytes(self) -> int:
        """Of what gives logits, where it is no part of the embedding."""
        ...

    @property
    def table_use(self) -> TableUse: ...

    def new_cache(self) -> Cache: ...

    def forward(self, step: Step) -> Tensor:
        """Logits, float32 ``[R, vocabulary]``."""
        ...

    def close(self) -> None:
        """Give back what is not torch's. Again does nothing."""
        ...
