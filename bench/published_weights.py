"""What a row of a table of published runs says of its weights, as a ModelSpec.

A name that localrun knows is a GGUF mixture, its sum scaled to the file's size where that is
stated. Of every other name the bits a weight count: the row's own first, then those of the name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache

from localrun.errors import LocalrunError
from localrun.models import geometries
from localrun.models.describe import describe_config
from localrun.models.spec import Experts, Group, ModelSpec

GB = 10**9
_NATIVE = ("fp4-fp8-native", "native", "release")
# Of what is neither experts nor named otherwise: 8-bit blocks with a 16-bit scale for every 32.
_Q8 = 8.5
_WIDE = 16.0
# Nobody narrows what every token reads beyond this.
_LEAST = 3.0
# Scales and offsets of 16 bits each for 64 weights (MLX), for 128 weights (AWQ, GPTQ).
_MLX_GROUP, _GPTQ_GROUP = 32 / 64, 20 / 128
_NAMED_LESS = re.compile(r"^(?:UD|i1|imat)-|_R[48]$|-?(?:gguf|mlx|dwq)$", re.IGNORECASE)
_SHORT = {
    "FP16": "F16",
    "Q2": "Q2_K",
    "Q3": "Q3_K_M",
    "Q4": "Q4_K_M",
    "Q5": "Q5_K_M",
    "Q6": "Q6_K",
    "Q8": "Q8_0",
    "Q2_K_L": "Q2_K",
    "Q2_K_XL": "Q2_K",
    "Q3_K_XL": "Q3_K_L",
    "Q4_K_L": "Q4_K_M",
    "Q4_K_XL": "Q4_K_M",
    "Q5_K_L": "Q5_K_M",
    "Q5_K_XL": "Q5_K_M",
    "Q6_K_L": "Q6_K",
    "Q6_K_XL": "Q6_K",
    "Q8_K_XL": "Q8_0",
    "TQ1_0": "IQ1_S",
}
_APART = ("engram", "draft", "vision")
_ENDS = ("embedding", "head")


@dataclass(frozen=True, slots=True)
class Bits:
    """Bits a weight: of routed experts (of all layers where a model has none), of the rest of the
    layers, of the embedding and the output layer."""

    experts: float
    rest: float
    ends: float


# Names that no rule below tells.
_BITS: Mapping[str, Bits] = {
    # antirez/ds4: IQ2_XXS with Q2_K down projections, or Q4_K, beside Q8_0.
    "q2-mixed": Bits(2.25, _Q8, _Q8),
    "q4-mixed": Bits(4.5, _Q8, _Q8),
    # sqliteai/warp: vectors of weights from codebooks.
    "vq2": Bits(2.1, _Q8, _Q8),
    "vq3": Bits(2.8, _Q8, _Q8),
    "vq4": Bits(4.0, _Q8, _Q8),
    # JustVugg/colibri: one scale a row.
    "int4": Bits(4.0, 4.0, 4.0),
    "int8": Bits(8.0, 8.0, 8.0),
    # 16 numbers of 4 bits and an 8-bit scale; releases keep everything but experts in 16 bits.
    "nvfp4": Bits(4.5, _WIDE, _WIDE),
    "mxfp4": Bits(4.25, _WIDE, _WIDE),
    "mxfp8": Bits(8.25, _WIDE, _WIDE),
    "fp8": Bits(8.0, 8.0, _WIDE),
    "awq": Bits(4 + _GPTQ_GROUP, 4 + _GPTQ_GROUP, _WIDE),
    "gptq": Bits(4 + _GPTQ_GROUP, 4 + _GPTQ_GROUP, _WIDE),
    # ikawrakow/ik_llama.cpp: ggml-common.h's blocks of 256.
    "iq1_kt": Bits(1.75, 6.5, 6.5),
    "iq2_ks": Bits(2.19, 6.5, 6.5),
    "iq2_kt": Bits(2.125, 6.5, 6.5),
    "iq2_k": Bits(2.375, 6.5, 6.5),
    "iq2_kl": Bits(2.69, 6.5, 6.5),
    "iq3_kt": Bits(3.125, 6.5, 6.5),
    "iq3_ks": Bits(3.19, 6.5, 6.5),
    "iq3_k": Bits(3.44, 6.5, 6.5),
    "iq4_kss": Bits(4.0, 6.5, 6.5),
    "iq4_kt": Bits(4.0, 6.5, 6.5),
    "iq4_ks": Bits(4.25, 6.5, 6.5),
    "iq4_k": Bits(4.5, 6.5, 6.5),
    "iq5_ks": Bits(5.25, 6.5, 6.5),
    "iq5_k": Bits(5.5, 6.5, 6.5),
    "iq6_k": Bits(6.625, _Q8, _Q8),
}
_WIDTH = re.compile(r"w([2-8])a(?:4|8|16)|\b(?:int)([2-8])\b|([2-8])[- ]?bit")
_FRACTION = re.compile(r"([1-9](?:\.[0-9]+)?) ?bpw|exl[23]\D*([1-9](?:\.[0-9]+)?)")


class Skipped(Exception):
    """The row lacks what a prediction needs."""


def weights(key: str, quant: str, size_gb: float | None, bits: float | None) -> ModelSpec:
    """The model ``key`` of the geometries at the row's quantization, of the size that it states.

    Raises:
        Skipped: no such geometry, or a quantization that nothing tells the bits of.
    """
    if key not in geometries.names():
        raise Skipped(f"model_key: no geometry is called {key[:64]!r}")
    name = quant.strip()
    if name.casefold() in _NATIVE:
        return described(key, None)
    mixture = mixed(key, name)
    if mixture is not None:
        return mixture if size_gb is None else _scaled(mixture, size_gb)
    known = told(name)
    released = described(key, None)
    if known is None and bits is None:
        if size_gb is None:
            raise Skipped(f"quantization {quant[:64]!r} states neither bits nor size")
        even = _even(released, size_gb)
        known = Bits(even, even, even)
    known = known or Bits(bits or _Q8, _Q8, _Q8)
    if bits is not None:
        known = replace(known, experts=bits)
    if size_gb is None:
        return _rebitted(released, known)
    if "reap" in name.casefold():
        return _pruned(_rebitted(released, known), size_gb)
    return _rebitted(released, _sized(released, known, size_gb, fixed=bits is not None))


@cache
def described(key: str, quant: str | None) -> ModelSpec:
    """Raises LocalrunError where the geometry cannot be described in that mixture."""
    return describe_config(geometries.geometry(key), quant=quant)


def mixed(key: str, name: str) -> ModelSpec | None:
    """The model in the GGUF mixture of that name or of a variant of it; None if none is meant."""
    plain = _NAMED_LESS.sub("", _NAMED_LESS.sub("", name)).upper().replace("-", "_")
    if plain == "NVFP4":  # a GGUF type too, but published as releases: see the table
        return None
    for each in (name, plain, _SHORT.get(plain, "")):
        if not each:
            continue
        try:
            return described(key, each)
        except LocalrunError:
            continue
    return None


def told(name: str) -> Bits | None:
    """The bits that a name tells, by the table, by its number of bits, by its format."""
    low = name.casefold()
    for each in (low, _NAMED_LESS.sub("", low)):
        if each in _BITS:
            return _BITS[each]
    fraction = _FRACTION.search(low)
    if fraction:
        # EXL2 and EXL3: the average of all layers; the output layer in 6 bits.
        found = float(fraction[1] or fraction[2])
        return Bits(found, found, 6.0)
    width = _WIDTH.search(low)
    if width:
        number = float(width[1] or width[2] or width[3])
        if width[1] or "awq" in low or "gptq" in low:
            return Bits(number + _GPTQ_GROUP, number + _GPTQ_GROUP, _WIDE)
        whole = number + _MLX_GROUP
        # Where experts are narrower than four bits, the rest is not.
        return Bits(whole, max(whole, 4 + _MLX_GROUP), max(whole, 4 + _MLX_GROUP))
    parts = sorted((part for part in _BITS if part in low), key=len)
    return _BITS[parts[-1]] if parts else None


def _even(spec: ModelSpec, size_gb: float) -> float:
    """Bits a weight if all have as many."""
    tables = sum(group.bytes for group in spec.of("engram"))
    counted = sum(group.parameters for group in spec.groups if group.kind not in _APART)
    return min(_WIDE, max(1.0, 8 * (size_gb * GB - tables) / max(1, counted)))


def _sized(spec: ModelSpec, bits: Bits, size_gb: float, *, fixed: bool) -> Bits:
    """``bits`` of a file of that size: what are no experts makes it up, or the experts do where
    that cannot be and their bits are not ``fixed`` by the row."""
    left = size_gb * GB - sum(group.bytes for group in spec.of("engram"))
    routed = sum(group.parameters for group in spec.of("experts"))
    others = [group for group in spec.groups if group.kind not in ("experts", *_APART)]
    rest = sum(group.parameters for group in others)
    even = 8 * (left - routed * bits.experts / 8) / max(1, rest)
    if not routed or _LEAST <= even <= _WIDE or fixed:
        least = _LEAST if routed else 1.0
        even = min(_WIDE, max(least, even))
        return Bits(bits.experts if routed else even, even, even)
    kept = sum(_bits_of(group, bits) * group.parameters for group in others)
    experts = min(_WIDE, max(1.0, (8 * left - kept) / routed))
    return replace(bits, experts=experts)


def _rebitted(spec: ModelSpec, bits: Bits) -> ModelSpec:
    """``spec`` with other bits a weight."""
    if not spec.of("experts"):
        bits = replace(bits, rest=bits.experts)
    return _with_groups(spec, [_at(group, bits) for group in spec.groups])


def _bits_of(group: Group, bits: Bits) -> float:
    if group.kind == "experts":
        return bits.experts
    return bits.ends if group.kind in _ENDS else bits.rest


def _at(group: Group, bits: Bits) -> Group:
    if group.kind in _APART or not group.bytes:
        return group
    each = _bits_of(group, bits)
    return _grown(group, int(group.parameters * each / 8) / group.bytes, packed=each < _WIDE)


def _scaled(spec: ModelSpec, size_gb: float) -> ModelSpec:
    """The mixture's own proportions, in the file's size; tables are files of their own."""
    if spec.of("engram"):
        return spec
    factor = size_gb * GB / spec.tensor_bytes
    return _with_groups(spec, [_grown(group, factor, packed=False) for group in spec.groups])


def _pruned(spec: ModelSpec, size_gb: float) -> ModelSpec:
    """Experts that were left out of every layer alike, until the rest has the file's size."""
    routed = sum(group.bytes for group in spec.of("experts"))
    if not routed:
        return spec
    kept = min(1.0, max(0.0, (size_gb * GB - (spec.tensor_bytes - routed)) / routed))
    return _with_groups(spec, [_thinned(group, kept) for group in spec.groups])


def _thinned(group: Group, kept: float) -> Group:
    experts = group.experts
    if experts is None:
        return group
    count = max(experts.used, round(experts.count * kept))
    return replace(
        group,
        parameters=group.parameters * count // experts.count,
        bytes=group.bytes * count // experts.count,
        types={name: size * count // experts.count for name, size in group.types.items()},
        experts=replace(experts, count=count),
    )


def _grown(group: Group, factor: float, *, packed: bool) -> Group:
    experts = group.experts
    if experts is not None:
        experts = Experts(experts.count, experts.used, int(experts.bytes * factor))
    size = int(group.bytes * factor)
    types = {name: int(part * factor) for name, part in group.types.items()}
    return replace(
        group,
        bytes=size,
        active_bytes=int(group.active_bytes * factor),
        types={"packed": size} if packed else types,
        experts=experts,
    )


def _with_groups(spec: ModelSpec, groups: list[Group]) -> ModelSpec:
    return replace(spec, groups=tuple(groups), tensor_bytes=sum(group.bytes for group in groups))
