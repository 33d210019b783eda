"""What a reader does when its disk or its files do not do what they should."""

from __future__ import annotations

import errno
import gc
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from localrun.disk import kernel, queued
from localrun.disk.calls import ENDED, READ, Array
from localrun.disk.files import OpenFile
from localrun.disk.kernel import KernelCalls
from localrun.disk.memory import aligned
from localrun.disk.opening import calls_of, open_reader
from localrun.disk.reader import ALIGNMENT, Reader, Requests
from localrun.disk.threads import ThreadCalls
from localrun.errors import DiskReadError

BLOCKS = 600
LARGE = 40
"""Blocks of a read whose file is looked after each time."""
WAYS = {"kernel": KernelCalls, "threads": ThreadCalls}


class Held:
    """Reads that end when the test says so."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.begun: list[tuple[int, int, int]] = []
        """(data, bytes, offset) of what is under way."""
        self._done: list[tuple[int, int, int, int]] = []
        self._woken = self._resting = False
        self.refusals: list[int] = []
        self.broken = self.deaf = False

    def submit(self, reads: Array, first: int, count: int) -> int:
        if self.refusals:
            raise OSError(self.refusals.pop(0), "refused")
        with self._changed:
            self.begun += reads[first : first + count][["data", "bytes", "offset"]].tolist()
        return count

    def ended(self, least: int, seconds: float | None = None) -> Array:
        def enough() -> bool:
            return len(self._done) + self._woken >= least

        with self._changed:
            self._resting = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: enough() or self.broken, seconds)
            if self.broken:
                self.begun.clear()  # as what closes it waits for them
                raise OSError(errno.EINVAL, "no such queue")
            self._resting = self._woken = False
            found = np.array(self._done, ENDED)
            self._done = []
        return found

    def wake(self) -> None:
        if self.deaf:
            raise OSError(errno.ENOMEM, "no memory")
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def close(self) -> None:
        assert not self.begun

    def blocks(self) -> list[int]:
        """Where the reads under way begin, once nothing more is handed over."""
        with self._changed:
            assert self._changed.wait_for(
                lambda: self._resting and not self._woken and not self._done, 20
            )
            return [offset // ALIGNMENT for _, _, offset in self.begun]

    def end(self, count: int, result: int | None = None) -> None:
        with self._changed:
            for data, length, _ in self.begun[:count]:
                self._done.append((data, 0, length if result is None else result, 0))
            del self.begun[:count]
            self._changed.notify_all()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "weights.bin"
    path.write_bytes(np.random.default_rng(0).bytes(BLOCKS * ALIGNMENT))
    return path


@pytest.fixture(params=WAYS)
def reader(request: pytest.FixtureRequest, path: Path) -> Iterator[Reader]:
    if request.param == "kernel" and not kernel.available():
        pytest.skip("this system has no kernel reads")
    reader = open_reader([path], calls=lambda depth, direct: WAYS[request.param](depth))
    yield reader
    reader.close()


@pytest.fixture
def held() -> Held:
    return Held()


@pytest.fixture
def slow(path: Path, held: Held, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    """A reader of four at once whose disk does as it is told."""
    monkeypatch.setattr(queued, "_CLOSE_S", 0.01)
    reader = open_reader([path], depth=4, calls=lambda depth, direct: held, stall_s=0.2)
    yield reader
    reader.close()
    held.end(len(held.begun))


def row(first: int, blocks: int = 1) -> Requests:
    return Requests(
        np.zeros(1, np.int64),
        np.array([first * ALIGNMENT]),
        np.array([blocks * ALIGNMENT]),
        np.zeros(1, np.int64),
    )


def rows(*firsts: int) -> Requests:
    count = len(firsts)
    return Requests(
        np.zeros(count, np.int64),
        np.array(firsts) * ALIGNMENT,
        np.full(count, ALIGNMENT),
        np.arange(count) * ALIGNMENT,
    )


def test_as_many_reads_are_under_way_as_was_said_and_those_needed_go_first(
    slow: Reader, held: Held
) -> None:
    slow.begin(rows(10, 11), aligned(8192), ahead=True)
    assert held.blocks() == [10, 11]
    assert not slow.busy

    slow.begin(rows(20, 21, 22), aligned(3 * 4096), ahead=True)
    assert held.blocks() == [10, 11, 20, 21]
    slow.begin(rows(1, 2, 3, 4, 5), aligned(5 * 4096))
    assert slow.busy
    held.end(2)
    assert held.blocks() == [20, 21, 1, 2]
    held.end(2)
    assert held.blocks() == [1, 2, 3, 4]
    # Not even with room to spare: a disk that is needed is left to those who need it.
    held.end(3)
    assert held.blocks() == [4, 5]
    held.end(2)
    assert held.blocks() == [22]
    assert not slow.busy


def test_of_large_reads_ahead_of_need_few_are_under_way(
    path: Path, held: Held, tmp_path: Path
) -> None:
    large = tmp_path / "large.bin"
    with large.open("wb") as file:
        file.truncate(40 << 20)
    reader = open_reader([large], calls=lambda depth, direct: held)
    whole = row(0, (40 << 20) // ALIGNMENT)

    ahead = reader.begin(whole, aligned(40 << 20), ahead=True)

    assert len(held.blocks()) == 8
    while not ahead.done:
        held.end(len(held.blocks()))
    begun = reader.begin(whole, aligned(40 << 20))
    assert len(held.blocks()) == 40
    held.end(40)
    begun.wait()
    reader.close()


def test_what_was_read_ahead_is_needed_once_somebody_waits(slow: Reader, held: Held) -> None:
    slow.begin(rows(1, 2, 3, 4, 5), aligned(5 * 4096))
    ahead = slow.begin(rows(30), aligned(4096), ahead=True)
    slow.begin(rows(6, 7, 8), aligned(3 * 4096))
    assert held.blocks() == [1, 2, 3, 4]
    waiting = threading.Thread(target=ahead.wait)
    waiting.start()
    while 30 not in held.blocks():
        held.end(1)

    held.end(4)
    waiting.join(20)

    assert not waiting.is_alive()


def test_what_nobody_will_wait_for_is_left_out_and_keeps_no_place(slow: Reader, held: Held) -> None:
    wrong = slow.begin(rows(1, 2, 3, 4, 5, 6), aligned(6 * 4096), ahead=True)
    later = slow.begin(rows(30), aligned(4096), ahead=True)
    assert held.blocks() == [1, 2, 3, 4]

    wrong.leave()

    assert not wrong.done
    held.end(2)
    assert held.blocks() == [3, 4, 30]
    held.end(3)
    later.wait()
    assert wrong.done
    with pytest.raises(DiskReadError, match="offset 20480: nobody waits"):
        wrong.wait()
    later.leave()
    later.wait()


@pytest.mark.parametrize("result", [-errno.EIO, 512, 0])
def test_a_read_that_fails_names_file_and_offset_and_the_others_go_on(
    slow: Reader, held: Held, path: Path, result: int
) -> None:
    failing = slow.begin(rows(7, 8, 9, 10, 11, 12), aligned(6 * 4096))
    other = slow.begin(rows(3), aligned(4096))
    assert held.blocks() == [7, 8, 9, 10]
    held.end(1)
    held.blocks()

    held.end(1, result)

    # What the disk has not been given of what failed is left out.
    assert held.blocks() == [9, 10, 11, 3]
    held.end(4)
    problem = "Input/output" if result < 0 else f"ended after {result} of 4096 bytes"
    with pytest.raises(DiskReadError, match=rf"weights\.bin, offset 32768: .*{problem}") as told:
        failing.wait()
    assert (told.value.file, told.value.offset) == (str(path), 8 * ALIGNMENT)
    other.wait()


def test_a_read_that_the_kernel_does_not_take_fails_or_is_tried_again(
    slow: Reader, held: Held
) -> None:
    held.refusals = [errno.EAGAIN, errno.EAGAIN, errno.EINVAL]
    failing = slow.begin(rows(5, 6), aligned(8192))

    with pytest.raises(DiskReadError, match="offset 20480: Invalid argument"):
        failing.wait()

    begun = slow.begin(rows(5, 6), aligned(8192))
    assert held.blocks() == [5, 6]
    held.end(2)
    begun.wait()


def test_a_queue_that_breaks_down_fails_all_that_waits_for_it(slow: Reader, held: Held) -> None:
    needed = slow.begin(rows(1, 2, 3, 4, 5), aligned(5 * 4096))
    ahead = slow.begin(rows(9), aligned(4096), ahead=True)
    held.blocks()

    held.broken = True
    with held._changed:
        held._changed.notify_all()

    for begun, offset in ((needed, 4096), (ahead, 9 * 4096)):
        with pytest.raises(DiskReadError, match=rf"offset {offset}: reads of this disk have ended"):
            begun.wait()
        assert begun.done
    with pytest.raises(DiskReadError, match="the reader is closed"):
        slow.begin(rows(9), aligned(4096))


def test_what_nobody_can_be_told_of_is_not_begun(slow: Reader, held: Held) -> None:
    assert held.blocks() == []
    held.deaf = True
    with pytest.raises(OSError, match="no memory"):
        slow.begin(rows(1), aligned(4096))
    held.deaf = False

    begun = slow.begin(rows(2), aligned(4096))

    assert held.blocks() == [2]
    held.end(1)
    begun.wait()


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="of Linux")
def test_a_child_gets_no_memory_that_a_disk_may_be_writing_to() -> None:
    into = aligned(3 * 4096)
    flags, inside = "", False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split(" ")[0]
        if "-" in first:
            start, end = (int(each, 16) for each in first.split("-"))
            inside = start <= into.ctypes.data < end
        elif inside and line.startswith("VmFlags:"):
            flags = line
    assert " dc" in flags


def test_a_disk_that_stalls_ends_the_wait_and_keeps_the_memory(slow: Reader, held: Held) -> None:
    into = aligned(8192)
    kept = weakref.ref(into)
    begun = slow.begin(rows(5, 6), into)
    held.blocks()
    del into

    with pytest.raises(DiskReadError, match=r"offset 20480: the disk gave nothing for 0\.2 s"):
        begun.wait()

    assert not begun.done
    gc.collect()
    assert kept() is not None
    held.end(2)
    held.blocks()
    # At once, though parts know of what they belong to and it of them.
    assert kept() is None
    begun.wait()


def test_a_wait_that_is_ended_leaves_the_reads_to_go_on(slow: Reader, held: Held) -> None:
    begun = slow.begin(rows(5), aligned(4096))
    held.blocks()

    def cancelled() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        begun.wait(cancelled)

    assert not begun.done
    held.end(1)
    begun.wait()
    assert begun.done


def test_closing_waits_for_no_disk_that_stalls(slow: Reader, held: Held) -> None:
    stuck = slow.begin(rows(1, 2, 3, 4), aligned(4 * 4096))
    waiting = slow.begin(rows(5), aligned(4096))
    held.blocks()

    slow.close()
    slow.close()

    with pytest.raises(DiskReadError, match="the reader was closed"):
        waiting.wait()
    with pytest.raises(DiskReadError, match=r"offset 36864: the reader is closed"):
        slow.begin(rows(9), aligned(4096))
    assert not stuck.done
    held.end(4)
    stuck.wait()


def test_files_are_closed_with_their_reader(path: Path) -> None:
    reader = open_reader([path])
    descriptor = reader._copies[0][0].descriptor  # type: ignore[attr-defined]
    os.fstat(descriptor)

    reader.close()

    with pytest.raises(OSError, match="descriptor"):
        os.fstat(descriptor)


def cut(path: Path) -> None:
    os.truncate(path, 50 * ALIGNMENT)


def written(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"other")
    os.utime(path, ns=(1, 1))


def replaced(path: Path) -> None:
    other = path.with_suffix(".new")
    other.write_bytes(path.read_bytes())
    os.replace(other, path)


@pytest.mark.parametrize(
    ("change", "problem"),
    [(cut, "cut to 204800 bytes"), (written, "written to"), (replaced, "replaced")],
)
def test_a_file_that_changes_in_use_is_an_error_at_the_next_read(
    reader: Reader, path: Path, change: Callable[[Path], None], problem: str
) -> None:
    reader.begin(row(0, LARGE), aligned(LARGE * ALIGNMENT)).wait()
    change(path)

    for first in (5, 100):
        with pytest.raises(
            DiskReadError, match=rf"weights\.bin, offset {first * ALIGNMENT}: .*{problem}"
        ):
            reader.begin(row(first, LARGE), aligned(LARGE * ALIGNMENT)).wait()


def test_a_file_that_was_deleted_is_still_read(reader: Reader, path: Path) -> None:
    whole, into = path.read_bytes(), aligned(LARGE * ALIGNMENT)
    path.unlink()

    reader.begin(row(0, LARGE), into).wait()

    assert into.tobytes() == whole[: LARGE * ALIGNMENT]


def test_for_small_reads_a_file_is_looked_after_ten_times_a_second(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, looked = [100.0], list[float]()
    reader = open_reader([path], calls=calls_of)
    monkeypatch.setattr(queued.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(OpenFile, "changed", lambda file: looked.append(now[0]))

    for _ in range(20):
        reader.begin(rows(1, 2, 3), aligned(3 * 4096)).wait()
        now[0] += 0.03
    small = len(looked)
    for _ in range(5):
        reader.begin(row(0, LARGE), aligned(LARGE * ALIGNMENT)).wait()
    monkeypatch.undo()
    reader.close()

    assert small == 5
    assert len(looked) == 10


@pytest.mark.parametrize("calls_kind", WAYS)
def test_both_ways_to_read_tell_bytes_errors_and_short_reads(path: Path, calls_kind: str) -> None:
    if calls_kind == "kernel" and not kernel.available():
        pytest.skip("this system has no kernel reads")
    descriptor, into = os.open(path, os.O_RDONLY), aligned(3 * ALIGNMENT)
    reads = np.zeros(3, READ)
    reads["data"], reads["bytes"], reads["descriptor"] = np.arange(3), ALIGNMENT, descriptor
    reads["buffer"] = into.ctypes.data + np.arange(3) * ALIGNMENT
    reads["offset"] = [ALIGNMENT, BLOCKS * ALIGNMENT - 512, BLOCKS * ALIGNMENT]
    with WAYS[calls_kind](4) as calls:
        assert calls.submit(reads, 0, 3) == 3
        results = dict[int, int]()
        while len(results) < 3:
            done = calls.ended(1)
            results.update(zip(done["data"].tolist(), done["result"].tolist(), strict=True))
        assert results == {0: 4096, 1: 512, 2: 0}
        assert not len(calls.ended(0))
        assert not len(calls.ended(1, 0.001))
        calls.wake()
        assert not len(calls.ended(1))
    os.close(descriptor)
    assert into[:ALIGNMENT].tobytes() == path.read_bytes()[ALIGNMENT : 2 * ALIGNMENT]
    reads["descriptor"] = 1 << 20
    with WAYS[calls_kind](4) as calls:
        try:
            calls.submit(reads, 0, 1)
            failed = int(calls.ended(1)["result"][0])
        except OSError as error:
            failed = -(error.errno or 0)
    assert failed == -errno.EBADF
