"""Knows no command and no store: the whole measuring of this machine, in at most a minute."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import TypeVar

from localrun.errors import BackendMissingError, LocalrunError
from localrun.hardware.machine import Disk, HostFigures, Machine, Speed
from localrun.hardware.measure_cpu import TYPES, measure_cpu
from localrun.hardware.measure_disk import measure_disk
from localrun.hardware.measure_memory import measure_memory
from localrun.hardware.measurements import DeviceFigures, MeasuredHost, Measurements
from localrun.hardware.tiers import disk_key, model_disk

T = TypeVar("T")
# With the disk's 21 seconds these stay under a minute, on a busy machine too.
MEMORY_SECONDS = 6.0
CPU_SECONDS = 18.0
DEVICES_SECONDS = 8.0
HOST_SECONDS = 8.0


@dataclass(frozen=True, slots=True)
class Calibrated:
    """``notes`` say what could not be measured, and why."""

    found: Measurements
    notes: tuple[str, ...] = ()


def calibrate(
    machine: Machine,
    *,
    model_place: Path,
    files: Sequence[Path] = (),
    known: Measurements | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Calibrated:
    """Memory, CPU kernels and the disk where models lie; ``with_devices`` adds the GPUs,
    ``with_host`` what a backend does beside its kernels.

    ``files`` are model files that may be read; ``known`` is what was measured before: its other
    disks, its GPUs and what backends measured are kept. What cannot be measured is absent, with a
    note.
    """
    notes: list[str] = []
    cores = max(1, min(machine.cpu.cores, machine.cpu.usable))
    available = min(machine.memory.available, machine.memory.limit)
    say(f"memory: reads and copies with 1 to {cores} threads")
    memory = measure_memory(cores, available=available, seconds=MEMORY_SECONDS)
    if not memory.read:
        notes.append("memory was not measured: too little of it is free")
    found = Measurements(
        date.today().isoformat(),
        hosts=known.hosts if known else {},
        ram_read=_values(memory.read),
        ram_copy=_values(memory.copy),
        disks=known.disks if known else {},
        devices=known.devices if known else {},
    )
    say(f"cpu: {len(TYPES)} tensor types with {cores} threads")
    found = _cpu(found, machine, cores, available, notes)
    if disk := model_disk(machine.disks, model_place):
        found = _disk(found, disk, files, say, notes)
    return Calibrated(found, tuple(notes))


def with_devices(found: Measurements, figures: Mapping[str, DeviceFigures]) -> Measurements:
    """``found`` with what backends measured of GPUs, by name, in place of what was known."""
    new = {name: device.measured() for name, device in figures.items()}
    return replace(found, devices={**found.devices, **new})


def with_host(found: Measurements, backend: str, figures: HostFigures) -> Measurements:
    """``found`` with what a backend measured of itself on the CPU, in place of what was known."""
    misses = {size: speed.value for size, speed in figures.misses.items()}
    new = MeasuredHost(_values(figures.gemv), _values(figures.launches), misses)
    return replace(found, hosts={**found.hosts, backend: new})


def _cpu(
    found: Measurements, machine: Machine, cores: int, available: int, notes: list[str]
) -> Measurements:
    try:
        compute = measure_cpu(
            TYPES,
            cores,
            seconds=CPU_SECONDS,
            cores=cores,
            available=available,
            repack=not machine.gpus,
        )
    except BackendMissingError as error:
        notes.append(f"CPU kernels were not measured: {error.message}")
        return found
    if not compute.gemv:
        notes.append("CPU kernels were not measured: too little memory is free")
    return replace(
        found,
        gemv=_values(compute.gemv),
        core_gemv=_values(compute.core_gemv),
        prefill=_values(compute.prefill),
    )


def _disk(
    found: Measurements,
    disk: Disk,
    files: Sequence[Path],
    say: Callable[[str], None],
    notes: list[str],
) -> Measurements:
    place = Path(disk.path)
    while not place.is_dir() and place != place.parent:
        place = place.parent
    try:
        measured = measure_disk(place, disk.filesystem, files=files, say=say)
    except LocalrunError as error:
        notes.append(error.message)
        return found
    return replace(found, disks={**found.disks, disk_key(disk): measured})


def _values(speeds: Mapping[T, Speed]) -> dict[T, float]:
    return {key: speed.value for key, speed in speeds.items()}
