"""Knows no placement: what a host's processor gets through, of one model and by one engine.

What was measured here counts as it is; otherwise the least of what memory delivers and what the
cores compute. Weights that every token reads and routed experts are stored in different types, so
each has its rate.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from itertools import pairwise

from localrun.formats.types import GGUF_TYPES, SAFETENSORS_TYPES
from localrun.hardware.machine import Compute, HostFigures, Speed, Tier
from localrun.models.spec import Group, ModelSpec
from localrun.plan import constants, terms
from localrun.plan.constants import Constants
from localrun.plan.engines import Engine

# A release stores codes of four bits two in a byte.
_FOURS, _FOURS_KERNEL = "I8", "MXFP4"
_LOOKED_UP = ("embedding", "engram", "draft", "vision")


def host_rate(
    tier: Tier,
    compute: Compute | None,
    engine: Engine,
    fit: Constants,
    threads: int | None = None,
    *,
    kind: str = terms.DENSE,
) -> float:
    """GB/s of weights that matrix-vector products get through; ``kind`` is a term of ``tuned``."""
    if engine.kernels == "reference":
        return min(constants.REFERENCE_GBPS, stream(tier))
    cores = compute.cores if compute and compute.cores else 0
    used = min(cores, threads) if cores and threads else cores
    if compute is not None and compute.gemv:
        rate = _only(compute.gemv, kind)
        return rate * used / cores if cores else rate
    rate = stream(tier) * fit.ram
    if compute is not None and not engine.numa:
        # Threads of one socket reach the other's memory through a link, and wait for each other.
        rate /= compute.sockets
    if cores:
        rate = min(rate, used * fit.core)
    return rate * (fit.portable if engine.kernels == "portable" else 1.0)


def host_launch(compute: Compute | None, engine: Engine) -> float:
    """Milliseconds that one block of a layer takes whatever it reads."""
    if not engine.block:
        return 0.0
    figures = compute.hosts.get(engine.name) if compute is not None else None
    return _only(figures.launches, "") if figures and figures.launches else engine.block


def host_miss(compute: Compute | None, engine: Engine, nbytes: float) -> float:
    """Milliseconds of the host that an expert of ``nbytes`` from disk takes beside its read."""
    figures = compute.hosts.get(engine.name) if compute is not None else None
    if figures is None or not figures.misses:
        return engine.miss
    known = sorted((size, speed.value) for size, speed in figures.misses.items())
    for (low, first), (high, second) in pairwise(known):
        if low < nbytes <= high:
            return first + (second - first) * (nbytes - low) / (high - low)
    return known[0][1] if nbytes <= known[0][0] else known[-1][1]


def host_gflops(compute: Compute | None, engine: Engine) -> float:
    """GFLOP/s of large products."""
    if engine.kernels == "reference":
        return constants.REFERENCE_GFLOPS
    if compute is not None and compute.prefill:
        return _only(compute.prefill, "")
    portable = engine.kernels == "portable"
    each = constants.PORTABLE_GFLOPS if portable else constants.CORE_GFLOPS
    return each * max(1, compute.cores if compute else 1)


def stream(tier: Tier) -> float:
    """GB/s that streaming reads reach."""
    measured = tier.read.basis == "measured"
    return tier.read.value * (1.0 if measured else constants.STREAM_SHARE)


def tuned(compute: Compute | None, spec: ModelSpec, engine: Engine) -> Compute | None:
    """``compute`` with what was measured of single types and architectures made into the figures
    of this model: of what every token reads, of experts, of a prompt, of a block.

    Each type's bytes take their own time; a type that was not measured takes that of the nearest
    in bits a weight, an architecture the middle one's.
    """
    if compute is None:
        return compute
    own = compute.hosts.get(engine.name, HostFigures())
    gemv = {**compute.gemv, **own.gemv} if compute.gemv else {}
    groups = [group for group in spec.groups if group.kind not in _LOOKED_UP or not group.layer]
    routed = [group for group in groups if group.experts is not None]
    dense = [group for group in groups if group.experts is None]
    launches = {"": own.launches[spec.architecture]} if spec.architecture in own.launches else None
    return replace(
        compute,
        gemv=_mixed(gemv, {terms.DENSE: dense, terms.EXPERTS: routed}),
        prefill=_mixed(compute.prefill, {"": groups}),
        hosts={engine.name: replace(own, launches=launches or own.launches)},
    )


def _mixed(
    measured: Mapping[str, Speed], parts: Mapping[str, Iterable[Group]]
) -> Mapping[str, Speed]:
    """The rate of each part."""
    if not measured:
        return {}
    found: dict[str, Speed] = {}
    for name, groups in parts.items():
        total = time = 0.0
        for group in groups:
            share = group.active_bytes / group.bytes if group.bytes else 0.0
            for stored, size in group.types.items():
                kind = _FOURS_KERNEL if _FOURS in group.types else stored
                total += size * share
                time += size * share / measured[_nearest(kind, tuple(measured))].value
        if time:
            found[name] = Speed(total / time, "measured")
    return found or measured


@cache
def _nearest(kind: str, known: tuple[str, ...]) -> str:
    return kind if kind in known else min(known, key=lambda each: abs(_bits(each) - _bits(kind)))


@cache
def _bits(name: str) -> float:
    """Bits a weight; of a type that GGUF lacks, those of its plain elements."""
    known = {kind.name: kind for kind in (*SAFETENSORS_TYPES.values(), *GGUF_TYPES.values())}
    return known[name].bits_per_weight if name in known else 16.0


def _only(measured: Mapping[str, Speed], kind: str) -> float:
    """The figure of ``tuned``; where there is none of this kind, the middle one."""
    if kind in measured:
        return measured[kind].value
    values = sorted(speed.value for speed in measured.values())
    return values[len(values) // 2]
