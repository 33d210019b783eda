"""Knows no part: how much of a memory a plan may take, each constant with its reason.

Sizes that makers print on memory are powers of two: a "24 GB" card holds 24 GiB (a driver reports
24564 MiB of an RTX 4090) and a 16 GB module 16 GiB. Disks are the exception, sold in powers of ten.
"""

from __future__ import annotations

MIB = 1 << 20
GIB = 1 << 30

# Of a machine by name. What a driver keeps of a card (12 MiB to 300 MiB) and a desktop draws on it.
# The context of the computing library is not here: a plan counts it apart.
DRIVER_AND_DESKTOP = 512 * MIB
# Of a machine by name. A desktop with a browser; small machines run with less open.
SYSTEM_LARGEST = 4 * GIB
SYSTEM_SHARE = 1 / 8
# Metal's recommendedMaxWorkingSetSize, unless a user raises it: 10922 MiB of 16 GiB, 21845 of 32,
# 49152 of 64 (github.com/ggml-org/llama.cpp issues 2011 and 1870); newer systems give 84 % of 128
# (github.com/antirez/ds4 pull 893), the least is planned.
METAL_SHARE = 0.75
METAL_SMALL_SHARE = 2 / 3
METAL_SMALL = 36 * GIB
# PCs of one pool (GB10, Strix Halo) have no such limit, but firmware takes some: a GB10 sold with
# 128 GB shows about 120 GiB to programs, of which the system uses its part.
APU_RESERVE = 8 * GIB

# Of this machine, where free memory is known: room for what others open while a model runs.
VRAM_MARGIN = 256 * MIB
RAM_MARGIN_LARGEST = 1 * GIB
RAM_MARGIN_SHARE = 1 / 16

# Of a machine by name: enough for every model that anyone plans.
DISK_BYTES = 2 * 10**12


def gib(count: float) -> int:
    """Bytes of what a maker prints as ``count`` GB on memory."""
    return round(count * GIB)


def named_vram(capacity: int) -> int:
    """Usable bytes of a card by name."""
    return max(0, capacity - DRIVER_AND_DESKTOP)


def named_ram(capacity: int) -> int:
    """Usable bytes of a machine's memory by name."""
    return capacity - min(SYSTEM_LARGEST, int(capacity * SYSTEM_SHARE))


def named_unified(capacity: int, *, metal: bool) -> int:
    """Usable bytes of one pool that CPU and GPU share."""
    if metal:
        return min(working_set(capacity), named_ram(capacity))
    return max(0, capacity - APU_RESERVE)


def working_set(capacity: int, wired_limit: int = 0) -> int:
    """What Metal recommends of a Mac's memory; ``wired_limit`` is what its user has set, 0 where
    that is left to the system."""
    share = METAL_SMALL_SHARE if capacity < METAL_SMALL else METAL_SHARE
    return wired_limit or int(capacity * share)


def free_vram(free: int) -> int:
    """Usable bytes of a card of this machine."""
    return max(0, free - VRAM_MARGIN)


def free_ram(available: int, limit: int) -> int:
    """Usable bytes of this machine's memory; ``limit`` is what this process may have at all."""
    margin = min(RAM_MARGIN_LARGEST, int(limit * RAM_MARGIN_SHARE))
    return max(0, min(available, limit) - margin)


def free_unified(
    total: int, available: int, limit: int, *, metal: bool, wired_limit: int = 0
) -> int:
    """Usable bytes of this machine's one pool."""
    free = free_ram(available, limit)
    return min(working_set(total, wired_limit), free) if metal else free
