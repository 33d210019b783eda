"""Knows no file and no grammar: parts put together to a machine with tiers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from localrun.hardware import reserves
from localrun.hardware.disk_classes import CLASSES, apple_internal
from localrun.hardware.machine import (
    Compute,
    Cpu,
    Disk,
    DiskReads,
    Gpu,
    Machine,
    Memory,
    Speed,
    Tier,
)
from localrun.hardware.parts import Part

# Physical cores, recalled from makers' pages; the longest key that begins a slug counts.
_CORES = {
    "m1": 8,
    "m1-pro": 10,
    "m1-max": 10,
    "m1-ultra": 20,
    "m2": 8,
    "m2-pro": 12,
    "m2-max": 12,
    "m2-ultra": 24,
    "m3": 8,
    "m3-pro": 12,
    "m3-max-30c": 14,
    "m3-max": 16,
    "m3-ultra-60c": 28,
    "m3-ultra": 32,
    "m4": 10,
    "m4-pro-16c": 12,
    "m4-pro": 14,
    "m4-max-32c": 14,
    "m4-max": 16,
    "m5": 10,
    "m5-pro": 18,
    "m5-max": 18,
    "gb10": 20,
    "strix-halo": 16,
}
_CORES_PER_CHANNEL, _FEWEST_CORES, _MOST_CORES = 4, 8, 32


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU with memory of its own. ``api`` as in ``Gpu.kind``."""

    name: str
    api: str
    memory_bytes: int
    read: Speed
    flops: Speed | None = None
    link: Speed | None = None


@dataclass(frozen=True, slots=True)
class Ram:
    name: str
    capacity_bytes: int
    read: Speed


@dataclass(frozen=True, slots=True)
class Storage:
    """``kind`` as in ``Disk.kind``."""

    name: str
    read: Speed
    reads: DiskReads
    kind: str = "nvme"
    capacity_bytes: int = reserves.DISK_BYTES


def card(part: Part) -> Card:
    """One card of a GPU part."""
    assert part.memory_gb is not None
    size = reserves.gib(part.memory_gb)
    return Card(part.slug, api(part.slug), size, part.bandwidth, part.flops, part.link)


def storage(name: str) -> Storage:
    """A disk of one of the classes."""
    kind = {"sata-ssd": "ssd", "usb-enclosure": "ssd", "hdd": "hdd"}.get(name, "nvme")
    return Storage(name, CLASSES[name].read, CLASSES[name].reads(), kind)


def internal_storage(part: Part) -> Storage:
    """The disk that a Mac or a machine of one pool comes with."""
    return storage(apple_internal(part.slug) if part.kind == "mac" else "nvme4")


def api(slug: str) -> str:
    """The maker's API of a GPU slug."""
    if slug.startswith(("rx-", "mi", "strix-")):
        return "rocm"
    return "level-zero" if slug.startswith("arc-") else "cuda"


def assumed_cores(channels: int) -> int:
    """Desktops have 2 memory channels and about 8 cores, servers 8 and more with 32."""
    return min(_MOST_CORES, max(_FEWEST_CORES, channels * _CORES_PER_CHANNEL))


def cores_of(slug: str) -> int:
    """CPU cores of a Mac's or an APU's slug."""
    return _CORES[max((key for key in _CORES if slug.startswith(key)), key=len)]


def discrete(
    name: str,
    cards: Sequence[Card],
    ram: Ram,
    disk: Storage,
    cores: int,
    notes: Sequence[str] = (),
) -> Machine:
    """A PC: cards with memory of their own, or none, beside RAM and a disk."""
    usable = reserves.named_ram(ram.capacity_bytes)
    vram = [
        Tier(
            name=f"vram:{index}",
            kind="vram",
            capacity_bytes=each.memory_bytes,
            usable_bytes=reserves.named_vram(each.memory_bytes),
            read=each.read,
            device=each.name,
            flops=each.flops,
            link=each.link,
        )
        for index, each in enumerate(cards)
    ]
    host = Tier("ram", "ram", ram.capacity_bytes, usable, ram.read, ram.name)
    gpus = [
        Gpu(each.name, each.api, each.memory_bytes, tier.usable_bytes, driver="")
        for each, tier in zip(cards, vram, strict=True)
    ]
    return Machine(
        system="Linux",
        architecture="x86_64",
        cpu=Cpu("", cores, cores, cores),
        memory=Memory(ram.capacity_bytes, usable, ram.capacity_bytes),
        gpus=tuple(gpus),
        disks=(_disk(disk),),
        notes=tuple(notes),
        name=name,
        tiers=(*vram, host, disk_tier(disk)),
        compute=Compute(cores),
        disk_reads=disk.reads,
    )


def unified(
    name: str, part: Part, capacity_bytes: int, disk: Storage, notes: Sequence[str] = ()
) -> Machine:
    """A Mac, or a PC whose GPU shares the memory."""
    mac = part.kind == "mac"
    cores = cores_of(part.slug)
    usable = reserves.named_unified(capacity_bytes, metal=mac)
    pool = Tier(
        name="unified",
        kind="unified",
        capacity_bytes=capacity_bytes,
        usable_bytes=usable,
        read=part.bandwidth,
        device=part.slug,
        flops=part.flops,
    )
    kind = "metal" if mac else api(part.slug)
    return Machine(
        system="Darwin" if mac else "Linux",
        architecture="x86_64" if kind == "rocm" else "arm64",
        cpu=Cpu(part.slug, cores, cores, cores),
        memory=Memory(capacity_bytes, usable, capacity_bytes),
        gpus=(Gpu(part.slug, kind, capacity_bytes, usable, driver="", unified=True),),
        disks=(_disk(disk),),
        notes=tuple(notes),
        name=name,
        tiers=(pool, disk_tier(disk)),
        compute=Compute(cores),
        disk_reads=disk.reads,
    )


def disk_tier(disk: Storage) -> Tier:
    size = disk.capacity_bytes
    return Tier("disk", "disk", size, size, disk.read, disk.name)


def _disk(disk: Storage) -> Disk:
    size = disk.capacity_bytes
    return Disk("", disk.name, "", size, size, disk.kind)
