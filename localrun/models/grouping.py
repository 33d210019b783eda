"""Knows no architecture: tensors, of a file or of a layout, gathered into what a plan places."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, get_args

from localrun.formats.header import TensorInfo
from localrun.models.layout import LayoutTensor
from localrun.models.mlx_packing import Packing
from localrun.models.names import classify
from localrun.models.native import TABLE_GROUP, is_table
from localrun.models.spec import Experts, Group, GroupKind, Table

_ORDER: Final = {kind: place for place, kind in enumerate(get_args(GroupKind))}
# What stands beside quantized matrices and is no parameter of the model.
_BESIDE = (
    ".scale",
    ".scales",
    ".biases",
    ".weight_scale",
    ".weight_scale_2",
    ".weight_scale_inv",
    ".weight_shape",
    ".weight_zero_point",
    ".weight_g_idx",
    ".input_scale",
    ".activation_scale",
    ".k_scale",
    ".v_scale",
    ".qzeros",
    ".g_idx",
    ".weight.absmax",
    ".engram_embd_scale.weight",
    "_scales",
)
# Bytes of a number that releases multiply these in, by the ends of their names there and in GGUF:
# projections of groups (DeepSeek-V4), routers and compressors.
_COMPUTED_IN: Final = {
    2: (".wo_a.weight", ".wo_a.scale", ".attn_output_a.weight"),
    4: (
        ".gate.weight",
        ".compressor.wkv.weight",
        ".compressor.wgate.weight",
        ".ffn_gate_inp.weight",
        "_compressor_kv.weight",
        "_compressor_gate.weight",
    ),
}
_INDICES = frozenset({"I64", "I32", "I16", "U64", "U16", "BOOL"})


@dataclass(slots=True)
class Entry:
    """A tensor, or ``copies`` alike; ``bytes`` is that of all copies."""

    name: str
    shape: tuple[int, ...]
    type: str
    copies: int
    bytes: int

    @property
    def elements(self) -> int:
        """Of all copies, as stored."""
        count = self.copies
        for dim in self.shape:
            count *= dim
        return count


def merged(tensors: Iterable[TensorInfo]) -> list[Entry]:
    """A header's tensors, experts that are alike as one entry."""
    found: dict[tuple[str, str, str, tuple[int, ...]], Entry] = {}
    for tensor in tensors:
        name, tail, shape, kind = tensor.name, "", tensor.shape, tensor.type.name
        head, experts, rest = name.partition(".experts.")
        if experts:
            number, _, tail = rest.partition(".")
            if tail and number.isdecimal():
                name = head
            else:
                tail = ""
        key = (name, tail, kind, shape)
        entry = found.get(key)
        if entry is None:
            whole = f"{name}.experts.{{e}}.{tail}" if tail else name
            found[key] = Entry(whole, shape, kind, 1, tensor.bytes)
        else:
            entry.copies += 1
            entry.bytes += tensor.bytes
    return list(found.values())


def entries(layout: Iterable[LayoutTensor]) -> list[Entry]:
    """The same of a layout."""
    return [
        Entry(
            tensor.name, tensor.shape, tensor.type.name, tensor.copies, tensor.bytes * tensor.copies
        )
        for tensor in layout
    ]


@dataclass(slots=True)
class _Sum:
    """What has been gathered of one kind in one layer."""

    tensors: int = 0
    parameters: int = 0
    bytes: int = 0
    types: dict[str, int] = field(default_factory=dict)
    experts: int = 0
    rows: int = 0
    unread: int = 0
    largest: int = 0
    pieces: set[str] = field(default_factory=set)
    matrix: bool = False
    computed_in: dict[int, tuple[int, int]] = field(default_factory=dict)

    def add(self, entry: Entry, parameters: int, expert: bool) -> None:
        self.tensors += entry.copies
        self.parameters += parameters
        self.bytes += entry.bytes
        self.types[entry.type] = self.types.get(entry.type, 0) + entry.bytes
        for width, ends in _COMPUTED_IN.items():
            if entry.name.endswith(ends):
                known, size = self.computed_in.get(width, (0, 0))
                self.computed_in[width] = known + parameters, size + entry.bytes
        self.matrix = self.matrix or (len(entry.shape) > 1 and parameters > 0)
        if expert and entry.bytes > self.largest:
            self.largest = entry.bytes
            self.experts = entry.copies if "{e}" in entry.name else (entry.shape or (0,))[0]


def groups(
    found: Iterable[Entry],
    *,
    layers: int,
    experts_used: int = 0,
    table_rows: int = 0,
    encoder: bool = False,
    packing: Packing | None = None,
) -> tuple[Group, ...]:
    """Gather by kind and layer; sorted by layer, then kind.

    ``experts_used`` of 0 takes every expert as read. ``table_rows`` is how many rows of an n-gram
    table one token reads. Of an ``encoder`` no token reads an output matrix. Parameters are counted
    as the model has them: two to a byte of FP4 or eight to a word of packed integers, and no
    scales; ``packing`` says how many an MLX word holds.
    """
    found = list(found)
    beside = scales(found)
    sums: dict[tuple[GroupKind, int], _Sum] = {}
    for entry in found:
        kind, layer, expert = classify(entry.name, layers)
        gathered = sums.setdefault((kind, layer), _Sum())
        parameters = parameters_of(entry, beside, packing)
        gathered.add(entry, parameters, expert)
        if kind == "router" and entry.type in _INDICES and len(entry.shape) > 1:
            # A table of experts by token id: a token reads its row.
            gathered.unread += entry.bytes - entry.bytes // max(entry.shape[0], 1)
        if kind in {"engram", "embedding"}:
            gathered.pieces.add(_unnumbered(entry.name))
            gathered.rows += entry.shape[0] if parameters and entry.shape else 0
    head = sums.get(("head", -1))
    tied = not encoder and (head is None or not head.matrix)
    return tuple(
        _group(kind, layer, sums[kind, layer], experts_used, table_rows, tied)
        for kind, layer in sorted(sums, key=lambda key: (key[1], _ORDER[key[0]]))
    )


def scales(found: Iterable[Entry]) -> dict[str, Entry]:
    """What stands beside quantized matrices, by name."""
    return {entry.name: entry for entry in found if entry.name.endswith(_BESIDE)}


def parameters_of(entry: Entry, beside: Mapping[str, Entry], packing: Packing | None = None) -> int:
    """How many numbers of the model ``entry`` holds; ``beside`` are the scales of all."""
    if entry.name in beside:
        return 0
    name, kind = entry.name, entry.type
    if kind == "I32" and name.endswith((".weight_packed", ".qweight")):
        return 8 * entry.elements
    if kind == "U8" and name.endswith((".weight_packed", "_blocks")):
        return 2 * entry.elements
    if name.endswith(".weight"):
        stem = name.removesuffix("weight")
        if kind == "U32" and stem + "scales" in beside:
            if packing is None:
                return 8 * entry.elements
            return beside[stem + "scales"].elements * packing.group_of(stem[:-1])
        scale = beside.get(stem + "scale") if kind == "I8" else None
        scale = beside.get(stem + "weight_scale") if kind == "U8" else scale
        if scale and scale.shape and entry.shape and _nibbles(entry.shape[-1], scale.shape[-1]):
            return 2 * entry.elements
    if kind == "I8" and is_table(name) and not _scaled_apart(name, beside):
        # A row's scales stand behind its numbers.
        return entry.elements // (TABLE_GROUP + 1) * TABLE_GROUP
    # Other integers are indices: a routing table is looked up, not learned.
    return 0 if kind in _INDICES else entry.elements


def _scaled_apart(table: str, beside: Mapping[str, Entry]) -> bool:
    return f"{table.removesuffix('.weight')}_scale.weight" in beside


def _nibbles(stored: int, groups: int) -> bool:
    """A scale for 32 numbers, or for 16, stands in the place of 16 bytes, or of 8."""
    return groups in {-(-stored // 16), -(-stored // 8)}


def _unnumbered(name: str) -> str:
    return "".join(mark for mark in name if not mark.isdecimal())


def _group(
    kind: GroupKind, layer: int, found: _Sum, used: int, table_rows: int, tied: bool
) -> Group:
    active_parameters, active_bytes = found.parameters, found.bytes - found.unread
    experts = table = None
    if kind in {"draft", "vision"}:
        active_parameters = active_bytes = 0
    elif kind == "engram":
        rows = max(found.rows, 1)
        table = Table(found.rows, found.bytes // rows, min(table_rows, rows), len(found.pieces))
        active_parameters, active_bytes = 0, table.row_bytes * table.rows_per_token
    elif kind == "experts" and found.experts:
        count = found.experts
        experts = Experts(count, min(used, count) if used else count, found.bytes // count)
        active_parameters = found.parameters * experts.used // count
        active_bytes = experts.bytes * experts.used
    elif kind == "embedding" and not tied:
        active_parameters, active_bytes = 0, found.bytes // max(found.rows, 1)
    return Group(
        kind,
        layer,
        found.tensors,
        found.parameters,
        found.bytes,
        active_parameters,
        active_bytes,
        found.types,
        experts,
        table,
        found.computed_in,
    )
