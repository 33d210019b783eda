"""The one way files are written: whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from localrun.errors import DiskFullError, LocalrunError
from localrun.store import disk
from localrun.store.atomic import AtomicFile
from localrun.store.layout import owner_is_gone, temporary_name


def test_nothing_is_at_the_final_name_before_commit(tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    with AtomicFile(target) as out:
        out.write(b"abc")
        assert not target.exists()
        out.commit()
    assert target.read_bytes() == b"abc"
    assert os.listdir(tmp_path) == ["model.gguf"]


def test_a_file_left_without_commit_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with AtomicFile(tmp_path / "model.gguf") as out:
            out.write(b"abc")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert os.listdir(tmp_path) == []


def test_the_digest_is_that_of_the_bytes_written(tmp_path: Path) -> None:
    data = b"weights" * 1000
    with AtomicFile(tmp_path / "f", expected_bytes=len(data)) as out:
        for start in range(0, len(data), 999):
            out.write(memoryview(data)[start : start + 999])
        assert out.sha256 == hashlib.sha256(data).hexdigest()
        out.commit()
    assert (tmp_path / "f").read_bytes() == data


def test_files_are_private(tmp_path: Path) -> None:
    with AtomicFile(tmp_path / "f") as out:
        out.commit()
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o600


def test_a_disk_that_takes_less_than_offered_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(disk.Disk):
        def write(self, descriptor: int, data: memoryview) -> int:
            return super().write(descriptor, data[:3])

    monkeypatch.setattr(disk, "DISK", Slow())
    with AtomicFile(tmp_path / "f") as out:
        out.write(b"0123456789")
        out.commit()
    assert (tmp_path / "f").read_bytes() == b"0123456789"


def test_a_disk_that_takes_nothing_counts_as_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stuck(disk.Disk):
        def write(self, descriptor: int, data: memoryview) -> int:
            return 0

    monkeypatch.setattr(disk, "DISK", Stuck())
    with (
        AtomicFile(tmp_path / "f", expected_bytes=100) as out,
        pytest.raises(DiskFullError) as info,
    ):
        out.write(b"0123456789")
    assert info.value.needed_bytes == 100


def test_missing_space_is_told_before_the_first_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    disk.require_space(tmp_path / "not" / "yet" / "there", 1000)
    with pytest.raises(DiskFullError, match="24 more bytes"):
        disk.require_space(tmp_path, 1024)


def test_a_directory_that_is_gone_is_named_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(LocalrunError, match="gone"):
        AtomicFile(tmp_path / "gone" / "f")


def test_a_folder_that_a_removal_took_is_made_again_where_that_is_asked_for(tmp_path: Path) -> None:
    with AtomicFile(tmp_path / "model" / "f", parents=True) as out:
        out.write(b"bytes")
        out.commit()
    assert (tmp_path / "model" / "f").read_bytes() == b"bytes"


def test_a_file_that_was_removed_with_its_folder_was_published_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Removing(disk.Disk):
        def rename(self, source: Path, target: Path) -> None:
            super().rename(source, target)
            shutil.rmtree(target.parent)

    monkeypatch.setattr(disk, "DISK", Removing())
    (tmp_path / "model").mkdir()
    with AtomicFile(tmp_path / "model" / "f") as out:
        out.write(b"bytes")
        out.commit()
    assert not (tmp_path / "model").exists()


def test_temporaries_of_live_processes_are_never_called_abandoned() -> None:
    assert not owner_is_gone(temporary_name(".model.gguf"), 10**6)
    assert not owner_is_gone("model.gguf", 10**6)


def test_temporaries_of_another_machine_are_abandoned_after_a_day() -> None:
    name = f".model.gguf.{os.getpid()}-00000000-0123456789abcdef.tmp"
    assert not owner_is_gone(name, 3600)
    assert owner_is_gone(name, 2 * 24 * 3600)


def test_temporaries_of_a_dead_process_are_abandoned() -> None:
    import subprocess
    import sys

    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    name = temporary_name("f").replace(f".{os.getpid()}-", f".{child.pid}-")
    assert owner_is_gone(name, 0)
