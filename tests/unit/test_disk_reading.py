"""Many reads at once: the bytes of the files, whatever was asked for and by whomever."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from localrun.disk import files as files_module
from localrun.disk import kernel, opening, queued
from localrun.disk.calls import Calls
from localrun.disk.kernel import KernelCalls
from localrun.disk.memory import aligned
from localrun.disk.opening import calls_of, open_reader
from localrun.disk.queued import PIECE, even_ends
from localrun.disk.reader import ALIGNMENT, Reader, Requests
from localrun.disk.threads import ThreadCalls
from localrun.errors import DiskReadError, UsageError

MIB = 1 << 20
SIZES = [3 * MIB + 123, 40 * ALIGNMENT, 77]
Way = Callable[[int, bool], Calls]
WAYS: dict[str, Way] = {
    "kernel": lambda depth, direct: KernelCalls(depth),
    "threads": lambda depth, direct: ThreadCalls(depth),
    "forgetting threads": lambda depth, direct: ThreadCalls(depth, forget=True),
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Way:
    if request.param == "kernel" and not kernel.available():
        pytest.skip("this system has no kernel reads")
    return WAYS[request.param]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("disk")
    for index, size in enumerate(SIZES):
        (place / f"{index}.bin").write_bytes(np.random.default_rng(index).bytes(size))
    return place


@contextmanager
def opened(paths: list[Path], way: Way = calls_of, **rest: object) -> Iterator[Reader]:
    reader = open_reader(paths, calls=way, **rest)  # type: ignore[arg-type]
    try:
        yield reader
    finally:
        reader.close()


def names(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def requests(rows: list[tuple[int, int, int]]) -> tuple[Requests, int]:
    """(file, first block, blocks) one behind another in memory, and how much memory they take."""
    table = np.array(rows, np.int64).reshape(-1, 3)
    lengths = table[:, 2] * ALIGNMENT
    places = np.cumsum(lengths) - lengths
    return Requests(table[:, 0], table[:, 1] * ALIGNMENT, lengths, places), int(lengths.sum())


def expected(paths: list[Path], asked: Requests, into: np.ndarray) -> np.ndarray:
    """``into`` as it must be: behind a file's end it stays as it was."""
    whole = [path.read_bytes() for path in paths]
    for file, offset, length, place in zip(
        *(part.tolist() for part in (asked.files, asked.offsets, asked.lengths, asked.places)),
        strict=True,
    ):
        data = np.frombuffer(whole[file][offset : offset + length], np.uint8)
        into[place : place + len(data)] = data
    return into


@st.composite
def some_reads(draw: st.DrawFn) -> list[tuple[int, int, int]]:
    rows = []
    for _ in range(draw(st.integers(0, 40))):
        file = draw(st.integers(0, len(SIZES) - 1))
        blocks = -(-SIZES[file] // ALIGNMENT)
        first = draw(st.integers(0, blocks - 1))
        rows.append((file, first, draw(st.integers(0, blocks - first))))
    return rows


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=some_reads(), depth=st.sampled_from([1, 3, 64]), ahead=st.booleans())
def test_any_set_of_reads_gives_the_bytes_of_the_files(
    way: Way, folder: Path, rows: list[tuple[int, int, int]], depth: int, ahead: bool
) -> None:
    asked, size = requests(rows)
    into = aligned(size)

    with opened(names(folder), way, depth=depth) as reader:
        begun = reader.begin(asked, into, ahead=ahead)
        begun.wait()

        assert begun.done
        assert not reader.busy

    assert (into == expected(names(folder), asked, np.zeros(size, np.uint8))).all()


def test_reads_begun_by_many_threads_do_not_mix(way: Way, folder: Path) -> None:
    paths = names(folder)

    with opened(paths, way, depth=8) as reader:

        def read(seed: int) -> bool:
            places = np.random.default_rng(seed)
            rows = [(0, int(places.integers(0, 700)), int(places.integers(1, 60)))] * 5
            rows += [(1, int(block), 1) for block in places.integers(0, 40, 100)]
            asked, size = requests(rows)
            into = aligned(size)
            reader.begin(asked, into, ahead=seed % 3 == 0).wait()
            return bool((into == expected(paths, asked, np.zeros(size, np.uint8))).all())

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(read, range(40)))


def test_a_large_read_is_made_in_pieces_and_all_its_bytes_are_counted(
    way: Way, folder: Path
) -> None:
    asked, size = requests([(0, 0, 3 * MIB // ALIGNMENT), (1, 0, 1)])
    into = aligned(size)

    with opened(names(folder), way) as reader:
        begun = reader.begin(asked, into)
        begun.wait()

        assert len(begun._parts[0].reads) == 4  # type: ignore[attr-defined]
        assert reader.bytes_read == size
        assert begun.seconds > 0


def test_two_processes_read_one_file(folder: Path) -> None:
    path = folder / "0.bin"
    code = (
        "import sys, hashlib, numpy as np; from pathlib import Path\n"
        "from localrun.disk.opening import open_reader; from localrun.disk.memory import aligned\n"
        "from localrun.disk.reader import Requests\n"
        "path = Path(sys.argv[1]); size = path.stat().st_size; whole = -(-size // 4096) * 4096\n"
        "asked = Requests(*(np.array([value]) for value in (0, 0, whole, 0)))\n"
        "reader = open_reader([path]); into = aligned(whole)\n"
        "for _ in range(20):\n"
        "    into[:] = 0; reader.begin(asked, into).wait()\n"
        "    print(hashlib.sha256(into[:size]).hexdigest())\n"
        "reader.close()\n"
    )
    command = [sys.executable, "-P", "-c", code, str(path)]

    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]

    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert [process.communicate(timeout=60)[0].split() for process in both] == [[digest] * 20] * 2


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ((0, 1, ALIGNMENT, 0), "multiples"),
        ((0, 0, ALIGNMENT + 1, 0), "multiples"),
        ((0, 0, ALIGNMENT, 512), "multiples"),
        ((0, -ALIGNMENT, ALIGNMENT, 0), "multiples"),
        ((0, 0, ALIGNMENT, -ALIGNMENT), "multiples"),
        ((0, 0, ALIGNMENT, 2 * ALIGNMENT), "behind the 8192 bytes"),
        ((3, 0, ALIGNMENT, 0), "none of the 3 files"),
        ((-1, 0, ALIGNMENT, 0), "none of the 3 files"),
    ],
)
def test_reads_to_wrong_places_are_refused(
    folder: Path, row: tuple[int, int, int, int], problem: str
) -> None:
    asked = Requests(*(np.array([value], np.int64) for value in row))

    with opened(names(folder)) as reader, pytest.raises(ValueError, match=problem):
        reader.begin(asked, aligned(2 * ALIGNMENT))


def test_memory_that_reads_cannot_go_to_is_refused(folder: Path) -> None:
    asked, size = requests([(0, 0, 1)])
    sealed = aligned(size)
    sealed.flags.writeable = False

    with opened(names(folder)) as reader:
        for memory in (aligned(3 * size)[1:], aligned(3 * size)[::2], sealed):
            with pytest.raises(ValueError, match=r"multiples|one piece"):
                reader.begin(asked, memory)


def test_a_read_behind_the_end_of_its_file_names_it(folder: Path) -> None:
    asked, size = requests([(0, 0, 1), (1, 39, 2)])

    ends = pytest.raises(DiskReadError, match=r"1\.bin, offset 159744: .* 163840 bytes")
    with opened(names(folder)) as reader, ends as told:
        reader.begin(asked, aligned(size))

    assert (told.value.file, told.value.offset) == (str(folder / "1.bin"), 39 * ALIGNMENT)


@pytest.mark.parametrize("kind", ["pipe", "folder", "nothing"])
def test_what_is_no_file_is_not_opened(tmp_path: Path, folder: Path, kind: str) -> None:
    path = tmp_path / kind
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()

    with pytest.raises(DiskReadError, match=kind):
        open_reader([folder / "0.bin", path])


def test_threads_read_where_the_kernel_has_no_such_calls(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(depth: int) -> KernelCalls:
        raise OSError("no more of them")

    monkeypatch.setattr(opening, "KernelCalls", refused)
    calls = calls_of(1, True)
    assert isinstance(calls, ThreadCalls)
    calls.close()
    monkeypatch.setattr(kernel.platform, "machine", lambda: "riscv64")

    assert not kernel.available()
    with opened([folder / "1.bin"]) as reader:
        asked, size = requests([(0, 0, 40)])
        into = aligned(size)
        reader.begin(asked, into).wait()

    assert into.tobytes() == (folder / "1.bin").read_bytes()


@pytest.mark.parametrize("refuses", ["open", "read"])
def test_a_filesystem_without_direct_reads_is_read_and_forgotten(
    folder: Path, monkeypatch: pytest.MonkeyPatch, refuses: str
) -> None:
    forgotten = list[tuple[int, int]]()
    open_direct, preadv = files_module.open_direct, os.preadv
    direct = set[int]()

    def refusing(path: Path) -> int:
        if refuses == "open":
            raise OSError(22, "no")
        direct.add(descriptor := open_direct(path))
        return descriptor

    def reading(descriptor: int, *rest: object) -> int:
        if descriptor in direct:
            direct.discard(descriptor)
            raise OSError(22, "no")
        return preadv(descriptor, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(files_module, "open_direct", refusing)
    monkeypatch.setattr(files_module.os, "preadv", reading)
    monkeypatch.setattr(
        files_module.os, "posix_fadvise", lambda _, at, size, __: forgotten.append((at, size))
    )
    asked, size = requests([(0, 2, 5)])
    into = aligned(size)

    with opened([folder / "1.bin"]) as reader:
        reader.begin(asked, into).wait()

    assert into.tobytes() == (folder / "1.bin").read_bytes()[2 * ALIGNMENT : 7 * ALIGNMENT]
    assert forgotten == [(2 * ALIGNMENT, 5 * ALIGNMENT)]


@pytest.fixture
def other_disk(folder: Path) -> Iterator[Path]:
    """Copies on another disk than the temporary files': one in memory, where there is one."""
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK) or shared.stat().st_dev == folder.stat().st_dev:
        pytest.skip("only one disk here")
    place = shared / f"localrun-test-{os.getpid()}"
    place.mkdir()
    try:
        for path in names(folder):
            (place / path.name).write_bytes(path.read_bytes())
        yield place
    finally:
        for path in place.iterdir():
            path.unlink()
        place.rmdir()


def test_reads_of_mirrored_files_come_from_both_disks(folder: Path, other_disk: Path) -> None:
    asked, size = requests([(0, 0, 3 * MIB // ALIGNMENT), (1, 0, 40), (2, 0, 1)])
    into = aligned(size)

    with opened(names(folder), mirrors=[other_disk]) as reader:
        reader.begin(asked, into).wait()
        queues = reader._queues.values()  # type: ignore[attr-defined]

        assert [queue.bytes_read > 0 for queue in queues] == [True, True]

    assert (into == expected(names(folder), asked, np.zeros(size, np.uint8))).all()


@pytest.mark.parametrize("fault", ["missing", "size", "bytes", "twice"])
def test_a_mirror_that_is_none_is_refused(tmp_path: Path, folder: Path, fault: str) -> None:
    data = bytearray((folder / "0.bin").read_bytes())
    paths = [folder / "0.bin"]
    if fault == "size":
        data += b"x"
    elif fault == "bytes":
        data = bytearray(np.random.default_rng(9).bytes(len(data)))
    elif fault == "twice":
        (tmp_path / "inner").mkdir()
        (tmp_path / "inner" / "0.bin").write_bytes(data)
        paths.append(tmp_path / "inner" / "0.bin")
    if fault != "missing":
        (tmp_path / "0.bin").write_bytes(data)

    with pytest.raises(UsageError, match=str(tmp_path)):
        open_reader(paths, mirrors=[tmp_path])


@given(
    total=st.integers(1, 10**9),
    disks=st.lists(st.tuples(st.integers(0, 10**9), st.floats(1e6, 1e10)), min_size=1, max_size=5),
)
def test_all_disks_that_get_a_share_end_together_and_none_later_than_the_others_were(
    total: int, disks: list[tuple[int, float]]
) -> None:
    backlogs, rates = [backlog for backlog, _ in disks], [rate for _, rate in disks]

    shares = even_ends(total, backlogs, rates)

    assert sum(shares) == pytest.approx(total, rel=1e-6, abs=1)
    ends = [
        (backlog + share) / rate
        for backlog, share, rate in zip(backlogs, shares, rates, strict=True)
    ]
    last = max(end for end, share in zip(ends, shares, strict=True) if share > 0)
    for end, share in zip(ends, shares, strict=True):
        assert end >= last * (1 - 1e-6) or share > 0
        assert share == 0 or end == pytest.approx(last, rel=1e-6)


def test_pieces_are_what_direct_reads_ask_for() -> None:
    assert PIECE % ALIGNMENT == 0
    assert queued._SMALL < PIECE


def test_memory_begins_on_a_page_and_is_zero() -> None:
    for size in (1, ALIGNMENT, 5 * MIB + 3):
        memory = aligned(size)
        assert memory.ctypes.data % ALIGNMENT == 0
        assert (memory.shape, memory.dtype, int(memory.sum())) == ((size,), np.uint8, 0)
        memory[:] = 1
    assert aligned(0).shape == (0,)
