"""How a conversion is carried out: whole or not at all, and where it may go."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from localrun.cli import quantize
from localrun.errors import (
    DiskFullError,
    LocalrunError,
    SourceError,
    UsageError,
)
from localrun.formats.read import read_header
from localrun.quantize.checkpoint import Checkpoint
from localrun.quantize.conversion import TYPES, check_target, plan_conversion, write
from localrun.ref import PathRef
from localrun.store import disk, on_disk
from tests.encoders import Encoder, convert, write_checkpoint
from tests.unit.test_quantize_bert import files_of


@pytest.mark.parametrize("planted", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_writes_nothing(tmp_path: Path, planted: float) -> None:
    weights = Encoder().tensors()["encoder.layer.1.intermediate.dense.weight"]
    weights[127, 63] = planted
    name = "encoder.layer.1.intermediate.dense.weight"
    folder = write_checkpoint(tmp_path / "tiny", tensors={name: weights})
    with pytest.raises(SourceError, match=rf"{name}: element {128 * 64 - 1} "):
        convert(folder, tmp_path / "out.gguf", "F16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny"]


class FailingDisk(disk.Disk):
    """Fails the ``at``-th of its calls that write, sync or rename."""

    def __init__(self, at: int, code: int) -> None:
        self.left, self._code = at, code

    def _count(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise OSError(self._code, "made to fail")

    def write(self, descriptor: int, data: memoryview) -> int:
        self._count()
        return super().write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        self._count()
        super().sync(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        self._count()
        super().rename(source, target)


def failure(folder: Path, out: Path) -> LocalrunError | None:
    try:
        convert(folder, out)
    except LocalrunError as error:
        return error
    return None


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_at_any_call_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    folder, out = write_checkpoint(tmp_path / "tiny", Encoder(layers=1)), tmp_path / "out.gguf"
    out.write_bytes(b"what was there")
    for at in range(1, 200):
        failing = FailingDisk(at, code)
        monkeypatch.setattr(disk, "DISK", failing)
        problem = failure(folder, out)
        if problem is None:
            break
        assert isinstance(problem, DiskFullError) == (code == errno.ENOSPC)
        assert out.read_bytes() == b"what was there"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out.gguf", "tiny"]
    monkeypatch.undo()

    assert at > 21  # the header, each tensor, the sync and the rename
    assert read_header([out]).tensors


def test_a_checkpoint_that_changes_meanwhile_is_not_published(tmp_path: Path) -> None:
    folder, out = write_checkpoint(tmp_path / "tiny"), tmp_path / "out.gguf"
    with Checkpoint(files_of(folder)) as checkpoint:
        conversion = plan_conversion(checkpoint, "F32")
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes())
        with pytest.raises(LocalrunError, match="changed while they were read"):
            write(conversion, checkpoint, out)
    assert not out.exists()


def test_what_is_written_is_read_back_before_it_is_seen(tmp_path: Path) -> None:
    folder, out = write_checkpoint(tmp_path / "tiny"), tmp_path / "out.gguf"
    seen: list[bool] = []

    def look(whole: Path) -> None:
        seen.append(out.exists())
        assert read_header([whole]).tensors

    with Checkpoint(files_of(folder)) as checkpoint:
        write(plan_conversion(checkpoint, "F32"), checkpoint, out, before_publishing=look)
    assert (seen, out.exists()) == ([False], True)


TARGETS: dict[str, tuple[Callable[[Path], Path], bool, str]] = {
    "something is there": (lambda place: place / "there.gguf", False, "is there already"),
    "a link to nowhere": (lambda place: place / "link.gguf", False, "is there already"),
    "no folder": (lambda place: place / "none" / "out.gguf", False, "no such directory"),
    "a folder": (lambda place: place / "folder.gguf", True, "is a directory"),
    "another ending": (lambda place: place / "out.bin", False, r"ends in \.gguf"),
}


@pytest.mark.parametrize(("target", "force", "said"), TARGETS.values(), ids=list(TARGETS))
def test_where_a_file_may_not_go_is_said_before_anything_is_read(
    tmp_path: Path, target: Callable[[Path], Path], force: bool, said: str
) -> None:
    folder = write_checkpoint(tmp_path / "tiny")
    (tmp_path / "there.gguf").write_bytes(b"mine")
    (tmp_path / "link.gguf").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder.gguf").mkdir()
    with pytest.raises(UsageError, match=said):
        check_target(target(tmp_path), files_of(folder), force=force)
    check_target(tmp_path / "there.gguf", files_of(folder), force=True)


def test_a_link_at_the_target_is_replaced_not_followed(tmp_path: Path) -> None:
    folder, out = write_checkpoint(tmp_path / "tiny"), tmp_path / "out.gguf"
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    out.symlink_to(victim)
    convert(folder, out)

    assert victim.read_bytes() == b"mine"
    assert not out.is_symlink()


def test_a_gguf_file_is_no_checkpoint(tmp_path: Path) -> None:
    out = convert(write_checkpoint(tmp_path / "tiny"), tmp_path / "out.gguf")
    with pytest.raises(UsageError, match="gguf file"):
        Checkpoint(on_disk.model_files(PathRef(str(out))))


def test_the_command_offers_the_types_that_are_made() -> None:
    offered, _ = get_args(quantize.Type)

    assert get_args(offered) == TYPES
