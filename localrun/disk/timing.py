"""Knows no queue and no request: reads at random places of one file, many at once, timed.

What is timed is what streaming is made of: the same calls, the same kind of memory.
"""

from __future__ import annotations

import errno
import os
import time

import numpy as np

from localrun.disk.calls import READ
from localrun.disk.memory import aligned
from localrun.disk.opening import calls_of
from localrun.disk.reader import ALIGNMENT

# An eighth at a time: fewer calls, and the queue is never less than seven eighths full.
_TAKEN_BACK = 8
_MADE = 1 << 16


def timed_reads(descriptor: int, block: int, depth: int, seconds: float) -> tuple[int, float]:
    """Keeps ``depth`` reads of ``block`` bytes under way for about ``seconds``; each that ends
    gives its slot to a new place. How many ended, and the seconds.

    Raises:
        OSError: one of them failed, or gave less than a block.
    """
    steps = (os.fstat(descriptor).st_size - block) // ALIGNMENT + 1
    memory = aligned(depth * block)
    # Made before, since making them would count. What is read is thrown away, so it does not
    # matter that two reads may go to the same memory.
    count = depth * max(1, _MADE // depth)
    made = np.zeros(count, READ)
    made["offset"] = np.random.default_rng(block).integers(0, steps, count) * ALIGNMENT
    made["descriptor"], made["bytes"] = descriptor, block
    made["buffer"] = memory.ctypes.data + np.arange(count) % depth * block
    least = max(1, depth // _TAKEN_BACK)
    under_way = ended = first = 0
    calls = calls_of(depth, True)
    try:
        start = now = time.perf_counter()
        while now - start < seconds or not ended:
            if room := depth - under_way:
                taken = calls.submit(made, first, min(room, count - first))
                under_way, first = under_way + taken, (first + taken) % count
            # A list of a few numbers is counted in less time than an array.
            results = calls.ended(min(least, under_way))["result"].tolist()
            now = time.perf_counter()
            ended += len(results)
            under_way -= len(results)
            if results.count(block) != len(results):
                raise _error(min(results))
    finally:
        # Only then may the memory go.
        calls.close()
    return ended, now - start


def _error(result: int) -> OSError:
    code = -result if result < 0 else errno.EIO
    return OSError(code, os.strerror(code))
