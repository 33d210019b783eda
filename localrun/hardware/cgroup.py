"""Knows no CPU and no memory: the kernel's limits on this process's control group.

A limit may stand on any ancestor, so every level up to the mount is asked and the least counts.
v2: https://docs.kernel.org/admin-guide/cgroup-v2.html · v1: …/cgroup-v1/. Roots are parameters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

PROC = Path("/proc")
SYS = Path("/sys")
# v1 writes the largest page-aligned number for "no limit".
_NO_LIMIT = 2**62


@dataclass(frozen=True, slots=True)
class CgroupLimits:
    """``cpus`` may be a fraction; ``memory_used`` leaves out page cache that can be dropped."""

    cpus: float | None = None
    memory: int | None = None
    memory_used: int | None = None


def read_text(path: Path) -> str | None:
    """A small file's text without its line end, or None where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def read_number(path: Path) -> int | None:
    """The file's one number, or None where there is none."""
    return natural(read_text(path) or "")


def natural(text: str) -> int | None:
    """The number a kernel file's word is; None for ``max``, ``-1`` and anything else."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 20 else None


def cgroup_limits(proc: Path = PROC, sys: Path = SYS) -> CgroupLimits:
    """The limits of this process; nothing where the kernel has no control groups."""
    groups = _groups(read_text(proc / "self" / "cgroup") or "")
    mount = sys / "fs" / "cgroup"
    cpus: list[float] = []
    memory: list[tuple[int, int | None]] = []
    for controller, inner in groups:
        for folder in _levels(mount, controller, inner):
            if controller in ("", "cpu") and (quota := _quota(folder)):
                cpus.append(quota)
            if controller in ("", "memory") and (limit := _memory(folder)):
                memory.append(limit)
    least = min(memory, key=lambda pair: pair[0], default=(None, None))
    return CgroupLimits(min(cpus, default=None), *least)


def memory_group(proc: Path = PROC, sys: Path = SYS) -> Path | None:
    """The folder of the control group whose memory limit is the least on this process."""
    found = [
        (limit[0], folder)
        for controller, inner in _groups(read_text(proc / "self" / "cgroup") or "")
        if controller in ("", "memory")
        for folder in _levels(sys / "fs" / "cgroup", controller, inner)
        if (limit := _memory(folder))
    ]
    return min(found, key=lambda pair: pair[0], default=(0, None))[1]


def _groups(text: str) -> list[tuple[str, str]]:
    """(controller, path) of each line that matters; the controller of v2 is empty."""
    found = []
    for line in text.splitlines():
        _, _, rest = line.partition(":")
        controllers, colon, inner = rest.partition(":")
        if colon:
            names = {"cpu", "memory"} & set(controllers.split(","))
            found += [(name, inner) for name in sorted(names)]
            if not controllers:
                found.append(("", inner))
    return found


def _levels(mount: Path, controller: str, inner: str) -> Iterator[Path]:
    """The group's folder and its ancestors, below each place the controller may be mounted."""
    bases = {"": [".", "unified"], "cpu": ["cpu,cpuacct", "cpu"], "memory": ["memory"]}[controller]
    # A process outside the namespace's root is shown with "..", which leads nowhere here.
    parts = [part for part in PurePosixPath(inner).parts if part not in ("/", "..")]
    for base in bases:
        for depth in range(len(parts), -1, -1):
            folder = mount.joinpath(base, *parts[:depth])
            if folder.is_dir():
                yield folder


def _quota(folder: Path) -> float | None:
    text = read_text(folder / "cpu.max")
    if text is not None:
        quota, _, period = text.partition(" ")
    else:
        quota = read_text(folder / "cpu.cfs_quota_us") or ""
        period = read_text(folder / "cpu.cfs_period_us") or ""
    microseconds, per = natural(quota), natural(period)
    return microseconds / per if microseconds and per else None


def _memory(folder: Path) -> tuple[int, int | None] | None:
    for limit_file, used_file, cache_key in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        limit = read_number(folder / limit_file)
        if limit and limit < _NO_LIMIT:
            used = read_number(folder / used_file)
            cache = _stat(read_text(folder / "memory.stat") or "", cache_key)
            return limit, None if used is None else max(0, used - cache)
    return None


def _stat(text: str, key: str) -> int:
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return natural(value) or 0
    return 0
