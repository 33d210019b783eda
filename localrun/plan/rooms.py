"""Knows no model: the tiers of a machine as limits that a plan may fill.

A card is what computes from its own memory: a GPU, or the one pool of a machine with unified
memory. The host is RAM beside cards, or all there is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from localrun.errors import PlanRequestError
from localrun.hardware.machine import DiskReads, Machine, Speed, Tier
from localrun.plan.engines import Engine
from localrun.plan.plan import PlanRequest

SIMULATED = "simulated"


@dataclass(frozen=True, slots=True)
class Room:
    """A tier and the bytes of it that may be used."""

    tier: Tier
    limit: int
    asked: bool = False

    @property
    def name(self) -> str:
        return self.tier.name


@dataclass(frozen=True, slots=True)
class Rooms:
    """``host`` is None on unified memory, whose one card holds everything. ``mirrors`` counts the
    disks beside ``disk`` that hold copies of the files."""

    cards: tuple[Room, ...]
    host: Room | None
    disk: Room | None
    machine: Machine
    mirrors: int = 0

    @property
    def unified(self) -> bool:
        return bool(self.cards) and self.cards[0].tier.kind == "unified"

    @property
    def simulated(self) -> bool:
        """Whether the card is a part of RAM that was declared one."""
        return any(room.tier.device == SIMULATED for room in self.cards)

    @property
    def disks(self) -> int:
        """How many hold the files."""
        return 1 + self.mirrors

    @property
    def disk_gbps(self) -> float:
        """Large reads of all of them together; they are taken to be alike."""
        return self.disk.tier.read.value * self.disks if self.disk else 0.0

    @property
    def iops(self) -> DiskReads:
        return self.machine.disk_reads or DiskReads()


def rooms(machine: Machine, request: PlanRequest, engine: Engine, device: bool) -> Rooms:
    """The limits within a request. ``device`` is false where the backend cannot use GPUs.

    Raises:
        PlanRequestError: a machine without memory.
    """
    cards = [
        Room(tier, _limit(tier.usable_bytes, request.vram_bytes), request.vram_bytes is not None)
        for tier in machine.tiers
        if tier.kind == "vram" and device
    ]
    if engine.one_card:
        cards = cards[:1]
    mirrors = len(set(request.mirrors))
    ram, unified = machine.tier("ram"), machine.tier("unified")
    disk = machine.tier("disk")
    if disk is not None and request.disk_read is not None:
        asked = Speed(request.disk_read / 1e9, "specified", "--disk-speed")
        disk = replace(disk, read=asked)
    # What is planned for lies there already: how much of it is free does not matter.
    storage = None if disk is None else Room(disk, disk.capacity_bytes)
    if unified is not None:
        limit = _limit(unified.usable_bytes, request.ram_bytes)
        pool = Room(unified, limit, request.ram_bytes is not None)
        if device:
            return Rooms((pool,), None, storage, machine, mirrors)
        return Rooms((), pool, storage, machine, mirrors)
    if ram is None:
        raise PlanRequestError("the machine has neither a ram nor a unified tier")
    host = Room(ram, _limit(ram.usable_bytes, request.ram_bytes), request.ram_bytes is not None)
    if request.vram_bytes and not cards and engine.simulates:
        simulated = replace(
            ram,
            name="vram:0",
            kind="vram",
            capacity_bytes=request.vram_bytes,
            usable_bytes=request.vram_bytes,
            device=SIMULATED,
            link=ram.read,
        )
        cards = [Room(simulated, request.vram_bytes, True)]
        if not host.asked:
            host = replace(host, limit=max(0, host.limit - request.vram_bytes))
    return Rooms(tuple(cards), host, storage, machine, mirrors)


def _limit(usable: int, asked: int | None) -> int:
    return usable if asked is None else asked
