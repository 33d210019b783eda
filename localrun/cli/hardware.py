"""Knows no probe: ``localrun hardware``, what a machine has and how fast each part of it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from localrun.cli.machines import (
    AUTO,
    MachineName,
    key_here,
    machine_for,
    probed,
    store_of,
    this_machine,
)
from localrun.cli.options import Json
from localrun.cli.output import emit_json, note, say, size, table
from localrun.errors import UsageError

if TYPE_CHECKING:
    from localrun.config import Settings
    from localrun.hardware.machine import DiskReads, HostFigures, Machine
    from localrun.hardware.measurements import DeviceFigures, Key, Measurements

K = TypeVar("K")
Calibrate = Annotated[
    bool, typer.Option("--calibrate", help="Measure this machine and remember it: a minute.")
]
List = Annotated[bool, typer.Option("--list", help="The parts that --machine knows by name.")]


def hardware(
    machine: MachineName = AUTO,
    calibrate: Calibrate = False,
    list: List = False,
    json: Json = False,
) -> None:
    """Show what a machine has: its tiers of memory, how large and how fast they are."""
    from localrun.config import settings

    here = settings()
    if list:
        _show_list(json)
        return
    measured = None
    if machine.strip().lower() != AUTO:
        if calibrate:
            raise UsageError(
                f"--calibrate measures this machine, not --machine {machine}",
                hint="leave one of the two out",
            )
        shown = machine_for(machine, here)
    else:
        shown, measured = _calibrated(here) if calibrate else this_machine(here)
    if json:
        emit_json(asdict(shown) | {"measurements": asdict(measured) if measured else None})
        return
    _show_parts(shown)
    _show_tiers(shown)
    _show_compute(shown, measured)
    for line in shown.notes:
        note(f"note: {line}")


def _calibrated(here: Settings) -> tuple[Machine, Measurements]:
    """Measure, remember, and show what was measured also where it cannot be remembered."""
    from localrun.hardware.calibrate import calibrate, with_devices, with_host
    from localrun.hardware.measurements import load
    from localrun.hardware.tiers import with_tiers

    machine = probed(here, here.hub_cache)
    store, key = store_of(here), key_here(machine)
    done = calibrate(
        machine,
        model_place=here.hub_cache,
        files=_largest_files(here),
        known=load(store, key).found,
        say=lambda line: note(f"measuring {line}"),
    )
    for line in done.notes:
        note(f"note: {line}")
    _remember(store, key, done.found)
    found = done.found
    if host := _torch_host(machine):
        found = with_host(found, "torch", host)
        _remember(store, key, found)
    if figures := _devices(machine):
        # A driver that fails can end the process: the rest has been remembered by then.
        found = with_devices(found, figures)
        _remember(store, key, found)
    return with_tiers(machine, found, model_place=here.hub_cache), found


def _remember(store: Path, key: Key, found: Measurements) -> None:
    from localrun.hardware.measurements import save

    try:
        save(store, key, found)
    except OSError as error:
        note(f"note: {store}: {error.strerror or error}; this is not remembered")


def _torch_host(machine: Machine) -> HostFigures | None:
    """What torch takes on the CPU beside libggml's products; None where it is not installed."""
    from localrun.backends.torch.backend import calibrate_host
    from localrun.errors import BackendMissingError
    from localrun.hardware.calibrate import HOST_SECONDS

    threads = max(1, min(machine.cpu.cores, machine.cpu.usable))
    try:
        return calibrate_host(HOST_SECONDS, threads, note)
    except BackendMissingError:
        return None


def _devices(machine: Machine) -> dict[str, DeviceFigures]:
    """What the first installed backend that measures any of this machine's GPUs gets of them."""
    from localrun.backends.registry import backend, names
    from localrun.errors import BackendMissingError
    from localrun.hardware.calibrate import DEVICES_SECONDS

    found: dict[str, DeviceFigures] = {}
    for name in names():
        try:
            found = dict(backend(name).calibrate(DEVICES_SECONDS, note))
        except BackendMissingError:
            continue  # said where the CPU was to be measured
        if found:
            break
    if machine.gpus and not found:
        here = ", ".join(dict.fromkeys(gpu.name for gpu in machine.gpus))
        note(f"note: no installed backend measured {here}; `localrun doctor` says what they find")
    return found


def _largest_files(here: Settings) -> list[Path]:
    """Weights on this disk, the largest first."""
    from localrun.store.library import Library

    stored = [model.files for model in Library(here).list() if model.files is not None]
    paths = [Path(file.path) for files in stored for file in files.weights if file.path]
    return sorted((path for path in paths if path.is_file()), key=_bytes, reverse=True)


def _bytes(path: Path) -> int:
    return path.stat().st_size


def _show_parts(machine: Machine) -> None:
    cpu, memory = machine.cpu, machine.memory
    if machine.name != AUTO:
        say(f"machine {machine.name}")
        say(f"cpu     {cpu.cores} cores")
        return
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


def _show_tiers(machine: Machine) -> None:
    say("")
    rows = [
        (
            tier.name,
            tier.device,
            size(tier.capacity_bytes),
            size(tier.usable_bytes),
            f"{tier.read.value:.4g} GB/s",
            tier.read.basis,
            f"{tier.flops.value:.4g} TFLOP/s, {tier.flops.basis}" if tier.flops else "",
            f"{tier.link.value:.4g} GB/s, {tier.link.basis}" if tier.link else "",
        )
        for tier in machine.tiers
    ]
    table(("tier", "device", "size", "usable", "read", "basis", "16-bit", "link"), rows)
    if machine.disk_reads is not None:
        _show_disk(machine.disk_reads)


def _show_disk(reads: DiskReads) -> None:
    say("")
    rows = [
        *(("8 MiB", str(depth), f"{speed.value:.2f} GB/s", speed.basis)
          for depth, speed in reads.large.items()),
        *(("4 KiB", str(depth), f"{speed.value:,.0f} a second", speed.basis)
          for depth, speed in reads.iops.items()),
    ]  # fmt: skip
    table(("disk reads", "at once", "speed", "basis"), rows)


def _show_compute(machine: Machine, measured: Measurements | None) -> None:
    if measured is None:
        return
    say("")
    rows = [
        (
            str(threads),
            _of(measured.ram_read, threads, "GB/s"),
            _of(measured.ram_copy, threads, "GB/s"),
        )
        for threads in measured.ram_read
    ]
    table(("memory threads", "read", "copy"), rows)
    if measured.gemv and machine.compute is not None:
        say("")
        columns = ("cpu, weights", f"{machine.compute.cores} cores", "1 core", "prompt")
        kinds = [
            (
                name,
                _of(measured.gemv, name, "GB/s"),
                _of(measured.core_gemv, name, "GB/s"),
                _of(measured.prefill, name, "GFLOP/s"),
            )
            for name in measured.gemv
        ]
        table(columns, kinds)
    for backend, host in measured.hosts.items():
        say("")
        blocks = [(name, f"{value:.3f} ms") for name, value in host.launches.items()]
        table((f"{backend}, cpu", "a block of a layer"), blocks)
        if host.misses:
            say("")
            fetched = [(size(each), f"{value:.3f} ms") for each, value in host.misses.items()]
            table(("expert from disk", "beside its read"), fetched)
        say("")
        own = [(name, _of(host.gemv, name, "GB/s")) for name in host.gemv]
        table((f"{backend}, weights", "token"), own)
    for name, device in measured.devices.items():
        say("")
        types = [
            (type, _of(device.gemv, type, "GB/s"), _of(device.prefill, type, "TFLOP/s"))
            for type in device.gemv
        ]
        table((f"{name}, weights", "token", "prompt"), types)


def _of(values: Mapping[K, float], key: K, unit: str) -> str:
    value = values.get(key)
    return "" if value is None else f"{value:,.1f} {unit}"


def _show_list(json: bool) -> None:
    from localrun.hardware.machine_file import EXAMPLE
    from localrun.hardware.parts import parts
    from localrun.hardware.profiles import EXAMPLES

    known = [*parts().values()]
    if json:
        rows: Iterable[dict[str, Any]] = ({"slug": part.slug, **asdict(part)} for part in known)
        emit_json({"parts": [*rows], "examples": [*EXAMPLES]})
        return
    table(
        ("name", "kind", "memory", "read", "basis", "16-bit"),
        [
            (
                part.slug,
                part.kind,
                f"{part.memory_gb:g} GiB" if part.memory_gb else "",
                f"{part.bandwidth.value:g} GB/s",
                part.bandwidth.basis,
                f"{part.flops.value:g} TFLOP/s" if part.flops else "",
            )
            for part in known
        ],
    )
    note("machines, such as")
    for example in EXAMPLES:
        note(f"  --machine {example}")
    note("or a file, such as machine.toml:")
    for line in EXAMPLE.splitlines():
        note(f"  {line}")
