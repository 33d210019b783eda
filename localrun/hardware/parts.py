"""Knows no machine: GPUs, Macs, memory and disks by slug, from the packaged ``hardware.csv``.

Columns: ``memory_gb`` is GiB (``reserves``), ``bandwidth_gbps`` 1e9 bytes a second, the TFLOPS are
dense, with 32-bit accumulation; the last column says where a row's figures come from. Macs' TFLOPS
are the GPU's ALU peak. Usable PCIe of 16 lanes: generation 4 measured by others, the rest scaled.
"""

from __future__ import annotations

import csv
import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType

from localrun.errors import UsageError
from localrun.hardware.machine import Basis, Speed

# GB/s that copies between pinned host memory and a card reach over 16 lanes, by generation.
PCIE_X16 = {2: 6.0, 3: 12.0, 4: 26.0, 5: 52.0}
_PCIE = re.compile(r"([2-5])\.0 x(1|2|4|8|16)\Z")
_DRAM = re.compile(r"ddr([3-6])-([0-9]{3,5})x([0-9]{1,2})\Z")
_RECALLED = re.compile(r"(bandwidth |bandwidth and FP4 )?recalled")
_UNKNOWN_HINT = "`localrun hardware --list` shows the names"


@dataclass(frozen=True, slots=True)
class Part:
    """One row. ``kind`` is gpu, mac, apu, dram or disk; what the row leaves empty is None."""

    slug: str
    kind: str
    memory_gb: float | None
    bandwidth: Speed
    flops: Speed | None = None
    fp8_tflops: float | None = None
    fp4_tflops: float | None = None
    link: Speed | None = None
    source: str = ""


@cache
def parts() -> Mapping[str, Part]:
    """Every row by slug, in the order of the file."""
    text = files("localrun.hardware").joinpath("hardware.csv").read_text(encoding="utf-8")
    return MappingProxyType({row["slug"]: _part(row) for row in csv.DictReader(text.splitlines())})


def find(slug: str, *kinds: str, where: str = "--machine") -> Part:
    """The part called ``slug`` of one of ``kinds``.

    Raises:
        UsageError: no such part; names ``where`` and the nearest slugs.
    """
    part = dram(slug) if "dram" in kinds else None
    part = part or parts().get(slug.lower())
    if part is None or part.kind not in kinds:
        raise unknown(slug, kinds, where)
    return part


def unknown(slug: str, kinds: tuple[str, ...], where: str) -> UsageError:
    """What is said of a slug that no part of ``kinds`` has."""
    known = [part.slug for part in parts().values() if part.kind in kinds]
    typed = slug.lower()[:64]
    variants = [each for each in known if typed and each.startswith(f"{typed}-")]
    near = (variants or difflib.get_close_matches(typed, known, cutoff=0.5))[:3]
    said = f"; the nearest are {', '.join(near)}" if near else ""
    return UsageError(f"{where}: no part is called {slug[:64]!r}{said}", hint=_UNKNOWN_HINT)


def dram(slug: str) -> Part | None:
    """``ddrG-MTxCHANNELS``, in the file or not: transfers a second times 8 bytes times channels."""
    match = _DRAM.match(slug.lower())
    if match is None:
        return None
    transfers, channels = int(match[2]), int(match[3])
    if not (400 <= transfers <= 20_000 and 1 <= channels <= 24):
        return None
    source = f"{transfers} MT/s x 8 B x {channels} channels"
    bandwidth = Speed(transfers * 8 * channels / 1000, "specified", source)
    return Part(slug.lower(), "dram", None, bandwidth, source=source)


def channels(part: Part) -> int:
    """Memory channels of a part that ``dram`` made."""
    match = _DRAM.match(part.slug)
    assert match is not None
    return int(match[3])


def pcie(text: str) -> Speed | None:
    """Usable GB/s of ``GENERATION.0 xLANES``."""
    match = _PCIE.match(text)
    if match is None:
        return None
    usable = PCIE_X16[int(match[1])] * int(match[2]) / 16
    return Speed(usable, "assumed", f"usable over PCIe {text}")


def _part(row: Mapping[str, str]) -> Part:
    source = row["source_or_recalled"]
    basis: Basis = "assumed" if _RECALLED.match(source) else "specified"
    flops = _number(row["fp16_tflops"])
    return Part(
        slug=row["slug"],
        kind=row["kind"],
        memory_gb=_number(row["memory_gb"]),
        bandwidth=Speed(float(row["bandwidth_gbps"]), basis, source),
        # Peaks are vendors' figures from memory, whatever the bandwidth's source is.
        flops=None if flops is None else Speed(flops, "assumed", source),
        fp8_tflops=_number(row["fp8_tflops"]),
        fp4_tflops=_number(row["fp4_tflops"]),
        link=pcie(row["pcie"]),
        source=source,
    )


def _number(text: str) -> float | None:
    return float(text) if text else None
