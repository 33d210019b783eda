"""Knows no file: machines by name, ``GPU[+GPU...]+ddrG-MTxCHANNELS:GB+nvmeN``.

    rtx-4090+ddr5-6000x2:128+nvme4          2xrtx-3090+cpu:32+ddr4-3200x8:256+nvme4
    cpu:16+ddr5-5600x2:64+nvme4             m4-max-128        gb10        strix-halo-8060s:96+nvme5

GPUs may be counted and several; ``cpu:CORES`` is needed only where there is no GPU; a disk is one
of ``nvme3 nvme4 nvme5 sata-ssd usb-enclosure`` and nvme4 when left out. A Mac is its chip and its
memory, an APU its slug and memory after a colon; both come with a disk. Upper and lower case are
one. Memory is GiB.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from localrun.errors import UsageError
from localrun.hardware import assembly, reserves
from localrun.hardware.assembly import Card, Ram, Storage
from localrun.hardware.machine import Machine
from localrun.hardware.parts import Part, channels, dram, find, parts, unknown

MOST_GPUS = 16
MOST_CORES = 1024
LARGEST_RAM_GB = 16_384
EXAMPLES = (
    "rtx-4090+ddr5-6000x2:128+nvme4",
    "2xrtx-3090+ddr4-3200x8:256+nvme4",
    "rtx-5090+cpu:24+ddr5-6400x2:192+nvme5",
    "cpu:16+ddr5-5600x2:64+nvme4",
    "m4-max-128",
    "gb10",
)
_LONGEST = 200
_HINT = f"such as {EXAMPLES[0]} or m4-max-128; `localrun hardware --list` shows the names"
_COUNTED = re.compile(r"([0-9]{1,9})x(.+)\Z")
_MAC = re.compile(r"(m[0-9].*)-([0-9]{1,15})\Z")
_NUMBER = re.compile(r"[0-9]{1,15}(\.[0-9]{1,3})?\Z")
_NAMED = ("gpu", "mac", "apu", "disk")


@dataclass(slots=True)
class _Read:
    """What the parts so far have said."""

    cards: list[Card] = field(default_factory=list)
    pool: Part | None = None
    pool_bytes: int = 0
    ram: Ram | None = None
    channels: int = 2
    disk: Storage | None = None
    cores: int | None = None


def named(text: str) -> Machine:
    """The machine that ``text`` names, every tier with its speeds.

    Raises:
        UsageError: names ``--machine`` and the part that cannot be meant.
    """
    name = text.strip().lower()
    if not name or len(name) > _LONGEST:
        raise _refused(name[:32], "is no machine")
    read = _Read()
    for part in name.split("+"):
        _take(part.strip(), read)
    if read.pool is not None:
        return _pool(name, read.pool, read)
    return _discrete(name, read)


def _take(text: str, read: _Read) -> None:
    body, colon, amount = text.partition(":")
    if body == "cpu":
        if read.cores is not None:
            raise _refused(text, "is a second CPU")
        read.cores = int(_amount(text, amount, MOST_CORES, "cores", whole=True))
        return
    if memory := dram(body):
        if read.ram is not None:
            raise _refused(text, "is a second kind of RAM")
        size = reserves.gib(_amount(text, amount, LARGEST_RAM_GB, "GB"))
        read.ram = Ram(memory.slug, size, memory.bandwidth)
        read.channels = channels(memory)
        return
    if body.startswith("ddr"):
        raise _refused(text, "is no RAM: write ddrG-MTxCHANNELS:GB, such as ddr5-6000x2:128")
    _take_slug(text, body, amount if colon else None, read)


def _take_slug(text: str, body: str, amount: str | None, read: _Read) -> None:
    counted = _COUNTED.match(body)
    slug = counted[2] if counted else body
    part, memory = _slug(slug)
    if part.kind == "gpu":
        if amount is not None:
            raise _refused(text, "is a GPU, whose memory is known: leave the number out")
        count = int(counted[1]) if counted else 1
        if not 1 <= count + len(read.cards) <= MOST_GPUS or count == 0:
            raise _refused(text, f"makes no machine: 1 to {MOST_GPUS} GPUs")
        read.cards += [assembly.card(part)] * count
        return
    if counted:
        raise _refused(text, "cannot be counted: only GPUs can")
    if part.kind == "disk":
        if read.disk is not None:
            raise _refused(text, "is a second disk: name the one that models lie on")
        if amount is not None:
            raise _refused(text, "takes no size")
        read.disk = assembly.storage(part.slug)
        return
    if read.pool is not None:
        raise _refused(text, "is a second machine")
    _take_pool(text, part, memory or amount, read)


def _take_pool(text: str, part: Part, memory: str | None, read: _Read) -> None:
    assert part.memory_gb is not None
    most = int(part.memory_gb)
    size = _amount(text, memory, most, "GB") if memory is not None else part.memory_gb
    read.pool, read.pool_bytes = part, reserves.gib(size)


def _slug(slug: str) -> tuple[Part, str | None]:
    """The part, and the memory that follows a Mac's slug after a dash."""
    mac = _MAC.match(slug)
    if slug not in parts() and mac:
        found = parts().get(mac[1])
        if found is None or found.kind != "mac":
            raise unknown(mac[1], ("mac",), "--machine")
        return found, mac[2]
    return find(slug, *_NAMED), None


def _pool(name: str, part: Part, read: _Read) -> Machine:
    for wrong, what in ((read.cards, "a GPU"), (read.ram, "RAM"), (read.cores, "a CPU")):
        if wrong:
            raise _refused(part.slug, f"has GPU, CPU and memory of its own: leave {what} out")
    disk = read.disk or assembly.internal_storage(part)
    notes = () if read.disk else (f"disk speed assumed: {disk.name}",)
    return assembly.unified(name, part, read.pool_bytes, disk, notes)


def _discrete(name: str, read: _Read) -> Machine:
    if read.ram is None:
        raise _refused(name, "has no RAM: add ddrG-MTxCHANNELS:GB, such as ddr5-6000x2:128")
    if not read.cards and read.cores is None:
        raise _refused(name, "has neither GPU nor CPU: add a GPU or cpu:CORES")
    notes = []
    if read.cores is None:
        notes.append(f"CPU cores assumed: {assembly.assumed_cores(read.channels)}")
    if read.disk is None:
        notes.append("disk assumed: nvme4")
    return assembly.discrete(
        name,
        read.cards,
        read.ram,
        read.disk or assembly.storage("nvme4"),
        read.cores or assembly.assumed_cores(read.channels),
        notes,
    )


def _amount(text: str, amount: str, most: int, unit: str, *, whole: bool = False) -> float:
    if not _NUMBER.match(amount) or (whole and "." in amount):
        raise _refused(text, f"needs a number of {unit} after the colon")
    value = float(amount)
    if not 1 <= value <= most:
        raise _refused(text, f"makes no machine: 1 to {most} {unit}")
    return value


def _refused(part: str, what: str) -> UsageError:
    return UsageError(f"--machine: {part!r} {what}", hint=_HINT)
