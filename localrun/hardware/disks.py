"""Knows no model: the disk under a directory, and whether it spins."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from localrun.hardware.cgroup import SYS, read_text
from localrun.hardware.machine import Disk

# Their kernel drivers answer "rotational" without asking the host.
_VIRTUAL = ("vd", "xvd", "loop", "ram", "zram", "nbd", "rbd")


class Mount(Protocol):
    """What ``psutil.disk_partitions`` says of a mounted filesystem."""

    @property
    def device(self) -> str: ...

    @property
    def mountpoint(self) -> str: ...

    @property
    def fstype(self) -> str: ...


def disk(place: Path, sys: Path = SYS, mounts: Iterable[Mount] | None = None) -> Disk:
    """The disk that ``place`` is on, or will be: its nearest existing parent is asked."""
    if mounts is None:
        import psutil

        mounts = psutil.disk_partitions(all=True)
    existing = place.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    existing = existing.resolve()
    around = [mount for mount in mounts if existing.is_relative_to(mount.mountpoint)]
    # Of two mounts on one point the later one is seen.
    mount = max(enumerate(around), key=lambda m: (len(m[1].mountpoint), m[0]), default=None)
    device, filesystem = (mount[1].device, mount[1].fstype) if mount else ("", "")
    usage = shutil.disk_usage(existing)
    return Disk(
        path=str(place),
        device=device,
        filesystem=filesystem,
        total=usage.total,
        free=usage.free,
        kind=disk_kind(device, sys),
    )


def disk_kind(device: str, sys: Path = SYS) -> str:
    """``nvme``, ``ssd``, ``hdd`` or, where the kernel does not say, ``unknown``."""
    if not device.startswith("/dev/"):
        return "unknown"
    name = Path(os.path.realpath(device)).name
    return _kind(sys / "class" / "block" / name, depth=4)


def _kind(block: Path, depth: int) -> str:
    """A partition is of its disk's kind, a mapped device of its slaves' where they agree."""
    name = block.name
    if name.startswith(_VIRTUAL) or not block.exists() or depth == 0:
        return "unknown"
    slaves = block / "slaves"
    below = sorted(slaves.iterdir()) if slaves.is_dir() else []
    if below:
        kinds = {_kind(slave.resolve(), depth - 1) for slave in below}
        return kinds.pop() if len(kinds) == 1 else "unknown"
    whole = block.resolve()
    if not (whole / "queue").is_dir():
        whole = whole.parent
    if whole.name.startswith("nvme"):
        return "nvme"
    rotational = read_text(whole / "queue" / "rotational")
    return {"0": "ssd", "1": "hdd"}.get(rotational or "", "unknown")
