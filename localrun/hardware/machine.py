"""Knows no probe: the machine as a value."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cpu:
    """``usable`` is what affinity and the cgroup quota leave this process, at least 1."""

    name: str
    cores: int
    logical: int
    usable: int
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes; ``limit`` is the cgroup's where that is smaller than the machine's."""

    total: int
    available: int
    limit: int


@dataclass(frozen=True, slots=True)
class Gpu:
    """One device. ``kind`` is the maker's API; ``unified`` shares the machine's memory."""

    name: str
    kind: str  # cuda, rocm, level-zero, metal
    total: int
    free: int
    driver: str
    unified: bool = False


@dataclass(frozen=True, slots=True)
class Disk:
    """The disk under one place that localrun writes to."""

    path: str
    device: str
    filesystem: str
    total: int
    free: int
    kind: str  # nvme, ssd, hdd, unknown


@dataclass(frozen=True, slots=True)
class Machine:
    """What this machine has. Nothing here is a guess: what could not be read is absent."""

    system: str
    architecture: str
    cpu: Cpu
    memory: Memory
    gpus: tuple[Gpu, ...]
    disks: tuple[Disk, ...]
    notes: tuple[str, ...] = ()
