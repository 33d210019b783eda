"""Knows no machine: a model's groups as a stack of layers, the form that placing needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from localrun.models.cache import row_bytes
from localrun.models.spec import Experts, Group, GroupKind, ModelSpec, Table
from localrun.plan.plan import KvType

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
_APART: frozenset[GroupKind] = frozenset(
    ("experts", "engram", "embedding", "head", "draft", "vision")
)


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

    @property
    def read(self) -> float:
        return self.wide + self.packed


NONE = Weights()


@dataclass(frozen=True, slots=True)
class Layer:
    """``dense`` is all that every token reads; ``kv`` is bytes of cache at the planned context,
    ``kv_read`` what a token reads of it at the workload's depth. ``blocks`` counts what is computed
    one after the other: attention, its indexer, routing, experts, hyper-connections' two sides."""

    index: int
    dense: Weights
    routed: Weights
    experts: Experts | None
    kv: int
    kv_read: int
    blocks: int


@dataclass(frozen=True, slots=True)
class PlacedTable:
    layer: int
    bytes: int
    table: Table


@dataclass(frozen=True, slots=True)
class Stack:
    """A model ready to be placed at one context and KV type."""

    spec: ModelSpec
    layers: tuple[Layer, ...]
    embedding: Weights
    head: Weights
    draft: Weights
    vision: Weights
    tables: tuple[PlacedTable, ...]

    @property
    def routed(self) -> tuple[Layer, ...]:
        """The layers that have experts."""
        return tuple(layer for layer in self.layers if layer.experts is not None)

    @property
    def kv(self) -> int:
        return sum(layer.kv for layer in self.layers)

    @property
    def table_bytes(self) -> int:
        return sum(table.bytes for table in self.tables)


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


def stack(spec: ModelSpec, kv: Mapping[int, int], kv_type: KvType, depth: int) -> Stack:
    """Arrange ``spec`` with ``kv`` bytes of cache by layer, for predictions at ``depth`` tokens."""
    kv_read = _read_by_layer(spec, depth, kv_type)
    dense: dict[int, list[Group]] = {index: [] for index in range(max(spec.layers, 1))}
    routed: dict[int, list[Group]] = {}
    outside: dict[str, list[Group]] = {kind: [] for kind in _APART}
    tables: list[PlacedTable] = []
    for group in spec.groups:
        if group.kind == "engram" and group.table is not None:
            tables.append(PlacedTable(group.layer, group.bytes, group.table))
        elif group.kind == "experts":
            routed.setdefault(_inside(group.layer, dense), []).append(group)
        elif group.kind in ("embedding", "head", "draft", "vision"):
            outside[group.kind].append(group)
        else:
            dense[_inside(group.layer, dense)].append(group)
    layers = tuple(
        Layer(
            index,
            weights(dense[index]),
            weights(routed.get(index, ())),
            _experts(routed.get(index, ())),
            kv.get(index, 0),
            kv_read.get(index, 0),
            sum(_BLOCKS.get(group.kind, 0) for group in (*dense[index], *routed.get(index, ()))),
        )
        for index in dense
    )
    return Stack(
        spec,
        layers,
        weights(outside["embedding"]),
        weights(outside["head"]),
        weights(outside["draft"]),
        weights(outside["vision"]),
        tuple(tables),
    )


def _inside(layer: int, layers: dict[int, list[Group]]) -> int:
    """What a file puts outside of its layers, or beyond them, goes with the last one."""
    return layer if layer in layers else len(layers) - 1


def _experts(groups: Iterable[Group]) -> Experts | None:
    return next((group.experts for group in groups if group.experts is not None), None)


def _read_by_layer(spec: ModelSpec, depth: int, kv_type: KvType) -> dict[int, int]:
    """Layer → bytes of cache that a token at ``depth`` reads; what layers share, at its owner."""
    read = dict(spec.state_bytes)
    for rows in spec.caches:
        each = rows.rows_read(depth) * row_bytes(rows, kv_type) // max(1, len(rows.layers))
        for layer in rows.layers:
            read[layer] = read.get(layer, 0) + each
    return read
