"""Knows no library: reads from llama.cpp's load log how much memory it took, and where.

The C API gives no sizes of buffers; the log names each one as it is allocated, for example
``load_tensors:   CPU_Mapped model buffer size =    92.10 MiB``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_LINE = re.compile(r": +(\S+) +(.+?) buffer size += +(\d+\.\d+) MiB")
_DEVICE = re.compile(r"[A-Za-z]+(\d*)")


@dataclass(frozen=True, slots=True)
class Buffers:
    """Bytes by tier: all of them, and those that hold weights."""

    held: dict[str, int]
    weights: dict[str, int]


def read_buffers(lines: Iterable[str]) -> Buffers:
    """Sum the buffers that a load's log names. Exact to the log's 0.01 MiB."""
    held: dict[str, int] = {}
    weights: dict[str, int] = {}
    for line in lines:
        match = _LINE.search(line)
        if match is None:
            continue
        tier, size = _tier(match[1]), round(float(match[3]) * (1 << 20))
        held[tier] = held.get(tier, 0) + size
        if match[2] == "model":
            weights[tier] = weights.get(tier, 0) + size
    return Buffers(held, weights)


def _tier(buffer: str) -> str:
    """``CPU``, ``CPU_Mapped``, ``CPU_REPACK`` and ``CUDA_Host`` are ram; ``CUDA0`` is vram:0."""
    if buffer.startswith("CPU") or buffer.endswith("_Host"):
        return "ram"
    device = _DEVICE.match(buffer)
    return f"vram:{device[1] or 0}" if device else "ram"
