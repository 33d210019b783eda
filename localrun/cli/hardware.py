"""Knows no probe: ``localrun hardware``, what this machine has."""

from __future__ import annotations

from dataclasses import asdict

from localrun.cli.options import Json
from localrun.cli.output import emit_json, note, say, size


def hardware(json: Json = False) -> None:
    """Show what this machine has: CPU, memory, GPUs, disks."""
    from localrun.config import settings
    from localrun.hardware.probe import probe

    here = settings()
    machine = probe([here.data, here.hub_cache])
    if json:
        emit_json(asdict(machine))
        return
    cpu, memory = machine.cpu, machine.memory
    say(f"system  {machine.system} {machine.architecture}")
    say(f"cpu     {cpu.name}: {cpu.cores} cores, {cpu.logical} logical, {cpu.usable} usable here")
    say(f"memory  {size(memory.total)}, {size(memory.available)} available")
    if memory.limit < memory.total:
        say(f"        limited to {size(memory.limit)} by a control group")
    for gpu in machine.gpus:
        kind = "shares the memory" if gpu.unified else f"{size(gpu.free)} of {size(gpu.total)} free"
        say(f"gpu     {gpu.name}: {kind}, {gpu.kind}, driver {gpu.driver or 'unknown'}")
    if not machine.gpus:
        say("gpu     none found")
    for disk in machine.disks:
        say(
            f"disk    {disk.path}: {size(disk.free)} of {size(disk.total)} free, "
            f"{disk.kind} {disk.device} ({disk.filesystem})"
        )
    for line in machine.notes:
        note(f"note: {line}")
