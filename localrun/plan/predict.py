"""Knows no placement: how long a token and a prompt chunk take, term by term.

The model, whose figures and sources are in ``constants``: serial stages add up, a device reads its
weights once a token at a share of its bandwidth, a layer costs its launches, a change between card
and host costs a handover, and reads from disk hide behind computing as far as the engine overlaps
them. Times are milliseconds; terms have the names of ``terms``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import comb

from localrun.hardware.machine import Tier
from localrun.plan import constants
from localrun.plan import terms as names
from localrun.plan.constants import Constants
from localrun.plan.engines import Engine
from localrun.plan.rates import host_gflops, host_launch, host_miss, host_rate, stream
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
            _by_host(parts, share, rooms, engine, fit, threads)
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
        parts[names.SYNC] = work.handovers * fit.handover
    if work.misses:
        miss = host_miss(rooms.machine.compute, engine, work.missed / work.misses)
        parts |= {names.term(_fetching(work), names.MISSES): work.misses * miss} if miss else {}
    parts[names.STEP] = constants.STEP_MS
    computing = sum(parts.values())
    rows = _rows(work, rooms, engine, computing)
    if rows > 0:
        parts[names.ENGRAM] = rows
    disk = _disk(work, rooms)
    if disk > 0:
        parts[names.DISK] = disk
    hidden = _overlap(engine, rooms) * min(disk, computing)
    if engine.hides == "layer" and not rooms.unified:
        hidden = _hidden(work, parts) if disk > 0 else 0.0
    return Terms(parts, hidden)


def token_bytes(work: Token) -> dict[str, int]:
    """What a token reads, by the same names."""
    found: dict[str, float] = {}
    for share in (*work.cards, *((work.host,) if work.host else ())):
        found[names.term(share.tier, names.DENSE)] = share.dense.read
        found[names.term(share.tier, names.EXPERTS)] = share.experts.read
        found[names.term(share.tier, names.KV)] = share.kv
    found[names.DISK] = work.missed
    found[names.ENGRAM] = work.row_fetched
    return {name: round(size) for name, size in found.items() if round(size)}


def _hidden(work: Token, parts: Mapping[str, float]) -> float:
    """Of the disk's time what passes while experts are fetched: in each layer that misses some,
    what all tokens share and the experts that are there are computed, then each other one as it
    arrives. Only the last of these waits for the whole of its read, and what one takes of the host
    it takes while others of its layer are read. Layers miss more of their experts or fewer, as
    chance has it: those that miss many wait, and those that miss none hide nothing."""
    if not work.misses or not work.streaming or not work.used:
        return 0.0
    shares = (*work.cards, *((work.host,) if work.host else ()))

    def time(kind: str) -> float:
        return sum(parts.get(names.term(share.tier, kind), 0.0) for share in shares)

    dense, blocks = sum(share.dense.read for share in shares), sum(share.blocks for share in shares)
    shared = time(names.DENSE) * work.beside / dense if dense else 0.0
    launched = time(names.LAUNCHES) * work.beside_blocks / blocks if blocks else 0.0
    beside = (shared + launched + time(names.EXPERTS) * (1 - 1 / work.used)) / work.streaming
    read, fetched = (each / work.misses for each in (parts[names.DISK], time(names.MISSES)))
    missing = min(1.0, work.misses / (work.streaming * work.used))
    return work.streaming * sum(
        comb(work.used, number)
        * missing**number
        * (1 - missing) ** (work.used - number)
        * min(number * read, beside + (number - 1) * fetched)
        for number in range(1, work.used + 1)
    )


def _fetching(work: Token) -> str:
    """The tier whose experts are read from disk, by the host."""
    return (work.host or work.cards[0]).tier


def _by_host(
    parts: dict[str, float],
    share: Share,
    rooms: Rooms,
    engine: Engine,
    fit: Constants,
    threads: int | None,
    least: float = 0.0,
) -> None:
    """What the host's kernels compute, be it for a card that is simulated. Experts are read at
    ``least`` so fast."""
    assert rooms.host is not None
    tier, compute = rooms.host.tier, rooms.machine.compute

    def rate(kind: str) -> float:
        return host_rate(tier, compute, engine, fit, threads, kind=kind)

    spent = {
        names.DENSE: share.dense.read / rate(names.DENSE) / _MS,
        names.EXPERTS: share.experts.read / max(least, rate(names.EXPERTS)) / _MS,
        names.KV: share.kv / rate(names.DENSE) / _MS,
        names.LAUNCHES: share.blocks * host_launch(compute, engine),
    }
    parts |= {names.term(share.tier, kind): time for kind, time in spent.items() if time}


def _overlap(engine: Engine, rooms: Rooms) -> float:
    """One memory controller serves both the disk's transfers and the GPU of a unified memory."""
    return 0.0 if rooms.unified else engine.overlap


def _card(parts: dict[str, float], share: Share, tier: Tier, fit: Constants) -> None:
    name, speed = share.tier, tier.read.value
    if tier.kind == "unified":
        launches, kv_share = fit.unified_block, _got(tier, fit.unified)
        whole = share.weights
        time = whole.read / (kv_share * speed) / _MS
        packed = 0.0 if _timed(tier) else whole.parameters * _packed_share(whole)
        unpacking = packed * fit.unpack / (_peak(tier) * 1e9)
        serial = tier.device.startswith(_SERIAL)
        time = time + unpacking if serial else max(time, unpacking)
        routed = time * share.experts.read / whole.read if whole.read else 0.0
        dense = time - routed
    else:
        launches, kv_share = fit.gpu_block, _got(tier, fit.gpu_wide)
        dense, routed = (
            weights.wide / (kv_share * speed) / _MS
            + weights.packed / (_got(tier, fit.gpu_packed) * speed) / _MS
            for weights in (share.dense, share.experts)
        )
    spent = {
        names.DENSE: dense,
        names.EXPERTS: routed,
        names.LAUNCHES: share.blocks * launches,
        names.KV: share.kv / (kv_share * speed) / _MS,
    }
    parts |= {names.term(name, kind): time for kind, time in spent.items() if time}


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
    tier, least = rooms.host.tier, 0.0
    arms = engine.experts == "slots" and engine.uploads and bool(work.cards)
    if arms and not rooms.simulated:
        # Both arms work on the missed experts and finish together; both read the same memory.
        rate = host_rate(tier, rooms.machine.compute, engine, fit, threads, kind=names.EXPERTS)
        least = min(stream(tier), rate + _link(rooms))
    _by_host(parts, work.host, rooms, engine, fit, threads, least)


def _disk(work: Token, rooms: Rooms) -> float:
    if rooms.disk is None or work.misses <= 0:
        return 0.0
    speed = rooms.disk_gbps * constants.DISK_SUSTAINED
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
    """Small reads a second with ``depth`` in flight, of all disks that hold the files."""
    return rooms.disks * _disk_iops(rooms, max(1, depth // rooms.disks))


def _disk_iops(rooms: Rooms, depth: int) -> float:
    """Of one disk: as many times those of the next lower depth that is known as there are more
    reads, and no more than those of the next higher one."""
    known = {at: speed.value for at, speed in rooms.iops.iops.items()}
    lower = max((at for at in known if at <= depth), default=None)
    if lower is None:
        return depth / (constants.FAULT_MS / 1e3)
    higher = min((at for at in known if at >= depth), default=lower)
    return max(1.0, min(known[lower] * depth / lower, max(known[higher], known[lower])))


def _mean_rate(rooms: Rooms, engine: Engine, fit: Constants) -> float:
    """Of a prompt's weights, most of which are experts where there are some."""
    assert rooms.host is not None
    return host_rate(rooms.host.tier, rooms.machine.compute, engine, fit, kind=names.EXPERTS)


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
            peak = host_gflops(rooms.machine.compute, engine) / 1e3
            reading = size / _mean_rate(rooms, engine, fit) / _MS
        apart = len(work.card_parameters) if engine.parallel_cards else 1
        parts[tier.name] = max(flops / (peak * 1e9), reading) / apart
    if uploads:
        host_parameters = host_bytes = 0.0
    if rooms.host is not None and (host_parameters or work.host_attention):
        flops = work.tokens * (2 * host_parameters + work.host_attention)
        rate = _mean_rate(rooms, engine, fit)
        gflops = host_gflops(rooms.machine.compute, engine)
        parts["cpu"] = max(flops / (gflops * 1e6), host_bytes / rate / _MS)
    # A block takes that much whatever a chunk holds: of a short prompt it is most of the time.
    blocks = work.host_blocks + (work.card_blocks if rooms.simulated else 0)
    if launched := blocks * host_launch(rooms.machine.compute, engine):
        parts[names.LAUNCHES] = launched
    # Copies to a card run beside its computing: the next layer's while this one's is multiplied.
    copied = parts.get("upload", 0.0)
    others = parts.get("cpu", 0.0) + parts.get(names.LAUNCHES, 0.0)
    beside = min(copied, sum(parts.values()) - copied - others)
    computing = sum(parts.values()) - beside
    parts[names.STEP] = constants.STEP_MS
    if work.streamed and rooms.disk is not None:
        speed = rooms.disk_gbps * constants.DISK_SUSTAINED
        parts[names.DISK] = work.streamed / speed / _MS
    if work.reads and rooms.disk is not None:
        parts[names.ENGRAM] = _chunk_rows(work, rooms, engine)
    reading = parts.get(names.DISK, 0.0) + parts.get(names.ENGRAM, 0.0)
    return Terms(parts, beside + _overlap(engine, rooms) * min(reading, computing))


def _chunk_rows(work: Chunk, rooms: Rooms, engine: Engine) -> float:
    depths = {"ahead": 64, "inside": constants.INSIDE_DEPTH, "faults": constants.FAULT_DEPTH}
    depth = depths[engine.tables]
    return work.reads / _iops(rooms, depth) * 1e3


def _peak(tier: Tier) -> float:
    """TFLOP/s."""
    return tier.flops.value if tier.flops else tier.read.value * _FLOPS_PER_BYTE[tier.kind]
