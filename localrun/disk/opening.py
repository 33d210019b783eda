"""Knows no model: files opened for many direct reads at once, in the best way this system has."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from localrun.disk import kernel
from localrun.disk.calls import Calls
from localrun.disk.files import OpenFile, mirrored, open_file
from localrun.disk.kernel import KernelCalls
from localrun.disk.queue import DiskQueue
from localrun.disk.queued import QueuedReader
from localrun.disk.reader import STALL_S, Reader
from localrun.disk.threads import ThreadCalls

DEPTH = 64
_SWITCH_S = 0.0005


def calls_of(depth: int, direct: bool) -> Calls:
    """What carries out reads here. The kernel makes reads through the page cache (not ``direct``)
    one by one, so those are threads'."""
    if direct and kernel.available():
        try:
            return KernelCalls(depth)
        except OSError:
            pass  # other programs hold all that the system gives
    return ThreadCalls(depth, forget=not direct)


def open_reader(
    paths: Sequence[Path],
    *,
    depth: int = DEPTH,
    mirrors: Sequence[Path] = (),
    calls: Callable[[int, bool], Calls] = calls_of,
    stall_s: float = STALL_S,
) -> Reader:
    """Files by their place in ``paths``, with up to ``depth`` reads under way on each of their
    disks. ``mirrors`` are directories with copies of all of them by the same names; reads are
    spread over the copies. ``calls`` is the seam for faults: it makes what reads a disk.

    Raises:
        DiskReadError: a file cannot be opened.
        UsageError: a mirror lacks a file, or has another of its name.
    """
    # A thread that computes gives the interpreter's lock away at every product, and may wait this
    # long to get it back from one that reads: by default as long as a layer takes.
    sys.setswitchinterval(min(sys.getswitchinterval(), _SWITCH_S))
    copies: list[list[OpenFile]] = [[]]
    try:
        for path in paths:
            copies[0].append(open_file(Path(path)))
        for folder in mirrors:
            copies.append(mirrored(copies[0], Path(folder)))
    except BaseException:
        for file in _all(copies):
            file.close()
        raise
    return QueuedReader(copies, _queues(_all(copies), depth, calls), stall_s=stall_s)


def _queues(
    files: Sequence[OpenFile], depth: int, calls: Callable[[int, bool], Calls]
) -> dict[int, DiskQueue]:
    queues = {}
    for device in dict.fromkeys(file.device for file in files):
        mine = [file for file in files if file.device == device]

        def closed(mine: Sequence[OpenFile] = tuple(mine)) -> None:
            for file in mine:
                file.close()

        direct = all(file.direct for file in mine)
        queues[device] = DiskQueue(calls(depth, direct), depth, closed)
    return queues


def _all(copies: Sequence[Sequence[OpenFile]]) -> list[OpenFile]:
    return [file for files in copies for file in files]
