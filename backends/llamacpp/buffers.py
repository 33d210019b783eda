"""Knows no library: reads from llama.cpp's load log how much memory it took, where, and how much
it did not get.

The C API gives no sizes of buffers; the log names each one as it is allocated, for example
``load_tensors:   CPU_Mapped model buffer size =    92.10 MiB``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

_LINE = re.compile(r": +(\S+) +(.+?) buffer size += +(\d+\.\d+) MiB")
_DEVICE = re.compile(r"[A-Za-z]+(\d*)")
_MIB = 1 << 20
# Recurrent layers and compressors keep a state where others keep rows.
_TERMS: Final = {"model": "weights", "KV": "kv", "RS": "kv", "compute": "compute"}
# What ggml and its devices say when an allocation fails: (pattern of a name, a device's number or
# neither, and a size) and the size's unit. MB of ggml.c are MiB.
_REFUSALS: Final = (
    (re.compile(r"failed to allocate (?P<name>\S+) buffer of size (?P<size>\d+)$"), 1),
    (re.compile(r"failed to allocate (?P<name>Metal) buffer of (?P<size>\d+) bytes"), 1),
    (re.compile(r"allocating (?P<size>[\d.]+) MiB on device (?P<device>\d+): "), _MIB),
    (re.compile(r"failed to allocate output buffer of size (?P<size>[\d.]+) MiB"), _MIB),
    (re.compile(r"failed to allocate buffer, size = +(?P<size>[\d.]+) MiB"), _MIB),
    (re.compile(r"failed to allocate buffer of size (?P<size>\d+)$"), 1),
    (re.compile(r"attempted to allocate +(?P<size>[\d.]+) MB"), _MIB),
    (re.compile(r"failed to allocate +(?P<size>[\d.]+) MB$"), _MIB),
    (re.compile(r"unable to allocate (?P<name>\S+) buffer"), 0),
    (re.compile(r"failed to allocate buffer for (?:kv|rs) cache"), 0),
    (re.compile(r"mmap failed: Cannot allocate memory|std::bad_alloc"), 0),
)


@dataclass(frozen=True, slots=True)
class Buffers:
    """Bytes by tier and by what they are for: ``weights``, ``kv``, ``compute``, ``output`` or
    ``other``. Mapped files count among the weights."""

    parts: dict[str, dict[str, int]]

    @property
    def held(self) -> dict[str, int]:
        """All of them by tier."""
        return {tier: sum(terms.values()) for tier, terms in self.parts.items()}

    @property
    def weights(self) -> dict[str, int]:
        return {tier: terms["weights"] for tier, terms in self.parts.items() if "weights" in terms}


@dataclass(frozen=True, slots=True)
class Refusal:
    """An allocation that failed. ``bytes`` is 0 where the log does not say."""

    tier: str
    bytes: int


def read_buffers(lines: Iterable[str]) -> Buffers:
    """Sum the buffers that a load's log names. Exact to the log's 0.01 MiB."""
    parts: dict[str, dict[str, int]] = {}
    for line in lines:
        match = _LINE.search(line)
        if match is None:
            continue
        terms = parts.setdefault(_tier(match[1]), {})
        term = _term(match[2])
        terms[term] = terms.get(term, 0) + round(float(match[3]) * _MIB)
    return Buffers(parts)


def read_refusal(lines: Iterable[str]) -> Refusal | None:
    """The allocation that a load failed for, or None where it failed for something else.

    Several lines tell of one failure: the largest size and the first name are taken.
    """
    found = [refusal for line in lines for refusal in _refusals(line)]
    if not found:
        return None
    tier = next((refusal.tier for refusal in found if refusal.tier), "ram")
    return Refusal(tier, max(refusal.bytes for refusal in found))


def _refusals(line: str) -> Iterable[Refusal]:
    for pattern, unit in _REFUSALS:
        match = pattern.search(line)
        if match is None:
            continue
        said = match.groupdict()
        size = round(float(said["size"]) * unit) if said.get("size") else 0
        device, name = said.get("device"), said.get("name")
        yield Refusal(f"vram:{device}" if device else _tier(name) if name else "", size)


def _term(what: str) -> str:
    if what.endswith("state"):
        return "kv"
    return _TERMS.get(what, what if what == "output" else "other")


def _tier(buffer: str) -> str:
    """``CPU``, ``CPU_Mapped``, ``CPU_REPACK``, ``AMX`` and ``CUDA_Host`` are ram; ``CUDA0`` is
    vram:0."""
    if buffer.startswith(("CPU", "AMX")) or buffer.endswith("_Host"):
        return "ram"
    device = _DEVICE.match(buffer)
    return f"vram:{device[1] or 0}" if device else "ram"
