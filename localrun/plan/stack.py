"""Knows no machine: a model's groups as a stack of layers, the form that placing needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

from localrun.models.cache import row_bytes
from localrun.models.spec import Experts, Group, GroupKind, ModelSpec, Table
from localrun.plan.plan import KvType
from localrun.plan.seats import pieces

_WIDE = frozenset(("F64", "F32", "F16", "BF16"))
_BLOCKS: dict[GroupKind, int] = {
    "attention": 1,
    "indexer": 1,
    "dense_ffn": 1,
    "shared_experts": 1,
    "router": 1,
    "experts": 1,
    "hyper_connections": 2,
}


@dataclass(frozen=True, slots=True)
class Weights:
    """Bytes of some tensors and what one token reads of them: ``wide`` bytes of 16- and 32-bit
    floats, ``packed`` bytes of everything narrower, holding ``parameters``."""

    bytes: int = 0
    wide: float = 0.0
    packed: float = 0.0
    parameters: float = 0.0
    tensors: int = 0

    def __add__(self, other: Weights) -> Weights:
        return Weights(
            self.bytes + other.bytes,
            self.wide + other.wide,
            self.packed + other.packed,
            self.parameters + other.parameters,
            self.tensors + other.tensors,
        )

    def __sub__(self, part: Weights) -> Weights:
        """Without ``part`` of it; fractions never round below nothing."""
        return Weights(
            self.bytes - part.bytes,
            max(0.0, self.wide - part.wide),
            max(0.0, self.packed - part.packed),
            max(0.0, self.parameters - part.parameters),
            self.tensors - part.tensors,
        )

    @property
    def read(self) -> float:
        return self.wide + self.packed


NONE = Weights()


@dataclass(frozen=True, slots=True)
class Layer:
    """``dense`` is all that every token reads; ``kv`` is bytes of cache at the planned context,
    ``kv_read`` what a token reads of it at the workload's depth. ``blocks`` counts what is computed
    one after the other: attention, its indexer, routing, experts, hyper-connections' two sides,
    rows of n-gram tables. ``shared`` is what of ``dense`` can be computed while routed experts are
    fetched. ``matrix`` is the largest of ``dense``, ``expert_matrix`` that of ``routed``."""

    index: int
    dense: Weights
    routed: Weights
    experts: Experts | None
    kv: int
    kv_read: int
    blocks: int
    matrix: int = 0
    expert_matrix: int = 0
    shared: Weights = NONE


@dataclass(frozen=True, slots=True)
class PlacedTable:
    """``scales`` of its ``bytes`` are a tensor of their own, 0 where rows hold theirs."""

    layer: int
    bytes: int
    table: Table
    scales: int = 0


@dataclass(frozen=True, slots=True)
class Sums:
    """What lies before each layer and, of ``experts``, before each of the layers with some."""

    routed: tuple[Layer, ...]
    routed_before: Sequence[int]
    kv: Sequence[int]
    dense: Sequence[Weights]
    experts: Sequence[Weights]


def _sums(layers: Sequence[Layer]) -> Sums:
    routed = tuple(layer for layer in layers if layer.experts is not None)
    return Sums(
        routed,
        list(accumulate((layer.experts is not None for layer in layers), initial=0)),
        list(accumulate((layer.kv for layer in layers), initial=0)),
        list(accumulate((layer.dense for layer in layers), initial=NONE)),
        list(accumulate((layer.routed for layer in routed), initial=NONE)),
    )


@dataclass(frozen=True, slots=True)
class Stack:
    """A model ready to be placed at one context and KV type.

    ``head`` is what follows the layers, with all that a file puts outside of them. ``tied`` is true
    where the table of the embedding serves as the output matrix too. ``stored`` is what an expert
    takes in its file, as a share of what it takes in memory.
    """

    spec: ModelSpec
    layers: tuple[Layer, ...]
    embedding: Weights
    head: Weights
    draft: Weights
    vision: Weights
    tables: tuple[PlacedTable, ...]
    tied: bool = False
    stored: float = 1.0
    _sums: Sums = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_sums", _sums(self.layers))

    @property
    def routed(self) -> tuple[Layer, ...]:
        """The layers that have experts."""
        return self._sums.routed

    @property
    def routed_before(self) -> Sequence[int]:
        """How many layers before each layer have experts, and how many do at all."""
        return self._sums.routed_before

    @property
    def kv(self) -> int:
        return self._sums.kv[-1]

    def kv_between(self, start: int, stop: int) -> int:
        """Bytes of the cache of layers from ``start`` to before ``stop``."""
        return self._sums.kv[stop] - self._sums.kv[start]

    def dense(self, start: int, stop: int) -> Weights:
        """Of the same, what every token reads."""
        return self._sums.dense[stop] - self._sums.dense[start]

    def experts(self, start: int, stop: int) -> Weights:
        """The experts of layers that have some, counted among those."""
        return self._sums.experts[stop] - self._sums.experts[start]

    @property
    def table_bytes(self) -> int:
        return sum(table.bytes for table in self.tables)

    @property
    def scale_bytes(self) -> int:
        """Of the tables, what has to be read apart from their rows."""
        return sum(table.scales for table in self.tables)


def weights(groups: Iterable[Group]) -> Weights:
    """Sum groups; a group's active bytes are split as its types split its bytes."""
    total = NONE
    for group in groups:
        wide = sum(size for name, size in group.types.items() if name in _WIDE)
        share = wide / group.bytes if group.bytes else 0.0
        total += Weights(
            group.bytes,
            group.active_bytes * share,
            group.active_bytes * (1 - share),
            group.active_parameters,
            group.tensors,
        )
    return total


def stack(
    spec: ModelSpec, kv: Mapping[int, int], kv_type: KvType, depth: int, stored: float = 1.0
) -> Stack:
    """Arrange ``spec`` with ``kv`` bytes of cache by layer, for predictions at ``depth`` tokens."""
    kv_read = _read_by_layer(spec, depth, kv_type)
    inside: dict[int, list[Group]] = {index: [] for index in range(spec.layers)}
    outside: dict[GroupKind, list[Group]] = {"embedding": [], "head": [], "draft": [], "vision": []}
    tables: list[PlacedTable] = []
    for group in spec.groups:
        if group.kind == "engram" and group.table is not None:
            apart = min(group.types.values(), default=0) if group.table.pieces > 1 else 0
            tables.append(PlacedTable(group.layer, group.bytes, group.table, apart))
        else:
            # What a file puts outside of its layers, or beyond them, goes with the output.
            outside.get(group.kind, inside.get(group.layer, outside["head"])).append(group)
    matrices = _matrices(spec)
    embedding = weights(outside["embedding"])
    output = sum(group.bytes for group in spec.of("head"))
    joined = {table.layer for table in tables}
    return Stack(
        spec,
        tuple(
            _layer(
                index, groups, kv.get(index, 0), kv_read.get(index, 0), matrices, index in joined
            )
            for index, groups in inside.items()
        ),
        embedding,
        weights(outside["head"]),
        weights(outside["draft"]),
        weights(outside["vision"]),
        tuple(tables),
        tied=not spec.encoder and output * 100 < embedding.bytes,
        stored=stored,
    )


def _layer(
    index: int,
    groups: list[Group],
    kv: int,
    kv_read: int,
    matrices: Mapping[tuple[int, bool], int],
    joins: bool,
) -> Layer:
    routed = [group for group in groups if group.experts is not None]
    experts = next((group.experts for group in routed), None)
    held = weights(routed)
    if experts is not None:
        experts = replace(experts, bytes=-(-held.bytes // experts.count))
    return Layer(
        index,
        weights(group for group in groups if group.experts is None),
        held,
        experts,
        kv,
        kv_read,
        sum(_BLOCKS.get(group.kind, 0) for group in groups) + joins,
        matrices.get((index, False), 0),
        matrices.get((index, True), 0),
        weights(group for group in groups if group.kind == "shared_experts"),
    )


def _matrices(spec: ModelSpec) -> dict[tuple[int, bool], int]:
    """(Layer, whether of its experts) → the bytes of its largest matrix."""
    found: dict[tuple[int, bool], int] = {}
    for piece in pieces(spec, ()):
        key = piece.layer, piece.kind == "experts"
        found[key] = max(found.get(key, 0), piece.bytes // len(piece.names))
    return found


def _read_by_layer(spec: ModelSpec, depth: int, kv_type: KvType) -> dict[int, int]:
    """Layer → bytes of cache that a token at ``depth`` reads; what layers share, at its owner."""
    read = dict(spec.state_bytes)
    for rows in spec.caches:
        each = rows.rows_read(depth) * row_bytes(rows, kv_type) // max(1, len(rows.layers))
        for layer in rows.layers:
            read[layer] = read.get(layer, 0) + each
    return read
