"""Knows no memory: the processor, and how much of it this process may use."""

from __future__ import annotations

import math
import os
import platform
import re
from pathlib import Path

from localrun.hardware.cgroup import PROC, SYS, cgroup_limits, read_text
from localrun.hardware.machine import Cpu

# What kernels of the runners are chosen by; the other hundred flags say nothing here.
_FLAGS = frozenset(
    {"ssse3", "avx", "avx2", "fma", "f16c", "bmi2", "avx_vnni", "avx512f", "avx512bw", "avx512vl"}
    | {"avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16"}
    | {"asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve", "sve2", "sme"}
)
_SOCKET = re.compile(r"^physical id\s*:\s*(\d+)", re.MULTILINE)
_NAME_KEYS = ("model name", "Model", "Hardware", "cpu model")
_FLAG_KEYS = ("flags", "Features")


def cpu(proc: Path = PROC, sys: Path = SYS) -> Cpu:
    """Cores, name and flags of a Linux or other machine; Macs have more to say (``macs``)."""
    import psutil

    logical = psutil.cpu_count(logical=True) or os.cpu_count() or 1
    cores = psutil.cpu_count(logical=False) or logical
    text = read_text(proc / "cpuinfo") or ""
    info = cpuinfo(text)
    name = next((info[key] for key in _NAME_KEYS if info.get(key)), "")
    flags = next((info[key] for key in _FLAG_KEYS if info.get(key)), "")
    return Cpu(
        name=name or platform.processor() or platform.machine(),
        cores=cores,
        logical=logical,
        usable=usable_cpus(affinity(logical), cgroup_limits(proc, sys).cpus),
        flags=tuple(sorted(_FLAGS.intersection(flags.split()))),
        sockets=max(1, len(set(_SOCKET.findall(text)))),
    )


def affinity(logical: int) -> int:
    """CPUs the scheduler lets this process run on; all of them where it cannot be asked."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return logical


def usable_cpus(affinity: int, quota: float | None) -> int:
    """A quota of 1.5 CPUs keeps two threads busy, one of them by half."""
    return max(1, affinity if quota is None else min(affinity, math.ceil(quota)))


def cpuinfo(text: str) -> dict[str, str]:
    """The fields of the first processor, and those that stand once for all (ARM's Hardware)."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip(), value.strip())
    return fields
