"""Knows no machine and no library: which tier llama.cpp puts each tensor of a file on."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from localrun.formats.header import TensorInfo
from localrun.models.names import classify
from localrun.models.spec import GroupKind, ModelSpec
from localrun.plan.plan import Execution

# Types that the CPU's kernels read in another order, by the CPU's flag: a tensor of one is copied
# at load (ggml/src/ggml-cpu/repack.cpp, ggml_repack_get_optimal_repack_type).
_REPACKED_ARM: Final = ("Q4_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "MXFP4", "Q8_0")
_REPACKED: Final = {
    "avx2": ("Q4_0", "Q4_K", "IQ4_NL", "MXFP4"),
    "avx512f": ("Q2_K",),
    "asimddp": _REPACKED_ARM,
    "dotprod": _REPACKED_ARM,
}
_REPACKED_ROWS: Final = 8
# Rows of these are looked up, so they stay as the file has them; the loader ignores these groups.
_LOOKED_UP: Final = frozenset(("token_embd.weight", "per_layer_token_embd.weight"))
_IGNORED: Final[frozenset[GroupKind]] = frozenset(("draft", "vision"))
# Names for what a group holds, for a plan's expressions to match.
_NAMES: Final[dict[GroupKind, tuple[str, ...]]] = {
    "embedding": ("token_embd.weight",),
    "head": ("output.weight",),
    "attention": ("attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_output.weight"),
    "indexer": ("indexer.attn_q_b.weight",),
    "dense_ffn": ("ffn_gate.weight", "ffn_up.weight", "ffn_down.weight"),
    "shared_experts": ("ffn_gate_shexp.weight", "ffn_up_shexp.weight", "ffn_down_shexp.weight"),
    "router": ("ffn_gate_inp.weight",),
    "experts": ("ffn_gate_exps.weight", "ffn_up_exps.weight", "ffn_down_exps.weight"),
    "engram": ("per_layer_token_embd.weight",),
    "hyper_connections": ("hc_attn_fn.weight",),
    "other": ("other.weight",),
}


def repacked_types(cpu_flags: Iterable[str]) -> frozenset[str]:
    """Tensor types that a CPU with these flags (``Cpu.flags``) reads in another order."""
    return frozenset(name for flag in cpu_flags for name in _REPACKED.get(flag, ()))


class Seats:
    """Where layers and tensors go: overrides first, else whole layers, the last ones on devices."""

    def __init__(self, spec: ModelSpec, execution: Execution) -> None:
        self._overrides = [
            (re.compile(pattern), tier) for pattern, tier in execution.tensor_overrides
        ]
        self._offloaded = min(execution.gpu_layers, spec.layers + 1)
        self._first = spec.layers + 1 - self._offloaded
        self._output = spec.layers
        ends = list(accumulate(execution.tensor_split)) or [1.0]
        # Both sides are divided, as llama.cpp does: a product may round to another layer.
        self._shares = [end / ends[-1] for end in ends]
        named = {tier for _, tier in execution.tensor_overrides if tier.startswith("vram")}
        if self._offloaded:
            named |= {f"vram:{card}" for card in range(len(self._shares))}
        self.cards = tuple(sorted(named))

    def layer(self, index: int) -> str:
        """The tier of a layer, or of the output behind the last one."""
        if not self._offloaded or index < self._first:
            return "ram"
        at = (min(index, self._output) - self._first) / self._offloaded
        return f"vram:{min(bisect_right(self._shares, at), len(self._shares) - 1)}"

    def tensor(self, piece: Piece) -> str:
        """A tier, or ``ram:plain``."""
        for pattern, tier in self._overrides:
            if any(pattern.search(name) for name in piece.names):
                return tier
        if piece.kind in ("embedding", "engram"):
            return "ram"
        return self.layer(self._output if piece.layer < 0 else piece.layer)


@dataclass(frozen=True, slots=True)
class Piece:
    """A tensor, or all of one type in a group. ``span`` is where it lies: file, first, last."""

    names: tuple[str, ...]
    kind: GroupKind
    layer: int
    type: str
    bytes: int
    repackable: bool
    span: tuple[int, int, int] | None = None


def pieces(spec: ModelSpec, tensors: Sequence[TensorInfo]) -> tuple[Piece, ...]:
    """What llama.cpp places, of a header's tensors or, without them, of the groups."""
    found = tuple(_from_tensors(spec, tensors) if tensors else _from_groups(spec))
    return tuple(piece for piece in found if piece.kind not in _IGNORED)


def _from_tensors(spec: ModelSpec, tensors: Sequence[TensorInfo]) -> Iterator[Piece]:
    for tensor in tensors:
        kind, layer, _ = classify(tensor.name, spec.layers)
        fits = len(tensor.shape) > 1 and tensor.shape[-2] % _REPACKED_ROWS == 0
        yield Piece(
            (tensor.name,),
            kind,
            layer,
            tensor.type.name,
            tensor.bytes,
            fits and tensor.name not in _LOOKED_UP,
            (tensor.file, tensor.offset, tensor.offset + tensor.bytes),
        )


def _from_groups(spec: ModelSpec) -> Iterator[Piece]:
    for group in spec.groups:
        stem = f"blk.{group.layer}." if group.layer >= 0 else ""
        names = tuple(stem + name for name in _NAMES.get(group.kind, ("other.weight",)))
        looked_up = group.kind in ("embedding", "engram")
        for name, size in group.types.items():
            yield Piece(names, group.kind, group.layer, name, size, not looked_up)


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes of weights by tier, and what the mapped file takes beyond those used from it."""

    weights: dict[str, int]
    mapped: int


def weights_held(
    spec: ModelSpec, tensors: Sequence[TensorInfo], seats: Seats, repacked: frozenset[str]
) -> Held:
    """Every tensor on its tier. A table that serves as output too is there twice where the output
    is on a device or repacked. Beside a device nothing is repacked: what stays in RAM is copied
    there as it is when a prompt is long."""
    placed = pieces(spec, tensors)
    repacked = frozenset() if seats.cards else repacked
    weights: dict[str, int] = {}
    from_file: list[Piece] = []
    for piece in placed:
        seat = seats.tensor(piece)
        tier = "ram" if seat.startswith("ram") else seat
        weights[tier] = weights.get(tier, 0) + piece.bytes
        if seat == "ram" and not (piece.repackable and piece.type in repacked):
            from_file.append(piece)
    is_tied = not spec.encoder and _is_tied(placed)
    tied = [piece for piece in placed if piece.kind == "embedding"] if is_tied else []
    for piece in tied:
        tier = seats.layer(spec.layers)
        if tier != "ram" or piece.type in repacked:
            weights[tier] = weights.get(tier, 0) + piece.bytes
    return Held(weights, max(0, _spanned(placed, from_file) - sum(p.bytes for p in from_file)))


def largest_upload(spec: ModelSpec, tensors: Sequence[TensorInfo], seats: Seats) -> int:
    """The largest matrix in RAM, 0 without a device: one at a time is copied there for a prompt."""
    if not seats.cards:
        return 0
    return max(
        (
            piece.bytes // len(piece.names)
            for piece in pieces(spec, tensors)
            if piece.kind not in ("embedding", "engram") and seats.tensor(piece).startswith("ram")
        ),
        default=0,
    )


def _is_tied(placed: Sequence[Piece]) -> bool:
    """Whether no matrix of its own makes the logits: what is left of the head is a norm."""
    head = sum(piece.bytes for piece in placed if piece.kind == "head")
    table = sum(piece.bytes for piece in placed if piece.kind == "embedding")
    return head * 100 < table


def _spanned(placed: Sequence[Piece], from_file: Sequence[Piece]) -> int:
    """llama.cpp maps each file from the first tensor it uses there to the last."""
    spans: dict[int, tuple[int, int]] = {}
    for piece in from_file:
        if piece.span is None:
            # Groups do not say where they lie; a table first, norms last is how files are written.
            return sum(each.bytes for each in placed)
        file, first, last = piece.span
        before = spans.get(file, (first, last))
        spans[file] = (min(before[0], first), max(before[1], last))
    return sum(last - first for first, last in spans.values())
