"""Knows no Mac: what ``sysctl`` and ``system_profiler`` print on one, as values.

Pure functions on text, so that they are tested anywhere; ``probe`` runs the two commands.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from localrun.hardware.cgroup import natural
from localrun.hardware.machine import Cpu, Gpu

SYSCTL = (
    "machdep.cpu.brand_string",
    "hw.physicalcpu",
    "hw.logicalcpu",
    "hw.perflevel0.physicalcpu",
    "hw.perflevel1.physicalcpu",
    "hw.memsize",
    "hw.optional.arm.FEAT_DotProd",
    "hw.optional.arm.FEAT_BF16",
    "hw.optional.arm.FEAT_I8MM",
    "hw.optional.arm.FEAT_SME",
    "hw.optional.avx2_0",
    "iogpu.wired_limit_mb",
)
SYSCTL_COMMAND = ("/usr/sbin/sysctl", *SYSCTL)
DISPLAYS_COMMAND = ("/usr/sbin/system_profiler", "SPDisplaysDataType", "-json")
_UNITS = {"MB": 1024**2, "GB": 1024**3}
_FLAG_NAMES = {
    "hw.optional.arm.FEAT_DotProd": "dotprod",
    "hw.optional.arm.FEAT_BF16": "bf16",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.arm.FEAT_SME": "sme",
    "hw.optional.avx2_0": "avx2",
}


def parse_sysctl(text: str) -> dict[str, str]:
    """``name: value`` lines. Names this Mac does not know are left out by sysctl itself."""
    pairs = (line.partition(":") for line in text.splitlines())
    return {key.strip(): value.strip() for key, colon, value in pairs if colon}


def mac_cpu(values: Mapping[str, str]) -> Cpu | None:
    """None where the counts are missing.

    ``usable`` are the performance cores where there are two kinds: a thread on an efficiency core
    makes the others wait.
    """
    cores, logical = _number(values, "hw.physicalcpu"), _number(values, "hw.logicalcpu")
    if not cores or not logical:
        return None
    performance = _number(values, "hw.perflevel0.physicalcpu")
    return Cpu(
        name=values.get("machdep.cpu.brand_string", ""),
        cores=cores,
        logical=logical,
        usable=performance or logical,
        flags=tuple(sorted(name for key, name in _FLAG_NAMES.items() if values.get(key) == "1")),
    )


def wired_limit(values: Mapping[str, str]) -> int:
    """Bytes that ``sysctl iogpu.wired_limit_mb`` lets the GPU work with; 0, as it is unless a user
    sets it, leaves that to the system."""
    return _number(values, "iogpu.wired_limit_mb") * _UNITS["MB"]


def mac_gpus(
    displays: str, memory_total: int, memory_available: int, wired: int = 0
) -> tuple[Gpu, ...]:
    """GPUs of ``system_profiler SPDisplaysDataType -json``; Apple's share the machine's memory, of
    which they may work with ``wired`` bytes."""
    try:
        entries = json.loads(displays)["SPDisplaysDataType"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ()
    found = []
    for entry in entries if isinstance(entries, list) else []:
        if not isinstance(entry, dict) or "sppci_model" not in entry:
            continue
        unified = entry.get("spdisplays_vendor") == "sppci_vendor_Apple"
        own = _size(str(entry.get("spdisplays_vram", "")))
        found.append(
            Gpu(
                name=str(entry["sppci_model"]),
                kind="metal",
                total=memory_total if unified else own,
                free=memory_available if unified else own,
                driver=str(entry.get("spdisplays_mtlgpufamilysupport", "")).removeprefix(
                    "spdisplays_"
                ),
                unified=unified,
                cores=natural(str(entry.get("sppci_cores", ""))) or 0,
                wired_limit=wired if unified else 0,
            )
        )
    return tuple(found)


def _number(values: Mapping[str, str], key: str) -> int:
    return natural(values.get(key, "")) or 0


def _size(text: str) -> int:
    match = re.match(r"([0-9]{1,6}) (MB|GB)\Z", text)
    return int(match[1]) * _UNITS[match[2]] if match else 0
