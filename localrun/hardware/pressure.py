"""Knows no cache and no plan: whether memory has become short while this process runs.

What fires depends on what the kernel can still take away. With swap, and with files mapped, pages
go out and are waited for when they are touched again: time lost by all (PSI) and major faults of
this process. Without either only program code is left to drop, and soon afterwards nothing: then
the room that is left is what can be seen before somebody is killed. Waiting counts only while room
is scarce: programs that start wait for their pages too, and other groups for limits of their own.

PSI: https://docs.kernel.org/accounting/psi.html · major faults: proc_pid_stat(5), field 12. Where
there is no /proc memory is never called short.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from localrun.hardware.cgroup import PROC, SYS, memory_group, natural, read_number, read_text

MIB = 1 << 20
# Counters that are looked at more often say little.
EVERY_S = 1.0
# Shares of the time between two looks in which something, or all, waited for memory.
_SOME_WAITED, _ALL_WAITED = 0.10, 0.04
_FAULTS_PER_S = 50.0
_SCARCE = 0.10
_NOTHING, _NOTHING_LEAST, _NOTHING_MOST = 0.015, 64 * MIB, 512 * MIB


@dataclass(frozen=True, slots=True)
class Room:
    """What can still be had of ``limit``, page cache that is not in steady use included."""

    available: int
    limit: int

    @property
    def scarce(self) -> bool:
        return self.available < self.limit * _SCARCE

    @property
    def nothing(self) -> bool:
        least = min(max(self.limit * _NOTHING, _NOTHING_LEAST), _NOTHING_MOST)
        return self.available < least


@dataclass(frozen=True, slots=True)
class Level:
    """The system, or the control group that limits this process: seconds of its life in which
    something (``some``) or everything (``full``) of it waited for memory, where it is counted."""

    name: str
    room: Room | None
    some: float | None = None
    full: float | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """``faults``: pages that this process has waited for, ever."""

    seconds: float
    faults: int
    levels: tuple[Level, ...]


def judge(before: Sample, now: Sample) -> str | None:
    """Why memory is short, or None where it is not."""
    spent = max(now.seconds - before.seconds, 1e-3)
    faults = (now.faults - before.faults) / spent
    for old, level in zip(before.levels, now.levels, strict=True):
        room = level.room
        if room is not None and room.nothing:
            return f"{level.name} has {room.available // MIB} MiB of memory left"
        if room is not None and not room.scarce:
            continue
        for waited, earlier, most, who in (
            (level.full, old.full, _ALL_WAITED, "everything"),
            (level.some, old.some, _SOME_WAITED, "something"),
        ):
            if waited is not None and earlier is not None and waited - earlier > most * spent:
                share = (waited - earlier) / spent
                return f"{share:.0%} of the time {who} in {level.name} waits for memory"
        if faults > _FAULTS_PER_S:
            return f"{faults:.0f} pages a second have to be read back"
    return None


class Pressure:
    """One process's view. ``sample`` may be called at every step."""

    def __init__(
        self, proc: Path = PROC, sys: Path = SYS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._proc, self._clock = proc, clock
        self._group = memory_group(proc, sys)
        self._before = self._look()
        self._found: str | None = None

    def sample(self) -> str | None:
        """Why memory is short, or None. Looks once a second, and repeats itself in between."""
        now = self._clock()
        if self._before is not None and now - self._before.seconds >= EVERY_S:
            sample = self._look()
            if sample is not None and len(sample.levels) == len(self._before.levels):
                self._found = judge(self._before, sample)
            self._before = sample or self._before
        return self._found

    def _look(self) -> Sample | None:
        seconds = self._clock()
        faults = _faults(read_text(self._proc / "self" / "stat") or "")
        if faults is None:
            return None
        levels = [_system(self._proc)]
        if self._group is not None:
            levels.append(_group(self._group))
        return Sample(seconds, faults, tuple(levels))


def _system(proc: Path) -> Level:
    facts = _table(read_text(proc / "meminfo") or "")
    total, available = facts.get("MemTotal:"), facts.get("MemAvailable:")
    room = None
    if total is not None and available is not None:
        room = Room(available << 10, total << 10)
    return Level("this machine", room, *_waited(read_text(proc / "pressure" / "memory") or ""))


def _group(folder: Path) -> Level:
    facts = _table(read_text(folder / "memory.stat") or "")
    room = None
    for limit_file, used_file, prefix in (
        ("memory.max", "memory.current", ""),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    ):
        limit, used = read_number(folder / limit_file), read_number(folder / used_file)
        if limit is not None and used is not None:
            # Of pages in use the kernel keeps about half before programs feel it, as in
            # MemAvailable.
            cache = (
                facts.get(f"{prefix}inactive_file", 0) + facts.get(f"{prefix}active_file", 0) // 2
            )
            room = Room(max(0, limit - used + cache), limit)
            break
    waited = _waited(read_text(folder / "memory.pressure") or "")
    return Level("this process's control group", room, *waited)


def _waited(text: str) -> tuple[float | None, float | None]:
    """The totals of ``some`` and ``full``, in seconds."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        kind, _, rest = line.partition(" ")
        total = natural(rest.rpartition("total=")[2])
        if total is not None:
            found[kind] = total / 1e6
    return found.get("some"), found.get("full")


def _faults(text: str) -> int | None:
    """Field 12; the name before it is in parentheses and may hold anything."""
    fields = text.rpartition(")")[2].split()
    return natural(fields[9]) if len(fields) > 9 else None


def _table(text: str) -> dict[str, int]:
    found = {}
    for line in text.splitlines():
        name, value, *_ = (*line.split(), "", "")
        if (number := natural(value)) is not None:
            found[name] = number
    return found
