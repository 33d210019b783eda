"""Knows no library: what a backend says of itself to `localrun doctor` and to the planner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DeviceKind = Literal["cpu", "gpu", "igpu", "accelerator"]


@dataclass(frozen=True, slots=True)
class Device:
    """A device the installed library was built for and finds on this machine.

    Nothing that only a working device tells: to ask a CUDA card for its memory starts a context on
    it, which takes of that memory for as long as the process lives.
    """

    name: str
    description: str
    kind: DeviceKind


@dataclass(frozen=True, slots=True)
class BackendReport:
    """``openmp`` is None where it is not known; ``problem`` says why an installed library fails.

    ``install`` is the exact command that installs the library for the CPU. ``optional``: this
    system does well without it.
    """

    name: str
    installed: bool
    version: str | None
    devices: tuple[Device, ...]
    openmp: bool | None
    problem: str | None
    install: str
    optional: bool = False

    @property
    def has_gpu(self) -> bool:
        return any(device.kind in ("gpu", "igpu") for device in self.devices)
