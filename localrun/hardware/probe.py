"""Knows no plan: asks this machine what it has. Nothing is measured and nothing is guessed."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

from localrun.hardware.cgroup import PROC, SYS
from localrun.hardware.cpus import cpu
from localrun.hardware.disks import disk
from localrun.hardware.gpus import Found, gpus
from localrun.hardware.machine import Cpu, Machine, Memory
from localrun.hardware.macs import (
    DISPLAYS_COMMAND,
    SYSCTL_COMMAND,
    mac_cpu,
    mac_gpus,
    parse_sysctl,
    wired_limit,
)
from localrun.hardware.memory import memory

_COMMAND_SECONDS = 15


def probe(places: Sequence[Path], *, proc: Path = PROC, sys: Path = SYS) -> Machine:
    """This machine, with the disks under ``places``.

    What cannot be read is absent, and ``notes`` say so where it matters. Takes milliseconds on
    Linux; on a Mac as long as system_profiler takes.
    """
    system = platform.system()
    has = memory(proc, sys)
    processor, (devices, notes) = _mac(has) if system == "Darwin" else (cpu(proc, sys), gpus(sys))
    return Machine(
        system=system,
        architecture=platform.machine(),
        cpu=processor,
        memory=has,
        gpus=devices,
        disks=tuple(disk(place, sys) for place in places),
        notes=notes,
    )


def _mac(has: Memory) -> tuple[Cpu, Found]:
    told = parse_sysctl(_output(SYSCTL_COMMAND))
    processor = mac_cpu(told)
    displays = mac_gpus(_output(DISPLAYS_COMMAND), has.total, has.available, wired_limit(told))
    notes = () if displays else ("system_profiler names no GPU",)
    return processor or cpu(), (displays, notes)


def _output(command: tuple[str, ...]) -> str:
    """What a command prints, whatever its exit status: sysctl fails over one unknown name."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=_COMMAND_SECONDS, check=False
        ).stdout
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ""
