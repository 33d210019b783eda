"""Jobs, journal and unfinished outputs, without any format."""

from __future__ import annotations

import errno
import os
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from localrun.errors import DiskFullError, LocalrunError, SourceError, UsageError
from localrun.quantize import carry_out as carrying
from localrun.quantize import part as parts
from localrun.quantize.execution import Options, Result, execute
from localrun.quantize.jobs import Work
from localrun.quantize.journal import Begun, Journal
from localrun.quantize.part import journal_of, part_of
from localrun.quantize.types.imatrix import Entry, Imatrix
from localrun.quantize.work import Output
from localrun.store import disk
from tests.slabs import Numbers, Source, expected, output, written

SLAB = 64


def weights(seed: int = 0) -> list[Numbers]:
    rng = np.random.default_rng(seed)
    shapes = [(37, 8), (5, 64), (16, 16), (1, 8)]
    return [
        Numbers(f"w{at}", rng.normal(size=shape).astype(np.float32), place=(0, at))
        for at, shape in enumerate(shapes)
    ]


def run(
    outputs: Output | list[Output],
    out: Path,
    *,
    resume: bool = False,
    force: bool = False,
    source: Source | None = None,
) -> Result:
    several = outputs if isinstance(outputs, list) else [outputs]
    folders = [""] if len(several) == 1 else [str(at) for at in range(len(several))]
    options = Options(2, resume=resume, force=force)
    return execute(
        Work(tuple(several), SLAB), folders, out, source or Source(), options, single=False
    )


def test_every_byte_goes_where_it_belongs(tmp_path: Path) -> None:
    made = weights()
    result = run(output(made), tmp_path / "out")
    assert written(tmp_path / "out") == expected(made)
    assert (tmp_path / "out" / "config.json").read_bytes() == b"{}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert (result.jobs, result.kept) == (len(Work((output(made),), SLAB).jobs), 0)


def test_no_slab_is_larger_than_it_must_be() -> None:
    work = Work((output(weights()),), SLAB)
    for job in work.jobs:
        rows, columns = work.groups[job.group].rows, work.groups[job.group].weight.shape[-1]
        assert job.start % 4 == 0
        assert job.stop - job.start <= max(4, SLAB // columns)
        assert job.stop == rows or (job.stop - job.start) % 4 == 0


def test_weights_are_read_once_for_all_outputs(tmp_path: Path) -> None:
    made = weights()
    run([output(made), output(made, step=2, type="other")], tmp_path / "out")
    for at, step in ((0, 4), (1, 2)):
        assert written(tmp_path / "out" / str(at)) == expected(made, step=step)
    for weight in made:
        assert sorted(weight.reads) == sorted(set(weight.reads))
        assert sum(stop - start for start, stop in weight.reads) == weight.shape[0]


def test_the_error_of_each_weight_is_that_of_its_numbers(tmp_path: Path) -> None:
    made = weights()
    found = run(output(made), tmp_path / "out").errors
    for at, weight in enumerate(made):
        lost = weight.values - weight.values.astype(np.float16).astype(np.float32)
        relative = np.linalg.norm(lost) / np.linalg.norm(weight.values)
        assert found[0, at] == pytest.approx(relative, rel=1e-3)


class Fatal(disk.Disk):
    """Fails one call, the ``fatal``-th of all."""

    def __init__(self, fatal: int = -1, error: int = errno.ENOSPC) -> None:
        self.calls: list[str] = []
        self._fatal, self._error = fatal, error

    def _count(self, call: str) -> None:
        self.calls.append(call)
        if len(self.calls) - 1 == self._fatal:
            raise OSError(self._error, os.strerror(self._error))

    def create(self, path: Path) -> int:
        self._count("create")
        return super().create(path)

    def write(self, descriptor: int, data: memoryview) -> int:
        self._count("write")
        return super().write(descriptor, data)

    def write_at(self, descriptor: int, data: memoryview, offset: int) -> int:
        self._count("write_at")
        return super().write_at(descriptor, data, offset)

    def truncate(self, descriptor: int, size: int) -> None:
        self._count("truncate")
        super().truncate(descriptor, size)

    def sync(self, descriptor: int) -> None:
        self._count("sync")
        super().sync(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        self._count("rename")
        super().rename(source, target)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
def test_a_disk_that_fails_at_any_call_publishes_nothing_and_resuming_ends_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    made = weights()
    counting = Fatal()
    monkeypatch.setattr(disk, "DISK", counting)
    run(output(made), tmp_path / "first")
    assert set(counting.calls) == {"create", "write", "write_at", "truncate", "sync", "rename"}
    for number in range(len(counting.calls)):
        out = tmp_path / str(number)
        monkeypatch.setattr(disk, "DISK", Fatal(number, error))
        with pytest.raises(LocalrunError) as info:
            run(output(made), out)
        assert not out.exists()
        assert isinstance(info.value, DiskFullError) == (error == errno.ENOSPC)
        assert str(tmp_path) in info.value.message
        monkeypatch.setattr(disk, "DISK", disk.Disk())
        run(output(made), out, resume=True)
        assert written(out) == expected(made)
        assert not part_of(out).exists()
        assert not journal_of(out).exists()


def interrupt(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Ctrl-C when so many jobs are done."""
    real, count = carrying._do, iter(range(10**6))

    def counted(*arguments: object) -> object:
        if next(count) >= after:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(carrying, "_do", counted)


def test_a_run_that_was_interrupted_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, out = weights(), tmp_path / "out"
    with monkeypatch.context() as context:
        interrupt(context, 6)
        with pytest.raises(KeyboardInterrupt):
            run(output(made), out)
    assert not out.exists()
    again = weights()
    result = run(output(again), out, resume=True)
    assert result.kept >= 6
    assert sum(len(weight.reads) for weight in again) == result.jobs - result.kept
    assert written(out) == expected(made)


def test_errors_are_those_of_all_jobs_after_a_resumed_run_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(output(weights()), tmp_path / "whole").errors
    with monkeypatch.context() as context:
        interrupt(context, 6)
        with pytest.raises(KeyboardInterrupt):
            run(output(weights()), tmp_path / "out")
    resumed = run(output(weights()), tmp_path / "out", resume=True).errors
    assert resumed == pytest.approx(whole)


@pytest.mark.parametrize("seed", range(8))
def test_whatever_a_crash_left_of_part_and_journal_the_bytes_end_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Pages that never reached the disk, a journal cut in a line, a file that is gone."""
    rng = random.Random(seed)
    made, out = weights(), tmp_path / "out"
    with monkeypatch.context() as context:
        interrupt(context, 8)
        with pytest.raises(KeyboardInterrupt):
            run(output(made), out)
    journal = journal_of(out)
    record = journal.read_bytes()
    for path in sorted(part_of(out).iterdir()):
        data = bytearray(path.read_bytes())
        for _ in range(rng.randrange(3)):
            at = rng.randrange(len(data))
            data[at : at + 50] = bytes(len(data[at : at + 50]))
        path.write_bytes(data[: rng.choice([len(data), len(data) // 2])])
    journal.write_bytes(record[: rng.randrange(len(record))] if seed % 2 else record)
    if seed == 6:
        (part_of(out) / "sums.bin").unlink()
    run(output(made), out, resume=True)
    assert written(out) == expected(made)


def left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    out = tmp_path / "out"
    with monkeypatch.context() as context:
        interrupt(context, 5)
        with pytest.raises(KeyboardInterrupt):
            run(output(weights()), out)
    return out


def test_what_a_run_left_is_neither_taken_nor_overwritten_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = left_behind(tmp_path, monkeypatch)
    before = journal_of(out).read_bytes()
    with pytest.raises(UsageError, match="did not end") as info:
        run(output(weights()), out)
    assert "--resume" in info.value.hint
    assert journal_of(out).read_bytes() == before
    assert run(output(weights()), out, force=True).kept == 0


def test_other_settings_do_not_go_on_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = left_behind(tmp_path, monkeypatch)
    with pytest.raises(UsageError, match="other settings"):
        run(output(weights(), step=2), out, resume=True)
    assert run(output(weights()), out, resume=True).kept == 5


def test_weights_that_changed_since_are_all_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = left_behind(tmp_path, monkeypatch)
    other = weights(seed=1)
    result = run(output(other), out, resume=True, source=Source("other"))
    assert result.kept == 0
    assert "done again" in result.notes[0]
    assert written(out) == expected(other)


def test_weights_that_change_meanwhile_are_never_published(tmp_path: Path) -> None:
    class Changing(Source):
        def require_unchanged(self) -> None:
            raise LocalrunError("changed")

    with pytest.raises(LocalrunError, match="changed"):
        run(output(weights()), tmp_path / "out", source=Changing())
    assert not (tmp_path / "out").exists()
    run(output(weights()), tmp_path / "out", resume=True)


def test_a_number_that_is_not_finite_leaves_nothing(tmp_path: Path) -> None:
    made = weights()
    made[2].values[15, 3] = np.nan
    with pytest.raises(SourceError, match="w2"):
        run(output(made), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    run(output(weights()), tmp_path / "out", resume=True)


def test_a_file_that_reads_back_as_another_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Rotten(disk.Disk):
        def sync(self, descriptor: int) -> None:
            super().sync(descriptor)
            os.pwrite(descriptor, b"rot", os.fstat(descriptor).st_size // 2)

    with monkeypatch.context() as context:
        context.setattr(disk, "DISK", Rotten())
        with pytest.raises(LocalrunError, match="other bytes"):
            run(output(weights()), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    result = run(output(weights()), tmp_path / "out", resume=True)
    assert 0 < result.kept < result.jobs
    assert written(tmp_path / "out") == expected(weights())


def test_two_runs_do_not_write_one_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    seen = []

    def second(paths: object) -> None:
        for again in ({"resume": True}, {"force": True}):
            with pytest.raises(UsageError, match="another process") as info:
                run(output(weights()), out, **again)
            seen.append(info.value)

    execute(
        Work((output(weights()),), SLAB), [""], out, Source(), Options(1), single=False,
        before_publishing=second,
    )  # fmt: skip
    assert len(seen) == 2
    assert written(out) == expected(weights())


def test_a_directory_that_holds_anything_is_never_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("kept")
    with pytest.raises(UsageError, match="not empty"):
        run(output(weights()), out, force=True)
    (out / "mine").unlink()
    run(output(weights()), out)
    assert written(out) == expected(weights())


def test_one_file_takes_its_name_when_it_is_whole(tmp_path: Path) -> None:
    made = weights()
    both = output(made)
    tasks = tuple(replace(task, encoder=First(), places=task.places[:1]) for task in both.tasks)
    single = replace(both, files=both.files[:1], tasks=tasks, beside={})
    out = tmp_path / "model.bin"
    out.write_bytes(b"older")
    work = Work((single,), SLAB)
    with pytest.raises(UsageError, match="there already"):
        execute(work, [""], out, Source(), Options(1), single=True)
    assert out.read_bytes() == b"older"
    execute(work, [""], out, Source(), Options(1, force=True), single=True)
    assert out.read_bytes() == expected(made)[0]
    assert list(tmp_path.iterdir()) == [out]


class First:
    type, step = "first", 1

    def encode(self, slab):  # type: ignore[no-untyped-def]
        return (slab.numbers.astype("<f2").view(np.uint8),)

    def decode(self, parts, slab):  # type: ignore[no-untyped-def]
        return parts[0].view("<f2").astype(np.float32)


def test_another_importance_matrix_of_the_same_name_is_another_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of a file would be made with one and half with the other."""
    out = tmp_path / "out"

    def again(sums: float, *, resume: bool) -> Result:
        entry = Entry(np.full((1, 8), sums, np.float32), np.ones(1, np.int64))
        work = Work((output(weights()),), SLAB, Imatrix({"w0": entry}, file="same.gguf").digest)
        return execute(work, [""], out, Source(), Options(2, resume=resume), single=False)

    with monkeypatch.context() as context:
        interrupt(context, 6)
        with pytest.raises(KeyboardInterrupt):
            again(1.0, resume=False)
    with pytest.raises(UsageError, match="other settings"):
        again(2.0, resume=True)
    assert again(1.0, resume=True).kept >= 6


def test_a_journal_whose_name_was_taken_away_while_it_was_opened_is_anothers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other run ended between the opening and the lock."""
    path, begun = tmp_path / "out.part.journal", Begun("work", "source", "kernels")
    Journal(path, begun).close()

    class Late(disk.Disk):
        def open(self, path: Path, *, append: bool = False) -> int:
            descriptor = super().open(path, append=append)
            path.unlink()
            return descriptor

    monkeypatch.setattr(disk, "DISK", Late())
    with pytest.raises(UsageError, match="another process"):
        Journal(path, begun)
    assert not path.exists()


@pytest.mark.parametrize("kind", ["part", "journal"])
def test_what_no_run_left_is_named_and_never_removed(tmp_path: Path, kind: str) -> None:
    out, mine = tmp_path / "out", tmp_path / "mine"
    mine.mkdir()
    (mine / "kept").write_text("kept")
    place = part_of(out) if kind == "part" else journal_of(out)
    place.symlink_to(mine)
    for flags in ({}, {"resume": True}, {"force": True}):
        with pytest.raises(UsageError, match="no run of this kind") as info:
            run(output(weights()), out, **flags)
        assert str(place) in info.value.message
    assert (mine / "kept").read_text() == "kept"


def test_a_disk_that_is_too_small_from_the_beginning_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, needed: int) -> None:
        raise DiskFullError(str(path), needed)

    with monkeypatch.context() as context:
        context.setattr(parts, "require_space", full)
        with pytest.raises(DiskFullError):
            run(output(weights()), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    run(output(weights()), tmp_path / "out")
