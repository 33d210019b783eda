"""Knows no weights: how fast this machine reads and copies memory, by the number of threads.

Reading is the C library's ``memchr`` for a byte that is not there: it looks at every byte in the
widest registers the processor has and does nothing else, so memory is what it waits for, where a
sum waits for its additions. Copying is ``memmove``. Both let go of the interpreter's lock.
"""

from __future__ import annotations

import ctypes
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Final

from localrun.hardware.cgroup import SYS, read_text
from localrun.hardware.machine import Speed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Clock = Callable[[], float]
Step = Callable[[int], object]
"""What the n-th of the threads does again and again."""

_SMALLEST: Final = 256 << 20
_A_THREAD: Final = 32 << 20
_ROUNDS: Final = 8
_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20}


@dataclass(frozen=True, slots=True)
class MemorySpeeds:
    """GB/s by threads. Of a copy, the bytes copied: each is read once and written once."""

    read: Mapping[int, Speed] = field(default_factory=dict)
    copy: Mapping[int, Speed] = field(default_factory=dict)


def measure_memory(
    threads: int, *, available: int, seconds: float = 6.0, clock: Clock = time.perf_counter
) -> MemorySpeeds:
    """Measure with 1 to ``threads`` threads, in about ``seconds``.

    ``available`` bytes may be taken; a quarter of them is at most. Where that is too little to be
    more than the caches hold, nothing is measured.
    """
    import numpy as np

    deadline = clock() + seconds
    size = streamed_bytes(threads, available)
    if size is None:
        return MemorySpeeds()
    source, target = (np.empty(size, np.uint8) for _ in range(2))
    _touch(source, target, threads)
    counts = thread_counts(threads)
    read, copy = dict[int, Speed](), dict[int, Speed]()
    for done, together in enumerate(counts):
        share = size // together
        reading, copying = _reader(source, share), _copier(source, target, share)
        left = 2 * (len(counts) - done)
        read[together] = _speed(
            "memchr", reading, together, share, (deadline - clock()) / left, clock
        )
        copy[together] = _speed(
            "memmove", copying, together, share, (deadline - clock()) / (left - 1), clock
        )
    return MemorySpeeds(read, copy)


def streamed_bytes(threads: int, available: int, sys: Path = SYS) -> int | None:
    """How much to read so that it comes from memory: several times what the caches hold, and
    enough for each thread to be busy for milliseconds; None where there is no room for that."""
    cache = cache_bytes(sys)
    size = min(max(_SMALLEST, 4 * cache, _A_THREAD * threads), available // 8)
    return size if size >= max(2 * cache, _SMALLEST // 8) else None


def cache_bytes(sys: Path = SYS) -> int:
    """All caches of the last level together; 0 where the system does not say."""
    found: dict[str, tuple[int, int]] = {}
    for index in (sys / "devices/system/cpu").glob("cpu[0-9]*/cache/index[0-9]*"):
        level, shared = read_text(index / "level"), read_text(index / "shared_cpu_list")
        size = re.fullmatch(r"(\d+)([KM]?)", (read_text(index / "size") or "").strip())
        if level and level.strip().isdecimal() and shared and size:
            depth = int(level)
            found[f"{depth} {shared.strip()}"] = (depth, int(size[1]) * _UNITS[size[2]])
    last = max((depth for depth, _ in found.values()), default=0)
    return sum(size for depth, size in found.values() if depth == last)


def thread_counts(threads: int) -> tuple[int, ...]:
    """1, 2, 3, 4, 6, 8, 12, 16 … and ``threads`` itself: bandwidth bends early, then hardly."""
    steps = (1, *(scale * (1 << power) for power in range(1, 10) for scale in (1, 1.5)))
    return (*(int(step) for step in steps if step < threads), threads)


def rate(step: Step, threads: int, work: float, seconds: float, clock: Clock) -> float:
    """Work a second that threads do together, each repeating its step for ``seconds``.

    A step that would probably end later is not begun, except the first.
    """
    together = threading.Barrier(threads)
    rates = [0.0] * threads

    def repeat(at: int) -> None:
        together.wait()
        start = before = clock()
        for done in count(1):
            step(at)
            now = clock()
            if now + (now - before) > start + seconds:
                rates[at] = done * work / max(now - start, 1e-9)
                return
            before = now

    _in_threads(repeat, threads)
    return sum(rates)


def _speed(name: str, step: Step, threads: int, share: int, seconds: float, clock: Clock) -> Speed:
    """Of a few rounds one that a quarter of them beat: near what the machine can do while other
    programs take their turns, and no lucky lull."""
    each = seconds / _ROUNDS
    rates = sorted(rate(step, threads, share, each, clock) for _ in range(_ROUNDS))
    return Speed(rates[-1 - _ROUNDS // 4] / 1e9, "measured", name)


def _in_threads(work: Callable[[int], None], threads: int) -> None:
    running = [threading.Thread(target=work, args=(at,)) for at in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()


def _touch(source: NDArray[np.uint8], target: NDArray[np.uint8], threads: int) -> None:
    """Each thread's part is first written by a thread: so it lies in memory near to one."""
    share = source.nbytes // threads

    def write(at: int) -> None:
        for memory in (source, target):
            part = memory[at * share : (at + 1) * share if at + 1 < threads else None]
            ctypes.memset(part.ctypes.data, 1, part.nbytes)

    _in_threads(write, threads)


def _reader(source: NDArray[np.uint8], share: int) -> Step:
    find = ctypes.CDLL("ucrtbase" if sys.platform == "win32" else None)["memchr"]
    find.restype = ctypes.c_void_p
    find.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    begin = source.ctypes.data
    return lambda at: find(begin + at * share, 0, share)


def _copier(source: NDArray[np.uint8], target: NDArray[np.uint8], share: int) -> Step:
    begin, end = source.ctypes.data, target.ctypes.data
    return lambda at: ctypes.memmove(end + at * share, begin + at * share, share)
