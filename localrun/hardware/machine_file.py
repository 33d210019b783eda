"""Knows no grammar of names: a machine described in a TOML file, such as ``EXAMPLE``.

``gb`` and ``memory_gb`` are GiB, ``capacity_gb`` and every ``_gbps`` 1e9 bytes.
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from localrun.errors import UsageError
from localrun.hardware import assembly, reserves
from localrun.hardware.assembly import Card, Ram, Storage
from localrun.hardware.assumptions import UNKNOWN_LINK
from localrun.hardware.disk_classes import CLASSES, DEPTHS
from localrun.hardware.machine import DiskReads, Machine, Speed
from localrun.hardware.parts import channels, dram, find
from localrun.hardware.profiles import LARGEST_RAM_GB, MOST_CORES, MOST_GPUS

if TYPE_CHECKING:
    from pydantic import TypeAdapter

EXAMPLE = """\
name = "workstation"          # optional, else the file's name

[[gpu]]                       # none, one or several
slug = "rtx-4090"             # or memory_gb and bandwidth_gbps
count = 2                     # optional

[[gpu]]                       # a figure beside a slug replaces the slug's
memory_gb = 48
bandwidth_gbps = 1008
fp16_tflops = 147             # optional
link_gbps = 13                # optional: between host memory and card

[ram]
gb = 128
ddr = "ddr5-6000x2"           # or bandwidth_gbps = 96, what the modules promise

[cpu]
cores = 16                    # may be left out beside a GPU

[disk]                        # optional, else an nvme4
read_gbps = 6.4               # what large random reads sustain
iops = 500000                 # optional: 4 KiB reads a second at queue depth 64 and more
capacity_gb = 2000            # optional

# A Mac has this in place of gpu, ram and cpu:
# [mac]
# slug = "m4-max-40c"
# memory_gb = 128             # optional, else the most it was sold with
"""
_LARGEST_FILE = 1 << 20
_HINT = "`localrun hardware --list` shows a whole file and the slugs"
_MOST = {
    "memory_gb": LARGEST_RAM_GB,
    "gb": LARGEST_RAM_GB,
    "bandwidth_gbps": 1e5,
    "fp16_tflops": 1e6,
    "link_gbps": 1e4,
    "cores": MOST_CORES,
    "count": MOST_GPUS,
    "read_gbps": 1e3,
    "iops": 1e9,
    "capacity_gb": 1e7,
}
# Less is a slip in the unit: bytes or megabytes where gigabytes belong. Speeds of it are no
# numbers any more.
_LEAST = {"bandwidth_gbps": 0.1, "fp16_tflops": 1e-3, "link_gbps": 1e-3, "read_gbps": 1e-3}


@dataclass(frozen=True, slots=True)
class _Gpu:
    slug: str | None = None
    memory_gb: float | None = None
    bandwidth_gbps: float | None = None
    fp16_tflops: float | None = None
    link_gbps: float | None = None
    count: int = 1


@dataclass(frozen=True, slots=True)
class _Ram:
    gb: float
    bandwidth_gbps: float | None = None
    ddr: str | None = None


@dataclass(frozen=True, slots=True)
class _Cpu:
    cores: int


@dataclass(frozen=True, slots=True)
class _Disk:
    read_gbps: float
    iops: int | None = None
    capacity_gb: float | None = None


@dataclass(frozen=True, slots=True)
class _Mac:
    slug: str
    memory_gb: float | None = None


@dataclass(frozen=True, slots=True)
class _File:
    name: str = ""
    gpu: tuple[_Gpu, ...] = ()
    ram: _Ram | None = None
    cpu: _Cpu | None = None
    disk: _Disk | None = None
    mac: _Mac | None = None


def read_machine(path: Path) -> Machine:
    """The machine that ``path`` describes. What the file states has the basis ``specified``.

    Raises:
        UsageError: names the file and the key that is missing, unknown or cannot be meant.
    """
    file = _parse(path)
    name = file.name or path.stem
    disk = _storage(path, file.disk) if file.disk else None
    if file.mac is not None:
        return _mac(path, name, file, disk)
    if file.ram is None:
        raise _refused(path, "ram", "missing")
    ram, lanes = _ram(path, file.ram)
    cards = [
        one for index, gpu in enumerate(file.gpu) for one in _cards(path, f"gpu[{index}]", gpu)
    ]
    if len(cards) > MOST_GPUS:
        raise _refused(path, "gpu", f"{len(cards)} cards; at most {MOST_GPUS}")
    if file.cpu is None and not cards:
        raise _refused(path, "cpu", "missing, and no gpu")
    if file.cpu is not None:
        _check(path, "cpu", cores=file.cpu.cores)
    notes = [] if file.cpu else [f"CPU cores assumed: {assembly.assumed_cores(lanes)}"]
    notes += [] if disk else ["disk assumed: nvme4"]
    cores = file.cpu.cores if file.cpu else assembly.assumed_cores(lanes)
    return assembly.discrete(name, cards, ram, disk or assembly.storage("nvme4"), cores, notes)


def _mac(path: Path, name: str, file: _File, disk: Storage | None) -> Machine:
    assert file.mac is not None
    for key in ("gpu", "ram", "cpu"):
        if getattr(file, key):
            raise _refused(path, key, "a mac has its own: leave it out")
    part = find(file.mac.slug, "mac", where=f"{path}: mac.slug")
    assert part.memory_gb is not None
    size = file.mac.memory_gb if file.mac.memory_gb is not None else part.memory_gb
    _check(path, "mac", memory_gb=size)
    if size > part.memory_gb:
        raise _refused(path, "mac.memory_gb", f"{size:g}; {part.slug} has up to {part.memory_gb:g}")
    notes = () if disk else ("disk speed assumed from the chip",)
    where = disk or assembly.internal_storage(part)
    return assembly.unified(name, part, reserves.gib(size), where, notes)


def _cards(path: Path, key: str, gpu: _Gpu) -> list[Card]:
    _check(
        path,
        key,
        memory_gb=gpu.memory_gb,
        bandwidth_gbps=gpu.bandwidth_gbps,
        fp16_tflops=gpu.fp16_tflops,
        link_gbps=gpu.link_gbps,
        count=gpu.count,
    )
    part = find(gpu.slug, "gpu", where=f"{path}: {key}.slug") if gpu.slug is not None else None
    if part is not None:
        card = assembly.card(part)
    elif gpu.memory_gb is None or gpu.bandwidth_gbps is None:
        missing = "memory_gb" if gpu.memory_gb is None else "bandwidth_gbps"
        raise _refused(path, f"{key}.{missing}", "missing, and no slug")
    else:
        card = Card("gpu", "cuda", 0, _stated(path, 0), link=UNKNOWN_LINK)
    if gpu.memory_gb is not None:
        card = replace(card, memory_bytes=reserves.gib(gpu.memory_gb))
    if gpu.bandwidth_gbps is not None:
        card = replace(card, read=_stated(path, gpu.bandwidth_gbps))
    if gpu.fp16_tflops is not None:
        card = replace(card, flops=_stated(path, gpu.fp16_tflops))
    if gpu.link_gbps is not None:
        card = replace(card, link=_stated(path, gpu.link_gbps))
    return [card] * gpu.count


def _ram(path: Path, ram: _Ram) -> tuple[Ram, int]:
    """The RAM, and its channels as far as they are known."""
    _check(path, "ram", gb=ram.gb, bandwidth_gbps=ram.bandwidth_gbps)
    if (ram.ddr is None) == (ram.bandwidth_gbps is None):
        raise _refused(path, "ram", "needs bandwidth_gbps or ddr, one of the two")
    size = reserves.gib(ram.gb)
    if ram.bandwidth_gbps is not None:
        return Ram("ram", size, _stated(path, ram.bandwidth_gbps)), 2
    part = dram(ram.ddr or "")
    if part is None:
        raise _refused(path, "ram.ddr", f"{ram.ddr!r} is not ddrG-MTxCHANNELS")
    return Ram(part.slug, size, part.bandwidth), channels(part)


def _storage(path: Path, disk: _Disk) -> Storage:
    _check(path, "disk", read_gbps=disk.read_gbps, iops=disk.iops, capacity_gb=disk.capacity_gb)
    usual = CLASSES["nvme4"].reads()
    iops = dict(usual.iops)
    if disk.iops is not None:
        stated = _stated(path, disk.iops)
        iops = {d: stated if d >= 64 else min(usual.iops[d], stated, key=_value) for d in DEPTHS}
    read = _stated(path, disk.read_gbps)
    size = reserves.DISK_BYTES if disk.capacity_gb is None else int(disk.capacity_gb * 1e9)
    reads = DiskReads(iops, dict.fromkeys(usual.large, read))
    return Storage("disk", read, reads, "unknown", size)


def _value(speed: Speed) -> float:
    return speed.value


def _stated(path: Path, value: float) -> Speed:
    return Speed(float(value), "specified", path.name)


def _check(path: Path, section: str, **values: float | None) -> None:
    for key, value in values.items():
        least, most = _LEAST.get(key, 0), _MOST[key]
        if value is not None and not (value > 0 and least <= value <= most):
            bounds = f"from {least:g}" if least else "above 0"
            raise _refused(path, f"{section}.{key}", f"{value:g}, not {bounds} to {most:g}")


def _parse(path: Path) -> _File:
    from pydantic import ValidationError

    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST_FILE + 1)
        if len(text) > _LARGEST_FILE:
            raise UsageError(f"{path}: more than {_LARGEST_FILE} bytes, no machine", hint=_HINT)
        # As JSON, because strict values are read from nothing else; a date becomes a text there.
        document = json.dumps(tomllib.loads(text.decode("utf-8")), default=str)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}", hint=_HINT) from error
    # ValueError: also an integer with more digits than are ever written out.
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not TOML ({error})", hint=_HINT) from error
    try:
        return _adapter().validate_json(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise _refused(path, _key(first["loc"]), _said(first)) from error


@cache
def _adapter() -> TypeAdapter[_File]:
    from pydantic import ConfigDict, TypeAdapter, with_config

    strict = with_config(ConfigDict(extra="forbid", strict=True))
    for value in (_Gpu, _Ram, _Cpu, _Disk, _Mac, _File):
        strict(value)
    return TypeAdapter(_File)


def _key(place: tuple[int | str, ...]) -> str:
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")


def _said(error: object) -> str:
    """The library's kinds of error in this file's words."""
    assert isinstance(error, dict)
    known = {"missing": "missing", "unexpected_keyword_argument": "unknown key"}
    return known.get(error["type"], str(error["msg"]))


def _refused(path: Path, key: str, what: str) -> UsageError:
    return UsageError(f"{path}: {key}: {what}", hint=_HINT)
