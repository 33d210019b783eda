"""A disk that fails, ends early, stalls or is changed under a model whose experts stream from it.

The request ends with an error that names the tensor and the place in its file, or goes on with the
right tokens; whatever comes next finds nothing of it.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from localrun.engine.engine import Engine
from localrun.engine.request import GenerationRequest, SamplingParams
from localrun.engine.runner import BatchItem, ForwardAborted, ModelRunner
from localrun.errors import DiskReadError
from tests import deepseek, streams
from tests.engines import outcome
from tests.streams import Disk, Rows, rows, shards, streaming

pytest.importorskip("torch", reason="torch is not installed")
TOKENS = [1, *(7 * at * at % 983 + 8 for at in range(39))]
EXPERT = re.compile(r"layers\.\d+\.ffn\.experts\.\d+\b")
WAIT_S = 60
Load = Callable[..., ModelRunner]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return deepseek.write(tmp_path_factory.mktemp("faults") / "flash", streams.config())


@pytest.fixture
def disk(model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    with streams.disk(monkeypatch) as made:
        made.files = shards(model, ".experts.")
        yield made


@pytest.fixture
def load(home: Path, disk: Disk) -> Iterator[Load]:
    """A runner, closed at the end."""
    from localrun.backends.torch.backend import load as load_plan

    held: list[ModelRunner] = []

    def loaded(folder: Path, slots: int = streams.SLOTS) -> ModelRunner:
        held.append(load_plan(streaming(folder, slots)))
        return held[-1]

    yield loaded
    disk.free()
    for runner in held:
        runner.close()


@pytest.fixture(scope="module")
def wanted(model: Path) -> Rows:
    """What the model computes with all of it in memory."""
    from localrun.backends.torch.backend import load as load_plan

    runner = load_plan(streaming(model, 0, streams=False, staging_bytes=0, engram="ram"))
    try:
        return rows(runner, TOKENS, 20, 1, 1)
    finally:
        runner.close()


def first(fate: str, after: int) -> streams.Fate:
    """The reads behind the first ``after`` of them."""
    count = iter(range(10**9))
    return lambda offset, length: "read" if next(count) < after else fate


@pytest.mark.parametrize(("part", "after"), [(".experts.", 7), (".engram.embed.", 0)])
@pytest.mark.parametrize(
    ("fate", "told"),
    [("error", "Input/output error"), ("short", "ended after"), ("stall", "gave nothing for")],
)
def test_a_step_that_cannot_read_what_it_needs_names_it_and_the_next_one_is_right(
    part: str, fate: str, told: str, after: int, model: Path, load: Load, disk: Disk, wanted: Rows
) -> None:
    runner = load(model)
    sequence = runner.new_sequence()
    disk.files = shards(model, part)
    disk.fate = first(fate, after)
    with pytest.raises(DiskReadError) as raised:
        runner.forward([BatchItem(sequence, TOKENS[:20], "all")])
    disk.free()

    error = raised.value
    assert part in error.tensor
    assert "{" not in error.tensor
    assert Path(error.file) in disk.files
    assert told in error.problem
    assert error.offset in disk.offsets
    assert error.tensor in error.message
    assert f"offset {error.offset}" in error.message
    # The sequence is as long as it was, and the same tokens can be given again.
    again = runner.forward([BatchItem(sequence, TOKENS[:20], "all")]).numpy()
    assert np.array_equal(again, wanted[:20])
    assert np.array_equal(rows(runner, TOKENS, 20, 1, 1), wanted)


def test_a_single_failed_read_may_be_tried_again_but_gives_no_other_logits(
    model: Path, load: Load, disk: Disk, wanted: Rows
) -> None:
    """Each read of a step fails once, one after the other."""
    runner, failed = load(model, 4), 0
    for at in range(0, 60, 9):
        count = iter(range(10**9))
        disk.fate = lambda offset, length, at=at, count=count: (  # type: ignore[misc]
            "error" if next(count) == at else "read"
        )
        try:
            assert np.array_equal(rows(runner, TOKENS, 20, 1, 1), wanted)
        except DiskReadError:
            failed += 1
    disk.free()

    assert failed
    assert np.array_equal(rows(runner, TOKENS, 20, 1, 1), wanted)


@pytest.mark.parametrize("fate", ["error", "stall"])
def test_a_request_that_meets_a_broken_disk_ends_and_the_next_one_is_answered(
    fate: str, model: Path, load: Load, disk: Disk
) -> None:
    engine = Engine(load(model))
    try:
        text, last = outcome(engine.submit(question("before")))
        assert last.error is None
        assert text
        disk.fate = first(fate, 3)
        _, broken = outcome(engine.submit(question("broken", at=5)))
        disk.free()
        again, ended = outcome(engine.submit(question("after")))
    finally:
        disk.free()
        engine.close()

    assert isinstance(broken.error, DiskReadError)
    assert broken.error.http_status == 503
    assert EXPERT.search(broken.error.message)
    assert ended.error is None
    assert again == text


def question(name: str, at: int = 0) -> GenerationRequest:
    """Another beginning each, so that nothing is cached."""
    prompt = tuple((token + at) % 900 + 8 for token in TOKENS)
    return GenerationRequest(
        id=name,
        prompt=prompt,
        sampling=SamplingParams(temperature=0),
        max_tokens=12,
        ignore_end=True,
    )


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 3)


def replace(path: Path) -> None:
    """By another file of its size, as a download does."""
    other = path.with_suffix(".new")
    other.write_bytes(bytes(path.stat().st_size))
    other.rename(path)


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(bytes(path.stat().st_size // 4))


@pytest.mark.parametrize("change", [truncate, replace, overwrite])
def test_a_file_that_is_changed_while_a_model_runs_gives_no_wrong_token(
    change: Callable[[Path], None], model: Path, load: Load, tmp_path: Path, wanted: Rows
) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "flash"))
    runner = load(folder, 4)
    assert np.array_equal(rows(runner, TOKENS, 20, 1, 1), wanted)
    changed = shards(folder, ".experts.")
    for file in changed:
        change(file)

    for _ in range(2):
        with pytest.raises(DiskReadError) as raised:
            rows(runner, TOKENS, 20, 1, 1)
        assert Path(raised.value.file) in changed
    # Whole again, and loaded again.
    shutil.rmtree(folder)
    shutil.copytree(model, folder)
    assert np.array_equal(rows(load(folder, 4), TOKENS, 20, 1, 1), wanted)


def test_a_prompt_is_cancelled_while_the_disk_is_waited_for(
    model: Path, load: Load, disk: Disk, wanted: Rows
) -> None:
    runner = load(model)
    sequence = runner.new_sequence()
    disk.fate = first("stall", 9)
    ended: list[BaseException] = []

    def prompt() -> None:
        try:
            runner.forward([BatchItem(sequence, TOKENS[:20], "last")])
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=prompt)
    thread.start()
    assert disk.stalled.wait(WAIT_S)
    runner.abort()
    thread.join(WAIT_S)

    assert not thread.is_alive()
    # Nothing has been read yet of what was waited for.
    assert not disk.freed.is_set()
    assert [type(error) for error in ended] == [ForwardAborted]
    disk.free()
    again = runner.forward([BatchItem(sequence, TOKENS[:20], "all")]).numpy()
    assert np.array_equal(again, wanted[:20])


def test_closing_does_not_wait_for_a_disk_that_never_answers(
    model: Path, load: Load, disk: Disk
) -> None:
    runner = load(model)
    disk.fate = first("stall", 0)
    with pytest.raises(DiskReadError):
        runner.forward([BatchItem(runner.new_sequence(), TOKENS[:20], "last")])
    closing = threading.Thread(target=runner.close)
    closing.start()
    closing.join(WAIT_S)

    assert not closing.is_alive()
    assert not disk.freed.is_set()
