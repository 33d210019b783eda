"""Knows no placement: how long a token and a prompt chunk take, term by term.

The model, whose figures and sources are in ``constants``: serial stages add up, a device reads its
weights once a token at a share of its bandwidth, a layer costs its launches, a change between card
and host costs a handover, and reads from disk hide behind computing as far as the engine overlaps
them. Times are milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache

from localrun.formats.types import GGUF_TYPES, SAFETENSORS_TYPES
from localrun.hardware.machine import Compute, Speed, Tier
from localrun.models.spec import ModelSpec
from localrun.plan import constants
from localrun.plan.constants import Constants
from localrun.plan.engines import Engine
from localrun.plan.rooms import SIMULATED, Rooms
from localrun.plan.stack import Weights
from localrun.plan.work import Chunk, Share, Token

# GB/s is bytes a nanosecond: bytes / GB/s / 1e6 are milliseconds.
_MS = 1e6
# Where a maker publishes no arithmetic peak: TFLOP/s for each GB/s, the median of the parts of
# hardware.csv that state one (cards 0.12, Macs 0.034).
_FLOPS_PER_BYTE = {"vram": 0.12, "unified": 0.034}
_DEFAULT_LINK = 26.0
# Apple's GPUs before the M3 issue integer and floating-point work one after the other, those since
# beside each other (Apple, "Explore GPU advancements in M3 and A17 Pro", Tech Talk 111375):
# unpacking narrow weights adds to reading them on the former and hides behind it on the latter.
_SERIAL = ("m1", "m2")


@dataclass(frozen=True, slots=True)
class Terms:
    """Parts of one step by name, in ms. ``hidden`` is what overlaps and does not count."""

    parts: Mapping[str, float]
    hidden: float = 0.0

    @property
    def total(self) -> float:
        return max(1e-6, sum(self.parts.values()) - self.hidden)

    @property
    def largest(self) -> str:
        return max(self.parts, key=lambda name: self.parts[name])


def mean(first: Terms, second: Terms, share: float) -> Terms:
    """``share`` of the one and the rest of the other."""
    names = dict.fromkeys((*first.parts, *second.parts))
    return Terms(
        {
            name: share * first.parts.get(name, 0.0) + (1 - share) * second.parts.get(name, 0.0)
            for name in names
        },
        share * first.hidden + (1 - share) * second.hidden,
    )


def token_terms(
    work: Token, rooms: Rooms, engine: Engine, fit: Constants, threads: int | None = None
) -> Terms:
    """The time of one decoded token."""
    parts: dict[str, float] = {}
    for at, share in enumerate(work.cards):
        if rooms.cards[at].tier.device == SIMULATED:
            rate = _rate(rooms, engine, fit, threads)
            parts[f"{share.tier} weights"] = share.weights.read / rate / _MS
            parts[f"{share.tier} kv"] = share.kv / rate / _MS
        else:
            _card(parts, share, rooms.cards[at].tier, fit)
    if engine.parallel_cards and len(work.cards) > 1:
        parts = {name: time / len(work.cards) for name, time in parts.items()}
        layers = sum(share.layers for share in work.cards)
        parts["between cards"] = 2 * layers * constants.REDUCE_MS
    elif len(work.cards) > 1:
        busy = sum(bool(share.layers) for share in work.cards)
        parts["between cards"] = max(0, busy - 1) * constants.HOP_MS
    if work.host is not None and rooms.host is not None:
        _host(parts, work, rooms, engine, fit, threads)
    if work.handovers:
        parts["handover"] = work.handovers * fit.handover
    parts["step"] = constants.STEP_MS
    computing = sum(parts.values())
    rows = _rows(work, rooms, engine, computing)
    if rows > 0:
        parts["n-gram rows"] = rows
    disk = _disk(work, rooms)
    if disk > 0:
        parts["disk"] = disk
    return Terms(parts, _overlap(engine, rooms) * min(disk, computing))


def _rate(rooms: Rooms, engine: Engine, fit: Constants, threads: int | None = None) -> float:
    """GB/s of the host's kernels, which a simulated card computes with too."""
    assert rooms.host is not None
    return host_rate(rooms.host.tier, rooms.machine.compute, engine, fit, threads)


def _overlap(engine: Engine, rooms: Rooms) -> float:
    """One memory controller serves both the disk's transfers and the GPU of a unified memory."""
    return 0.0 if rooms.unified else engine.overlap


def _card(parts: dict[str, float], share: Share, tier: Tier, fit: Constants) -> None:
    name, speed = share.tier, tier.read.value
    if tier.kind == "unified":
        launches, kv_share = fit.unified_block, _got(tier, fit.unified)
        time = (share.weights.wide + share.weights.packed) / (kv_share * speed) / _MS
        packed = 0.0 if _timed(tier) else share.weights.parameters * _packed_share(share.weights)
        unpacking = packed * fit.unpack / (_peak(tier) * 1e9)
        serial = tier.device.startswith(_SERIAL)
        time = time + unpacking if serial else max(time, unpacking)
    else:
        launches, kv_share = fit.gpu_block, _got(tier, fit.gpu_wide)
        time = share.weights.wide / (kv_share * speed) / _MS
        time += share.weights.packed / (_got(tier, fit.gpu_packed) * speed) / _MS
    parts[f"{name} weights"] = time
    parts[f"{name} launches"] = share.blocks * launches
    if share.kv:
        parts[f"{name} kv"] = share.kv / (kv_share * speed) / _MS


def _timed(tier: Tier) -> bool:
    """Whether ``read`` is what the card's own products got through: their losses are in it."""
    return tier.read.basis == "measured" and tier.device != SIMULATED


def _got(tier: Tier, share: float) -> float:
    return 1.0 if _timed(tier) else share


def _packed_share(weights: Weights) -> float:
    """Of the parameters, those in narrow types: wide ones take two bytes."""
    wide = min(weights.parameters, weights.wide / 2)
    return 1 - wide / weights.parameters if weights.parameters else 0.0


def _host(
    parts: dict[str, float],
    work: Token,
    rooms: Rooms,
    engine: Engine,
    fit: Constants,
    threads: int | None,
) -> None:
    assert work.host is not None
    assert rooms.host is not None
    tier = rooms.host.tier
    rate = host_rate(tier, rooms.machine.compute, engine, fit, threads)
    stream = _stream(tier)
    arms = engine.experts == "slots" and engine.uploads and bool(work.cards)
    arms = arms and not rooms.simulated
    if arms and work.host.weights.read:
        # Both arms work on the missed experts and finish together; both read the same memory.
        rate = max(rate, min(stream, rate + _link(rooms)))
    if work.host.weights.read:
        parts["ram weights"] = work.host.weights.read / rate / _MS
    if work.host.kv:
        parts["ram kv"] = work.host.kv / rate / _MS


def host_rate(
    tier: Tier, compute: Compute | None, engine: Engine, fit: Constants, threads: int | None = None
) -> float:
    """GB/s of weights that the CPU's matrix-vector products get through.

    What was measured here counts as it is; otherwise the least of what memory delivers and what
    the cores compute.
    """
    if engine.kernels == "reference":
        return min(constants.REFERENCE_GBPS, _stream(tier))
    cores = compute.cores if compute and compute.cores else 0
    used = min(cores, threads) if cores and threads else cores
    if compute is not None and compute.gemv:
        rate = _only(compute.gemv)
        return rate * used / cores if cores else rate
    rate = _stream(tier) * fit.ram
    if compute is not None and not engine.numa:
        # Threads of one socket reach the other's memory through a link, and wait for each other.
        rate /= compute.sockets
    if cores:
        rate = min(rate, used * fit.core)
    return rate * (fit.portable if engine.kernels == "portable" else 1.0)


def _only(measured: Mapping[str, Speed]) -> float:
    """The figure of ``tuned``; of several, the middle one."""
    values = sorted(speed.value for speed in measured.values())
    return values[len(values) // 2]


def tuned(compute: Compute | None, spec: ModelSpec) -> Compute | None:
    """``compute`` with what was measured of single types made into one figure for this model.

    Each type's bytes take their own time; a type that was not measured takes that of the nearest
    in bits a weight.
    """
    if compute is None or not compute.gemv:
        return compute
    gemv = _mixed(compute.gemv, spec)
    prefill = _mixed(compute.prefill, spec)
    return replace(compute, gemv=gemv, prefill=prefill)


def _mixed(measured: Mapping[str, Speed], spec: ModelSpec) -> Mapping[str, Speed]:
    if not measured:
        return measured
    total = time = 0.0
    for name, (_, size) in spec.tensor_types.items():
        nearest = min(measured, key=lambda known: abs(_bits(known) - _bits(name)))
        total += size
        time += size / measured[name if name in measured else nearest].value
    return {"": Speed(total / time, "measured")} if time else measured


@cache
def _bits(name: str) -> float:
    """Bits a weight; of a type that GGUF lacks, those of its plain elements."""
    known = {kind.name: kind for kind in (*SAFETENSORS_TYPES.values(), *GGUF_TYPES.values())}
    return known[name].bits_per_weight if name in known else 16.0


def _stream(tier: Tier) -> float:
    """GB/s that streaming reads reach."""
    measured = tier.read.basis == "measured"
    return tier.read.value * (1.0 if measured else constants.STREAM_SHARE)


def _disk(work: Token, rooms: Rooms) -> float:
    if rooms.disk is None or work.misses <= 0:
        return 0.0
    speed = rooms.disk.tier.read.value * constants.DISK_SUSTAINED
    return work.missed / speed / _MS + work.misses * constants.EXPERT_READ_MS


def _rows(work: Token, rooms: Rooms, engine: Engine, computing: float) -> float:
    """What waiting for n-gram rows adds to a token.

    Read ahead, they wait only for what does not fit into the layers before the first table.
    """
    if not work.rows:
        return 0.0
    on_disk = rooms.disk is not None and work.on_disk
    if not on_disk:
        return work.rows * constants.RAM_ROW_MS
    layers = sum(share.layers for share in work.cards) + (work.host.layers if work.host else 0)
    slack = computing * work.cover / max(1, layers)
    if engine.tables == "faults":
        return work.reads * constants.FAULT_MS
    if engine.tables == "inside":
        return work.reads / _iops(rooms, constants.INSIDE_DEPTH) * 1e3
    return max(0.0, work.reads / _iops(rooms, 64) * 1e3 - slack)


def _iops(rooms: Rooms, depth: int) -> float:
    """Small reads a second with ``depth`` in flight: as many times those of the next lower depth
    that is known as there are more reads, and no more than those of the next higher one."""
    known = {at: speed.value for at, speed in rooms.iops.iops.items()}
    lower = max((at for at in known if at <= depth), default=None)
    if lower is None:
        return depth / (constants.FAULT_MS / 1e3)
    higher = min((at for at in known if at >= depth), default=lower)
    return max(1.0, min(known[lower] * depth / lower, max(known[higher], known[lower])))


def _link(rooms: Rooms) -> float:
    links = [room.tier.link.value for room in rooms.cards if room.tier.link is not None]
    return max(links, default=_DEFAULT_LINK)


def chunk_terms(work: Chunk, rooms: Rooms, engine: Engine, fit: Constants) -> Terms:
    """The time of one chunk of prompt: each device the longer of computing and reading."""
    parts: dict[str, float] = {}
    host_parameters, host_bytes = work.host_parameters, work.host_bytes
    uploads = engine.uploads and bool(work.card_parameters) and host_bytes > 0
    uploads = uploads and not rooms.simulated
    if uploads:
        parts["upload"] = host_bytes / _link(rooms) / _MS
    for at, (parameters, size) in enumerate(
        zip(work.card_parameters, work.card_bytes, strict=True)
    ):
        tier = rooms.cards[at].tier
        extra = host_parameters if uploads and at == 0 else 0.0
        share = 1 / len(work.card_parameters)
        flops = work.tokens * (2 * (parameters + extra) + work.card_attention * share)
        unified = tier.kind == "unified"
        timed = tier.flops is not None and tier.flops.basis == "measured"
        peak = _peak(tier) * (1.0 if timed else fit.unified_mfu if unified else fit.gpu_mfu)
        got = _got(tier, fit.unified if unified else fit.gpu_packed)
        reading = size / (got * tier.read.value) / _MS
        if rooms.simulated:
            peak = _host_gflops(rooms.machine.compute, engine) / 1e3
            reading = size / _rate(rooms, engine, fit) / _MS
        apart = len(work.card_parameters) if engine.parallel_cards else 1
        parts[tier.name] = max(flops / (peak * 1e9), reading) / apart
    if uploads:
        host_parameters = host_bytes = 0.0
    if rooms.host is not None and (host_parameters or work.host_attention):
        flops = work.tokens * (2 * host_parameters + work.host_attention)
        rate = _rate(rooms, engine, fit)
        gflops = _host_gflops(rooms.machine.compute, engine)
        parts["cpu"] = max(flops / (gflops * 1e6), host_bytes / rate / _MS)
    # Copies to a card run beside its computing: the next layer's while this one's is multiplied.
    copied = parts.get("upload", 0.0)
    beside = min(copied, sum(parts.values()) - copied - parts.get("cpu", 0.0))
    computing = sum(parts.values()) - beside
    parts["step"] = constants.STEP_MS
    if work.streamed and rooms.disk is not None:
        speed = rooms.disk.tier.read.value * constants.DISK_SUSTAINED
        parts["disk"] = work.streamed / speed / _MS
    if work.reads and rooms.disk is not None:
        parts["n-gram rows"] = _chunk_rows(work, rooms, engine)
    reading = parts.get("disk", 0.0) + parts.get("n-gram rows", 0.0)
    return Terms(parts, beside + _overlap(engine, rooms) * min(reading, computing))


def _chunk_rows(work: Chunk, rooms: Rooms, engine: Engine) -> float:
    depths = {"ahead": 64, "inside": constants.INSIDE_DEPTH, "faults": constants.FAULT_DEPTH}
    depth = depths[engine.tables]
    return work.reads / _iops(rooms, depth) * 1e3


def _peak(tier: Tier) -> float:
    """TFLOP/s."""
    return tier.flops.value if tier.flops else tier.read.value * _FLOPS_PER_BYTE[tier.kind]


def _host_gflops(compute: Compute | None, engine: Engine) -> float:
    if engine.kernels == "reference":
        return constants.REFERENCE_GFLOPS
    if compute is not None and compute.prefill:
        return _only(compute.prefill)
    portable = engine.kernels == "portable"
    each = constants.PORTABLE_GFLOPS if portable else constants.CORE_GFLOPS
    return each * max(1, compute.cores if compute else 1)
