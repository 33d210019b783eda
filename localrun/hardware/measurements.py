"""Knows no measuring: what was measured on which machine, and the file that remembers it.

One JSON document holds the machines that share a home directory. A document that cannot be read is
worth less than a new measurement: it is left out with a note and replaced by the next ``save``.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from localrun.hardware.machine import Compute, DiskReads, HostFigures, Machine, Speed

if TYPE_CHECKING:
    from pydantic import TypeAdapter

VERSION = 1
FILE_NAME = "measurements.json"
_LARGEST_FILE = 4 << 20
_MOST_MACHINES = 64


@dataclass(frozen=True, slots=True)
class Key:
    """What figures hold for. ``memory_gib`` is rounded: kernels keep a little less or more."""

    cpu: str
    cores: int
    memory_gib: int
    gpus: tuple[str, ...]
    driver: str
    library: str


@dataclass(frozen=True, slots=True)
class MeasuredDisk:
    """``iops``: 4 KiB reads a second, ``large``: GB/s of large reads, both by queue depth."""

    iops: Mapping[int, float]
    large: Mapping[int, float]

    def __post_init__(self) -> None:
        _all_positive(self.iops, self.large)


@dataclass(frozen=True, slots=True)
class MeasuredDevice:
    """The values of ``DeviceFigures``."""

    gemv: Mapping[str, float]
    prefill: Mapping[str, float] = field(default_factory=dict)
    link: float | None = None

    def __post_init__(self) -> None:
        _all_positive(self.gemv, self.prefill, {} if self.link is None else {"link": self.link})


@dataclass(frozen=True, slots=True)
class MeasuredHost:
    """The values of ``HostFigures``."""

    gemv: Mapping[str, float] = field(default_factory=dict)
    launches: Mapping[str, float] = field(default_factory=dict)
    misses: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _all_positive(self.gemv, self.launches, self.misses)


@dataclass(frozen=True, slots=True)
class DeviceFigures:
    """What a GPU's own products get through. ``gemv``: GB/s of weights that one token's products
    read, ``prefill``: TFLOP/s of a micro-batch's, both by tensor type; ``link``: GB/s of copies
    from host memory."""

    gemv: Mapping[str, Speed]
    prefill: Mapping[str, Speed] = field(default_factory=dict)
    link: Speed | None = None

    @property
    def read(self) -> Speed | None:
        """Of the types, the middle one's."""
        speeds = sorted(self.gemv.values(), key=_value)
        return speeds[len(speeds) // 2] if speeds else None

    @property
    def flops(self) -> Speed | None:
        """The slowest type's: a prompt gets that much whatever its weights are."""
        return min(self.prefill.values(), key=_value, default=None)

    def measured(self) -> MeasuredDevice:
        """To be remembered."""
        return MeasuredDevice(
            {name: speed.value for name, speed in self.gemv.items()},
            {name: speed.value for name, speed in self.prefill.items()},
            self.link.value if self.link else None,
        )


@dataclass(frozen=True, slots=True)
class Measurements:
    """``ram_read`` and ``ram_copy``: GB/s by threads. The three by tensor type are those of
    ``Compute``. ``disks`` are by device and filesystem, ``devices`` GPUs by the name that their
    driver gives them, ``hosts`` what single backends do on the CPU. ``date`` is a day, ISO 8601."""

    date: str
    ram_read: Mapping[int, float] = field(default_factory=dict)
    ram_copy: Mapping[int, float] = field(default_factory=dict)
    gemv: Mapping[str, float] = field(default_factory=dict)
    core_gemv: Mapping[str, float] = field(default_factory=dict)
    prefill: Mapping[str, float] = field(default_factory=dict)
    disks: Mapping[str, MeasuredDisk] = field(default_factory=dict)
    devices: Mapping[str, MeasuredDevice] = field(default_factory=dict)
    hosts: Mapping[str, MeasuredHost] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _all_positive(self.ram_read, self.ram_copy, self.gemv, self.core_gemv, self.prefill)

    def ram(self) -> Speed | None:
        """The best of all thread counts."""
        return self._speed(max(self.ram_read.values())) if self.ram_read else None

    def compute(self, cores: int) -> Compute:
        return Compute(
            cores,
            gemv={name: self._speed(value) for name, value in self.gemv.items()},
            core_gemv={name: self._speed(value) for name, value in self.core_gemv.items()},
            prefill={name: self._speed(value) for name, value in self.prefill.items()},
            hosts={
                backend: HostFigures(
                    {name: self._speed(value) for name, value in found.gemv.items()},
                    {name: self._speed(value) for name, value in found.launches.items()},
                    {size: self._speed(value) for size, value in found.misses.items()},
                )
                for backend, found in self.hosts.items()
            },
        )

    def disk_reads(self, device: str) -> DiskReads | None:
        """The figures of one disk, by ``disk_key``."""
        found = self.disks.get(device)
        if found is None:
            return None
        return DiskReads(
            {depth: self._speed(value) for depth, value in found.iops.items()},
            {depth: self._speed(value) for depth, value in found.large.items()},
        )

    def device(self, name: str) -> DeviceFigures | None:
        """The figures of a GPU, by its driver's name."""
        found = self.devices.get(name)
        if found is None:
            return None
        return DeviceFigures(
            {name: self._speed(value) for name, value in found.gemv.items()},
            {name: self._speed(value) for name, value in found.prefill.items()},
            None if found.link is None else self._speed(found.link),
        )

    def _speed(self, value: float) -> Speed:
        return Speed(value, "measured", f"`localrun hardware --calibrate` on {self.date}")


@dataclass(frozen=True, slots=True)
class Loaded:
    """``note`` says why a file that is there was not used."""

    found: Measurements | None
    note: str = ""


@dataclass(frozen=True, slots=True)
class _Entry:
    key: Key
    measurements: Measurements


@dataclass(frozen=True, slots=True)
class _Document:
    version: int
    machines: tuple[_Entry, ...]


def key_of(machine: Machine, library: str) -> Key:
    """``library`` is the build whose kernels are measured (``kernel_build``)."""
    return Key(
        cpu=machine.cpu.name,
        cores=machine.cpu.usable,
        memory_gib=round(machine.memory.total / 2**30),
        gpus=tuple(gpu.name for gpu in machine.gpus),
        driver=next((gpu.driver for gpu in machine.gpus), ""),
        library=library,
    )


def load(path: Path, key: Key) -> Loaded:
    """What was measured under ``key``. Never raises for what the file holds."""
    document, note = _read(path)
    found = next((entry.measurements for entry in document.machines if entry.key == key), None)
    return Loaded(found, note)


def save(path: Path, key: Key, measurements: Measurements) -> None:
    """Remember ``measurements``; of other keys what is there stays.

    Raises:
        OSError: the file cannot be written; what was there is untouched.
    """
    document, _ = _read(path)
    others = [entry for entry in document.machines if entry.key != key]
    entries = (*others, _Entry(key, measurements))[-_MOST_MACHINES:]
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(asdict(_Document(VERSION, entries)), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _read(path: Path) -> tuple[_Document, str]:
    nothing = _Document(VERSION, ())
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST_FILE + 1)
    except FileNotFoundError:
        return nothing, ""
    except OSError as error:
        return nothing, _note(path, error.strerror or str(error))
    if len(text) > _LARGEST_FILE:
        return nothing, _note(path, f"more than {_LARGEST_FILE} bytes")
    from pydantic import ValidationError

    try:
        document = _adapter().validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field_name = ".".join(str(part) for part in first["loc"])
        return nothing, _note(path, f"{field_name}: {first['msg']}".removeprefix(": "))
    if document.version != VERSION:
        return nothing, _note(path, f"version {document.version}, this program reads {VERSION}")
    return document, ""


def _note(path: Path, reason: str) -> str:
    return f"{path}: stored measurements are left out ({reason}); --calibrate writes them anew"


@cache
def _adapter() -> TypeAdapter[_Document]:
    from pydantic import ConfigDict, TypeAdapter, with_config

    strict = with_config(ConfigDict(extra="forbid", strict=True))
    for value in (Key, MeasuredDisk, MeasuredDevice, MeasuredHost, Measurements, _Entry, _Document):
        strict(value)
    return TypeAdapter(_Document)


def _value(speed: Speed) -> float:
    return speed.value


def _all_positive(*tables: Mapping[int, float] | Mapping[str, float]) -> None:
    for table in tables:
        for name, value in table.items():
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} is {value}, not a speed")
