"""Knows no probe: the machine as a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Basis = Literal["measured", "specified", "assumed"]
TierKind = Literal["vram", "ram", "unified", "disk"]


@dataclass(frozen=True, slots=True)
class Speed:
    """A figure and where it comes from. The unit is that of the field that holds it."""

    value: float
    basis: Basis
    source: str = ""


@dataclass(frozen=True, slots=True)
class Tier:
    """One place that bytes can lie in: ``vram:0`` …, ``ram``, ``unified`` or ``disk``.

    ``usable_bytes`` is what a plan may take now, the system's own reserve left out. ``read`` is
    GB/s (1e9 bytes): of VRAM, RAM and unified memory the theoretical bandwidth of the part unless
    measured, of a disk what large random reads sustain. ``flops`` is TFLOP/s of dense 16-bit
    arithmetic with 32-bit accumulation, of the device that computes from this tier; ``link`` is
    GB/s between host memory and a GPU. Of a GPU, measured figures are what its products got
    through: nothing is lost of them again.
    """

    name: str
    kind: TierKind
    capacity_bytes: int
    usable_bytes: int
    read: Speed
    device: str = ""
    flops: Speed | None = None
    link: Speed | None = None


@dataclass(frozen=True, slots=True)
class HostFigures:
    """What one backend does on the CPU: ``gemv`` as in ``Compute``, of types that it has kernels of
    its own for; ``launches`` are milliseconds that a block of a layer takes whatever it reads, by
    architecture; ``misses`` are milliseconds that fetching an expert from disk
    takes beside its read, by its bytes. Empty where nothing was measured."""

    gemv: Mapping[str, Speed] = field(default_factory=dict)
    launches: Mapping[str, Speed] = field(default_factory=dict)
    misses: Mapping[int, Speed] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Compute:
    """What the CPU does. ``cores`` are physical, over all ``sockets``.

    ``gemv`` is GB/s of weights that a matrix-vector product streams with all cores, by tensor
    type; ``core_gemv`` the same of one core; ``prefill`` is GFLOP/s of a large matrix product, by
    tensor type. ``hosts`` is what single backends were seen to do, by their names. Empty where
    nothing was measured.
    """

    cores: int
    sockets: int = 1
    gemv: Mapping[str, Speed] = field(default_factory=dict)
    core_gemv: Mapping[str, Speed] = field(default_factory=dict)
    prefill: Mapping[str, Speed] = field(default_factory=dict)
    hosts: Mapping[str, HostFigures] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DiskReads:
    """How a disk answers small reads: 4 KiB random reads a second by queue depth, and GB/s of
    large direct reads by queue depth. Empty where nothing is known."""

    iops: Mapping[int, Speed] = field(default_factory=dict)
    large: Mapping[int, Speed] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Cpu:
    """``cores`` are physical, over all ``sockets``; ``usable`` is what affinity and the cgroup
    quota leave this process, at least 1."""

    name: str
    cores: int
    logical: int
    usable: int
    flags: tuple[str, ...] = ()
    sockets: int = 1


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes; ``limit`` is the cgroup's where that is smaller than the machine's."""

    total: int
    available: int
    limit: int


@dataclass(frozen=True, slots=True)
class Gpu:
    """One device. ``kind`` is the maker's API; ``unified`` shares the machine's memory. ``cores``
    is 0 where the driver does not count them; ``wired_limit`` are the bytes that a Mac's user lets
    it work with, 0 where the system decides."""

    name: str
    kind: str  # cuda, rocm, level-zero, metal
    total: int
    free: int
    driver: str
    unified: bool = False
    cores: int = 0
    wired_limit: int = 0


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
    """What a machine has. Nothing a probe fills in is a guess: what could not be read is absent.

    ``tiers``, ``compute`` and ``disk_reads`` are empty in a probe's answer; ``hardware.tiers``
    fills them in, each speed with its basis. ``name`` is ``auto`` for this machine.
    """

    system: str
    architecture: str
    cpu: Cpu
    memory: Memory
    gpus: tuple[Gpu, ...]
    disks: tuple[Disk, ...]
    notes: tuple[str, ...] = ()
    name: str = "auto"
    tiers: tuple[Tier, ...] = ()
    compute: Compute | None = None
    disk_reads: DiskReads | None = None

    def tier(self, kind: TierKind) -> Tier | None:
        """The first tier of a kind."""
        return next((tier for tier in self.tiers if tier.kind == kind), None)
