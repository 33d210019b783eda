"""Random values of synthetic checkpoints, in the bytes that releases store.

A tensor's bytes depend on the seed and its name alone. Matrices are normal with the deviation that
keeps activations at their size, 1 / sqrt(columns); norms are 1; scales differ from block to block,
so that reading the wrong one shows. Weights of trained models have heavier tails than the normal
distribution, which is what quantizing them costs most: floats are drawn with such where asked for.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np

from localrun.errors import UsageError
from localrun.models.layout import LayoutTensor
from localrun.plan.hits import picked

CHUNK = 1 << 22
Array = np.ndarray[Any, np.dtype[Any]]
# Deviations of the codes before their scale: e4m3 normal by table, e2m1 all 16 alike.
_E4M3_DEVIATION = 64.0
_E2M1_DEVIATION = 2.93
_BIAS = 127
# Of a model with heavy tails: logits of deviation 1 are those of one that expects nothing.
_HEAD = "lm_head.weight"
_HEAD_SCALE = 2.0
_STEERING = re.compile(r"\.ffn\.gate\.bias(_vl)?$")
_ONES = re.compile(r"norm\d*\.weight$|engram\.[qk]_weight$|hc_\w+_scale$")


@dataclass(frozen=True, slots=True)
class Given:
    """What values depend on besides their tensor: the layout's tensors by their own names, since a
    scale needs to know its weight; whether floats are drawn from Student's t of the same deviation,
    and a head's twice as large; and how unevenly routers pick the ``used`` experts of a token."""

    peers: Mapping[str, LayoutTensor]
    heavy_tailed: bool = False
    router_skew: float = 0.0
    used: int = 0


def values(tensor: LayoutTensor, name: str, seed: int, given: Given) -> Iterator[bytes]:
    """The bytes of one copy of ``tensor`` called ``name``, in pieces of bounded size.

    Raises:
        UsageError: a type that no release of these architectures has.
    """
    make = _MAKERS.get(tensor.type.name)
    if make is None:
        raise UsageError(f"{name}: values of {tensor.type.name} are not made here")
    key = int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:16], "little")
    source = np.random.PCG64(key)
    left = tensor.bytes
    if tensor.type.name == "I64":
        yield from _choices(tensor, source, given.peers)
        return
    if given.router_skew and _STEERING.search(tensor.name):
        yield _steering(tensor, source, given).tobytes()
        return
    while left:
        size = min(left, CHUNK)
        piece = make(tensor, source, size // tensor.type.block_bytes, given)
        yield piece.tobytes()
        left -= size


def _bits(source: np.random.PCG64, count: int, kind: str) -> Array:
    """``count`` random unsigned integers; numpy promises that this stream stays as it is."""
    words = -(-count * np.dtype(kind).itemsize // 8)
    found: Array = source.random_raw(words).astype("<u8", copy=False).view(kind)
    return found[:count]


@lru_cache(maxsize=1)
def _normal() -> Array:
    """65,536 quantiles of the normal distribution: a table is the fastest way to draw."""
    normal = NormalDist()
    points = [normal.inv_cdf((index + 0.5) / 65536) for index in range(65536)]
    return np.array(points, dtype=np.float32)


@lru_cache(maxsize=1)
def _student() -> Array:
    """65,536 quantiles of Student's t with 4 degrees of freedom, of deviation 1.

    Closed form: https://en.wikipedia.org/wiki/Quantile_function#Student's_t-distribution.
    """
    points = (np.arange(65536) + 0.5) / 65536
    alpha = 4 * points * (1 - points)
    inner = np.cos(np.arccos(np.sqrt(alpha)) / 3) / np.sqrt(alpha)
    drawn = np.sign(points - 0.5) * 2 * np.sqrt(inner - 1)
    # The table ends where the tails go on: by its own deviation, not the distribution's.
    scaled: Array = (drawn / drawn.std()).astype(np.float32)
    return scaled


@lru_cache(maxsize=1)
def _e4m3() -> Array:
    """The F8_E4M3 codes nearest to 256 quantiles of the normal distribution; none is NaN."""
    codes = np.arange(127)
    exponent, mantissa = codes >> 3, codes & 7
    table = np.where(
        exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0)
    )
    wanted = _normal()[128::256] * _E4M3_DEVIATION
    nearest = np.abs(np.abs(wanted)[:, None] - table[None, :]).argmin(axis=1)
    signed: Array = np.where(wanted < 0, nearest + 128, nearest).astype(np.uint8)
    return signed


def deviation(tensor: LayoutTensor) -> float:
    """Of the values that a tensor stands for, 0 where all of them are 1."""
    name = tensor.name
    if _ONES.search(name):
        return 0.0
    if len(tensor.shape) < 2:
        return 0.02
    if name.endswith((".ape", "markov_head.embed.weight", "markov_w1.weight")):
        return 0.1
    if "embed" in name and "patch_embed" not in name:
        return 1.0
    packed = 2 if tensor.type.name == "I8" else 1
    return float((tensor.shape[-1] * packed) ** -0.5)


def _floats(tensor: LayoutTensor, source: np.random.PCG64, count: int, given: Given) -> Array:
    sigma = deviation(tensor)
    if sigma == 0:
        return np.ones(count, dtype="<f4")
    if given.heavy_tailed and tensor.name == _HEAD:
        sigma *= _HEAD_SCALE
    table = _student() if given.heavy_tailed else _normal()
    drawn: Array = table[_bits(source, count, "<u2")] * np.float32(sigma)
    return drawn.astype("<f4", copy=False)


def _steering(tensor: LayoutTensor, source: np.random.PCG64, given: Given) -> Array:
    """What is added to a router's scores so that expert i of a random order is among the chosen as
    often as the planner takes it to be.

    Scores are sqrt(softplus(z)), z about normal: one is above the k-th largest, about where the
    chances of all add up to k, as often as it is to be if its bias is less by that quantile.
    """
    count = tensor.shape[0]
    chances = picked(count, min(given.used, count), given.router_skew)
    normal = NormalDist()
    points = [normal.inv_cdf(1 - min(max(chance, 1e-6), 1 - 1e-6)) for chance in chances]
    order = np.argsort(_bits(source, count, "<u8"), kind="stable")
    bias = np.empty(count, dtype="<f4")
    bias[order] = -np.sqrt(np.log1p(np.exp(np.array(points))))
    return bias


def _f32(tensor: LayoutTensor, source: np.random.PCG64, count: int, given: Given) -> Array:
    weight = _scaled_by(tensor, given.peers)
    if weight is None:
        return _floats(tensor, source, count, given)
    spread = 0.75 + _bits(source, count, "<u2").astype("<f4") / 131072
    scales: Array = spread * np.float32(deviation(weight) / _E4M3_DEVIATION)
    return scales


def _bf16(tensor: LayoutTensor, source: np.random.PCG64, count: int, given: Given) -> Array:
    words = _floats(tensor, source, count, given).view("<u4")
    # To the nearest, ties to even; none is so large that it would overflow.
    rounded: Array = ((words + 0x7FFF + ((words >> 16) & 1)) >> 16).astype("<u2")
    return rounded


def _f16(tensor: LayoutTensor, source: np.random.PCG64, count: int, given: Given) -> Array:
    return _floats(tensor, source, count, given).astype("<f2")


def _f8(tensor: LayoutTensor, source: np.random.PCG64, count: int, given: Given) -> Array:
    codes: Array = _e4m3()[_bits(source, count, "<u1")]
    return codes


def _i8(tensor: LayoutTensor, source: np.random.PCG64, count: int, given: Given) -> Array:
    """Two e2m1 codes a byte; each of the 16 is a number."""
    return _bits(source, count, "<u1")


def _e8m0(tensor: LayoutTensor, source: np.random.PCG64, count: int, given: Given) -> Array:
    weight = _scaled_by(tensor, given.peers)
    if weight is None:
        raise UsageError(f"{tensor.name}: a scale without a weight")
    codes = _E2M1_DEVIATION if weight.type.name == "I8" else _E4M3_DEVIATION
    middle = round(np.log2(deviation(weight) / codes))
    # Half of the blocks keep the middle, a quarter is a power of two smaller or larger.
    steps = np.array([-1, 0, 0, 1], dtype=np.int16)[_bits(source, count, "<u1") & 3]
    exponents: Array = (steps + (_BIAS + middle)).astype(np.uint8)
    return exponents


def _scaled_by(tensor: LayoutTensor, peers: Mapping[str, LayoutTensor]) -> LayoutTensor | None:
    """The weight that a scale belongs to."""
    for mark in (".weight_scale_inv", ".scale"):
        if tensor.name.endswith(mark):
            return peers.get(tensor.name.removesuffix(mark) + ".weight")
    return None


def _choices(
    tensor: LayoutTensor, source: np.random.PCG64, peers: Mapping[str, LayoutTensor]
) -> Iterator[bytes]:
    """Different experts for each token, as ``tid2eid`` of layers that route by token id."""
    rows, used = tensor.shape
    gate = peers[tensor.name.replace("tid2eid", "weight")]
    experts = gate.shape[0]
    step = max(1, CHUNK // (8 * experts))
    for start in range(0, rows, step):
        count = min(step, rows - start)
        keys = _bits(source, count * experts, "<u8").reshape(count, experts)
        yield np.argsort(keys, axis=1)[:, :used].astype("<i8").tobytes()


_MAKERS = {
    "F32": _f32,
    "BF16": _bf16,
    "F16": _f16,
    "F8_E4M3": _f8,
    "F8_E8M0": _e8m0,
    "I8": _i8,
    "I64": _i8,
}
