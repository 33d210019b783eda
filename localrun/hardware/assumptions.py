"""Knows no measurement: the careful guesses for parts that say nothing about their speed.

Each is on the slow side of what such parts do, so that a plan made of it is kept.
"""

from __future__ import annotations

from localrun.hardware.disk_classes import CLASSES, DiskClass, apple_internal
from localrun.hardware.machine import Cpu, Speed
from localrun.hardware.parts import dram
from localrun.hardware.platforms import platform
from localrun.hardware.reserves import GIB

# Flags that came with processors whose memory is DDR5, or may be.
_DDR5_FLAGS = frozenset({"avx_vnni", "avx512_bf16", "avx512_fp16", "amx_tile"})
# GB/s by GiB at most: the slowest card of that size that runs models at all.
_BANDWIDTH_BY_SIZE = ((4, 112), (6, 192), (8, 256), (12, 360), (16, 448), (24, 600), (48, 768))
_BANDWIDTH_OF_MORE = 1500
# What one core draws from memory at most; a part of a server's cores sees no more of its memory.
_CORE_GBPS = 25.0
UNKNOWN_LINK = Speed(12.0, "assumed", "PCIe 3.0 x16, what most slots do at least")
# A part of a processor that borrows a little of its memory; it is no tier of its own.
SMALLEST_CARD = 2 * GIB


def ram_speed(cpu: Cpu) -> Speed:
    """Of the processor's platform, as far as this process's cores reach; else of what is sold with
    so many cores. Modules say their speed to root alone."""
    cores = max(1, min(cpu.cores, cpu.usable))
    known = platform(cpu.name, cpu.sockets)
    if known is not None:
        source = f"{known.channels} channels of {known.transfers} MT/s, the platform of {cpu.name}"
        return Speed(min(known.gbps, cores * _CORE_GBPS), "assumed", source)
    generation = "ddr5-4800" if _DDR5_FLAGS.intersection(cpu.flags) else "ddr4-2666"
    channels = 2 if cpu.cores <= 16 else 4 if cpu.cores <= 32 else 8
    part = dram(f"{generation}x{channels}")
    assert part is not None
    return Speed(part.bandwidth.value, "assumed", f"{part.slug}, guessed from the processor")


def gpu_speed(total_bytes: int) -> Speed:
    """By memory size alone."""
    size = total_bytes / GIB
    value = next((v for most, v in _BANDWIDTH_BY_SIZE if size <= most + 0.5), _BANDWIDTH_OF_MORE)
    return Speed(float(value), "assumed", "guessed from the memory size: an unknown GPU")


def disk_class(kind: str, apple_chip: str | None) -> tuple[str, DiskClass]:
    """By ``Disk.kind``. ``apple_chip`` is the slug of a Mac's chip: macOS does not say the kind."""
    if kind == "unknown" and apple_chip is not None:
        name = apple_internal(apple_chip)
    else:
        name = {"nvme": "nvme4", "hdd": "hdd"}.get(kind, "sata-ssd")
    return name, CLASSES[name]
