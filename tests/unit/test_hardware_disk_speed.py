"""Measuring a disk: what is read, which file, and that nothing is left behind."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from localrun.disk import kernel, timing
from localrun.disk.calls import Array, Calls
from localrun.disk.opening import calls_of
from localrun.errors import DiskFullError, LocalrunError
from localrun.hardware import measure_disk as room
from localrun.hardware.direct_reads import Timed, direct_reads
from localrun.hardware.measure_disk import LARGE_BLOCK, measure_disk, points

MIB = 1 << 20
AT_ONCE = [1, 2, 4, 1, 16, 64, 256]


@pytest.fixture(params=["kernel", "threads"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to read; the threads' also where the kernel's is there."""
    if request.param == "threads":
        monkeypatch.setattr(kernel, "available", lambda: False)
    elif not kernel.available():
        pytest.skip("this system has no kernel reads")
    return str(request.param)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """32 MiB that reads around the cache can be made of."""
    path = tmp_path / "file"
    path.write_bytes(os.urandom(MIB) * 32)
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        pytest.skip("the filesystem of temporary files has no direct reads")
    return path


class Recorder:
    """Reads that only say what was asked, at 100 reads a second."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int, float]] = []

    def __call__(self, block: int, depth: int, seconds: float) -> Timed:
        self.asked.append((block, depth, seconds))
        return Timed(count=depth * 100, seconds=1.0)


def test_large_reads_are_timed_at_three_depths_and_small_ones_at_four() -> None:
    reads, said = Recorder(), list[str]()

    found = points(reads, 2.5, said.append)

    assert [depth for _, depth, _ in reads.asked] == AT_ONCE
    assert [block for block, _, _ in reads.asked] == [LARGE_BLOCK] * 3 + [4096] * 4
    assert {seconds for _, _, seconds in reads.asked} == {2.5}
    assert found.iops == {1: 100, 16: 1600, 64: 6400, 256: 25600}
    assert found.large[2] == pytest.approx(200 * LARGE_BLOCK / 1e9)
    assert len(said) == 7


def test_all_points_and_the_writing_end_within_the_time_that_is_promised() -> None:
    assert 7 * room.POINT_SECONDS + room._WRITE_SECONDS <= 21


@pytest.mark.parametrize(("block", "depth"), [(4096, 1), (4096, 64), (8 * MIB, 1), (8 * MIB, 4)])
def test_a_file_is_read_at_random_both_ways(file: Path, way: str, block: int, depth: int) -> None:
    with direct_reads(file, "ext4") as reads:
        timed = reads(block, depth, 0.02)

    assert timed.count > 0
    assert timed.rate > 0


def test_one_read_is_made_however_short_the_time(file: Path, way: str) -> None:
    with direct_reads(file, "ext4") as reads:
        assert reads(4096, 1, 0.0).count >= 1


def test_reads_stay_aligned_and_within_the_file(
    tmp_path: Path, file: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    short, asked = tmp_path / "short", list[int]()
    short.write_bytes(bytes(10 * 4096 + 100))

    def watched(depth: int, direct: bool) -> Calls:
        calls = calls_of(depth, direct)
        submit = calls.submit

        def submitting(reads: Array, first: int, count: int) -> int:
            asked.extend(reads["offset"][first : first + count].tolist())
            return submit(reads, first, count)

        calls.submit = submitting  # type: ignore[method-assign]
        return calls

    monkeypatch.setattr(timing, "calls_of", watched)
    with direct_reads(short, "ext4") as reads:
        for _ in range(20):
            reads(4 * 4096, 64, 0.0)

    assert set(asked) == {step * 4096 for step in range(7)}


def test_a_read_that_ends_early_is_an_error(
    file: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = file.stat()
    with direct_reads(file, "ext4") as reads:
        monkeypatch.setattr(os, "fstat", lambda descriptor: whole)
        os.truncate(file, 0)

        with pytest.raises(LocalrunError, match="Input/output"):
            reads(4096, 8, 0.01)


def test_a_scratch_file_is_measured_and_gone(tmp_path: Path, file: Path, way: str) -> None:
    place, seen = tmp_path / "models", list[list[str]]()
    place.mkdir()

    found = measure_disk(
        place,
        "ext4",
        point_seconds=0.01,
        scratch_bytes=16 * MIB,
        say=lambda line: seen.append(os.listdir(place)),
    )

    assert all(value > 0 for value in (*found.iops.values(), *found.large.values()))
    assert list(found.iops) == [1, 16, 64, 256]
    # It has no name even while it is read, so nothing can leave it behind.
    assert seen == [[]] * 8


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_measuring_leaves_no_file(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    place = tmp_path / "models"
    place.mkdir()

    def fails(descriptor: int) -> None:
        raise error("now")

    monkeypatch.setattr(room.os, "fsync", fails)
    with pytest.raises((KeyboardInterrupt, LocalrunError)):
        measure_disk(place, "ext4", scratch_bytes=16 * MIB)

    assert os.listdir(place) == []


def test_a_large_model_file_is_read_and_no_other_is_written(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "SMALLEST_FILE", 8 * MIB)
    monkeypatch.setattr(room.tempfile, "mkstemp", None)
    sparse, small = tmp_path / "sparse", tmp_path / "small"
    with sparse.open("wb") as hollow:
        hollow.truncate(64 * MIB)
    small.write_bytes(b"x")
    opened = list[Path]()

    def watched(path: Path, filesystem: str) -> object:
        opened.append(path)
        return direct_reads(path, filesystem)

    monkeypatch.setattr(room, "direct_reads", watched)
    candidates = [tmp_path / "none", sparse, small, file]

    found = measure_disk(tmp_path, "ext4", files=candidates, point_seconds=0.01)

    assert opened == [file]
    assert found.large[1] > 0


def test_a_filesystem_in_memory_is_refused(tmp_path: Path, file: Path) -> None:
    with pytest.raises(LocalrunError, match="tmpfs lies in memory") as refused:
        measure_disk(tmp_path, "tmpfs", scratch_bytes=MIB)

    assert refused.value.hint
    assert os.listdir(tmp_path) == [file.name]


def test_a_filesystem_without_direct_reads_is_refused(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "O_DIRECT", 0)

    with pytest.raises(LocalrunError, match="no direct reads"):
        measure_disk(tmp_path, "ext4", scratch_bytes=MIB)

    assert os.listdir(tmp_path) == [file.name]


def test_a_disk_that_is_nearly_full_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=room.GIB + MIB))

    with pytest.raises(DiskFullError, match=str(tmp_path)):
        measure_disk(tmp_path, "ext4")

    assert os.listdir(tmp_path) == []


def test_a_place_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(LocalrunError, match="none"):
        measure_disk(tmp_path / "none", "ext4")
