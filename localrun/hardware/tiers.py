"""Knows no probe and no file: a probed machine's tiers, each speed with its basis.

A speed is the measured one, else that of the part whose name the driver gives, else a careful
guess with a note.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from localrun.hardware import assumptions, reserves
from localrun.hardware.gpu_names import gpu_part, mac_part
from localrun.hardware.machine import Compute, Disk, DiskReads, Gpu, Machine, Speed, Tier
from localrun.hardware.measurements import DeviceFigures, Measurements
from localrun.hardware.parts import Part

_CALIBRATE = "`localrun hardware --calibrate` measures it"
# The slowest chip of its kind; a guess of more would promise too much.
_UNKNOWN_POOL = Speed(68.0, "assumed", "an unknown chip: the slowest of its kind")


def with_tiers(machine: Machine, measured: Measurements | None, *, model_place: Path) -> Machine:
    """``machine`` as ``probe`` gave it, with tiers, compute and disk reads.

    ``model_place`` is where models lie: its disk is the tier. Of a place that was not probed, the
    first disk stands in.
    """
    notes = list(machine.notes)
    cores = max(1, min(machine.cpu.cores, machine.cpu.usable))
    chip = mac_part(machine.cpu.name, _gpu_cores(machine)) if machine.system == "Darwin" else None
    pool = next((gpu for gpu in machine.gpus if gpu.unified), None)
    memory = (
        (*_vram(machine.gpus, measured, notes), _ram(machine, measured, notes))
        if pool is None
        else (_unified(machine, pool, chip, measured, notes),)
    )
    disk = model_disk(machine.disks, model_place)
    tier, reads = _disk(disk, measured, chip, notes) if disk else (None, None)
    return replace(
        machine,
        notes=tuple(notes),
        tiers=(*memory, *([tier] if tier else [])),
        compute=measured.compute(cores) if measured else Compute(cores, machine.cpu.sockets),
        disk_reads=reads,
    )


def disk_key(disk: Disk) -> str:
    """What a disk's measurements are kept under."""
    return f"{disk.device} {disk.filesystem}".strip()


def _gpu_cores(machine: Machine) -> int:
    return next((gpu.cores for gpu in machine.gpus if gpu.unified), 0)


def _figures(gpu: Gpu, gpus: tuple[Gpu, ...], measured: Measurements | None) -> DeviceFigures:
    """What was measured of a GPU. Where there is one and one was measured, they are the same:
    another driver may call it by another name."""
    if measured is None:
        return DeviceFigures({})
    found = measured.device(gpu.name)
    cards = [each for each in gpus if each.unified or each.total >= assumptions.SMALLEST_CARD]
    if found is None and cards == [gpu] and len(measured.devices) == 1:
        found = measured.device(next(iter(measured.devices)))
    return found or DeviceFigures({})


def _vram(
    gpus: tuple[Gpu, ...], measured: Measurements | None, notes: list[str]
) -> tuple[Tier, ...]:
    tiers: list[Tier] = []
    for gpu in gpus:
        part = gpu_part(gpu.name, gpu.total)
        total, free = gpu.total, gpu.free
        if not total and part is not None and part.memory_gb is not None:
            total = free = reserves.gib(part.memory_gb)
        if total < assumptions.SMALLEST_CARD:
            notes.append(f"{gpu.name}: left out, it has no memory of its own that is worth a plan")
            continue
        figures = _figures(gpu, gpus, measured)
        if part is None and figures.read is None:
            notes.append(f"{gpu.name}: bandwidth guessed from its memory size; {_CALIBRATE}")
        tiers.append(
            Tier(
                name=f"vram:{len(tiers)}",
                kind="vram",
                capacity_bytes=total,
                usable_bytes=reserves.free_vram(free),
                read=figures.read or (part.bandwidth if part else assumptions.gpu_speed(total)),
                device=gpu.name,
                flops=figures.flops or (part.flops if part else None),
                link=figures.link or (part.link if part else None) or assumptions.UNKNOWN_LINK,
            )
        )
    return tuple(tiers)


def _ram(machine: Machine, measured: Measurements | None, notes: list[str]) -> Tier:
    memory = machine.memory
    read = measured.ram() if measured else None
    if read is None:
        read = assumptions.ram_speed(machine.cpu)
        notes.append(f"memory bandwidth is {read.source}; {_CALIBRATE}")
    return Tier(
        name="ram",
        kind="ram",
        capacity_bytes=memory.limit,
        usable_bytes=reserves.free_ram(memory.available, memory.limit),
        read=read,
        device=machine.cpu.name,
    )


def _unified(
    machine: Machine,
    pool: Gpu,
    chip: Part | None,
    measured: Measurements | None,
    notes: list[str],
) -> Tier:
    memory = machine.memory
    part = chip or gpu_part(pool.name, pool.total)
    figures = _figures(pool, machine.gpus, measured)
    if part is None and figures.read is None:
        notes.append(f"{pool.name}: bandwidth guessed, this chip is not in the table; {_CALIBRATE}")
    return Tier(
        name="unified",
        kind="unified",
        capacity_bytes=memory.limit,
        usable_bytes=reserves.free_unified(
            memory.total,
            memory.available,
            memory.limit,
            metal=pool.kind == "metal",
            wired_limit=pool.wired_limit,
        ),
        read=figures.read or (part.bandwidth if part else _UNKNOWN_POOL),
        device=pool.name,
        flops=figures.flops or (part.flops if part else None),
    )


def model_disk(disks: tuple[Disk, ...], place: Path) -> Disk | None:
    """The probed disk of ``place``, else the first."""
    return next((disk for disk in disks if disk.path == str(place)), next(iter(disks), None))


def _disk(
    disk: Disk, measured: Measurements | None, chip: Part | None, notes: list[str]
) -> tuple[Tier, DiskReads]:
    reads = measured.disk_reads(disk_key(disk)) if measured else None
    if reads is not None and reads.large:
        read = max(reads.large.values(), key=lambda speed: speed.value)
    else:
        name, assumed = assumptions.disk_class(disk.kind, chip.slug if chip else None)
        read, reads = assumed.read, assumed.reads()
        notes.append(f"disk speed is that of {name}, taken from its kind; {_CALIBRATE}")
    device = disk.device or disk.kind
    return Tier("disk", "disk", disk.total, disk.free, read, device), reads
