"""Knows no files: what a planner and a runner need to know of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

GroupKind = Literal[
    "embedding",
    "attention",
    "indexer",
    "dense_ffn",
    "shared_experts",
    "router",
    "experts",
    "engram",
    "hyper_connections",
    "head",
    "draft",
    "vision",
    "other",
]
CacheKind = Literal["full", "sliding", "latent", "compressed", "index"]


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """``model`` is the family (``gpt2``, ``llama``, …), ``pre`` its pre-tokenizer's name.
    ``fills_gaps``: it has tokens for a prefix, a suffix and what stands between."""

    model: str
    pre: str
    vocabulary: int
    fills_gaps: bool = False


@dataclass(frozen=True, slots=True)
class Experts:
    """The routed experts of one layer: ``used`` of ``count`` a token, each of ``bytes``."""

    count: int
    used: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Table:
    """A table that token n-grams index: Engram, or another model's n-gram embedding.

    One row is ``row_bytes`` with its scales; ``pieces`` separate reads fetch it where scales are a
    tensor of their own.
    """

    rows: int
    row_bytes: int
    rows_per_token: int
    pieces: int


@dataclass(frozen=True, slots=True)
class Group:
    """All tensors of one kind in one layer: what a plan places.

    ``layer`` is -1 outside of the layers and counts stages for drafts. ``active_bytes`` is what one
    decoded token reads of ``bytes``; ``types`` maps a tensor type's name to bytes. ``computed_in``
    are (parameters, bytes) of what a release multiplies in numbers of at least so many bytes,
    however it stores them, by that width.
    """

    kind: GroupKind
    layer: int
    tensors: int
    parameters: int
    bytes: int
    active_parameters: int
    active_bytes: int
    types: Mapping[str, int]
    experts: Experts | None = None
    table: Table | None = None
    computed_in: Mapping[int, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CacheRows:
    """Rows that the ``layers`` of one kind keep of a sequence, one for ``tokens_per_row`` tokens.

    ``elements`` counts the numbers of one row in one layer, keys and values together; they are
    stored in the KV type, or in ``native_bytes`` where the release has a format of its own (0
    where it has none). ``window`` bounds the rows kept, 0 for all of the context. ``read_rows``
    bounds the rows that one decoded token reads, 0 for all that are kept. ``readers`` counts the
    layers that read each of these caches, its own layer among them; the others read at most
    ``reader_rows`` rows, 0 for as many as their owner.
    """

    kind: CacheKind
    layers: tuple[int, ...]
    elements: int
    tokens_per_row: int = 1
    window: int = 0
    read_rows: int = 0
    native_bytes: int = 0
    readers: int = 1
    reader_rows: int = 0

    def rows_kept(self, tokens: int) -> int:
        """Of a sequence of ``tokens``, in all ``layers``; the last row may be begun only."""
        return len(self.layers) * self._kept(tokens)

    def rows_read(self, tokens: int) -> int:
        """By one token decoded after ``tokens``, in all layers that read."""
        kept = self._kept(tokens)
        owner = min(kept, self.read_rows) if self.read_rows else kept
        other = min(kept, self.reader_rows) if self.reader_rows else owner
        return len(self.layers) * (owner + (self.readers - 1) * other)

    def _kept(self, tokens: int) -> int:
        rows = -(-tokens // self.tokens_per_row)
        return min(rows, self.window) if self.window else rows


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Geometry and identity of one model.

    ``kv_bytes_per_token`` is what the context grows by for 16-bit keys and values, rounded down,
    windows left out; zero where the architecture's cache is not known. ``tensor_types`` maps a
    type's name to (tensors, bytes). ``state_bytes`` maps a layer to the bytes it keeps of a
    sequence whatever its length (linear attention, convolutions, compressor tails).
    ``guessed`` is true where the architecture is unknown and names of tensors had to tell.
    ``prefill_layers`` is how many layers see the whole prompt, where that is not all of them.
    An ``encoder`` makes embeddings only: a text at once, of at most ``n_ctx_train`` tokens.
    """

    architecture: str
    name: str
    parameters: int
    tensor_bytes: int
    tensors: int
    layers: int
    n_ctx_train: int
    kv_bytes_per_token: int
    tensor_types: Mapping[str, tuple[int, int]]
    tokenizer: Tokenizer | None
    chat_template: str | None
    licence: str | None
    experts: int = 0
    experts_used: int = 0
    groups: tuple[Group, ...] = ()
    caches: tuple[CacheRows, ...] = ()
    state_bytes: tuple[tuple[int, int], ...] = ()
    width: int = 0
    vocabulary: int = 0
    heads: int = 0
    ffn_width: int = 0
    quantization: str = ""
    guessed: bool = False
    prefill_layers: int = 0
    encoder: bool = False
    notes: tuple[str, ...] = ()

    def of(self, *kinds: GroupKind) -> tuple[Group, ...]:
        """The groups of these kinds, by layer."""
        return tuple(group for group in self.groups if group.kind in kinds)

    @property
    def backbone_parameters(self) -> int:
        """Without n-gram tables, draft layers and vision."""
        apart = self.of("engram", "draft", "vision")
        tables = sum(group.parameters for group in apart)
        return self.parameters - tables

    @property
    def active_parameters(self) -> int:
        """What one decoded token reads."""
        return sum(group.active_parameters for group in self.groups)
