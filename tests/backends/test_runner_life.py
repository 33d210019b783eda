"""Loading, aborting and closing, whichever library computes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from localrun.engine.runner import BatchItem, ForwardAborted, ModelRunner
from localrun.errors import EngineError, ModelNotFoundError
from tests.backends.conftest import BACKENDS

LoadModel = Callable[..., ModelRunner]


@pytest.fixture(scope="module", params=BACKENDS)
def load_runner(request: pytest.FixtureRequest, load_model: LoadModel) -> LoadModel:
    return partial(load_model, backend=request.param)


@pytest.fixture(scope="module")
def shared_runner(load_runner: LoadModel) -> Iterator[ModelRunner]:
    runner = load_runner()
    yield runner
    runner.close()


def test_abort_ends_a_forward_and_leaves_the_sequence_as_it_was(load_runner: LoadModel) -> None:
    runner = load_runner(n_ctx=2048, ubatch=2048)
    sequence = runner.new_sequence()
    start, rest = [1, 2, 3], [7] * 1800
    runner.forward([BatchItem(sequence, start)])
    done = threading.Event()

    def abort_until_done() -> None:
        # An abort before the forward has begun does nothing, so one is not enough.
        while not done.is_set():
            runner.abort()

    aborter = threading.Thread(target=abort_until_done)
    aborter.start()
    try:
        with pytest.raises(ForwardAborted):
            runner.forward([BatchItem(sequence, rest)])
    finally:
        done.set()
        aborter.join()
    assert runner.stats().tokens == len(start)
    assert runner.truncate(sequence, 99) == len(start)
    after = runner.forward([BatchItem(sequence, [9])]).numpy().copy()
    fresh = runner.new_sequence()
    expected = runner.forward([BatchItem(fresh, [*start, 9])]).numpy()
    np.testing.assert_allclose(after, expected, atol=0.05)
    runner.close()


def test_an_abort_while_nothing_runs_is_forgotten(runner: ModelRunner) -> None:
    runner.abort()
    assert runner.forward([BatchItem(runner.new_sequence(), [1, 2, 3])]).rows == 1


def test_threads_change_between_steps_and_the_answer_does_not(runner: ModelRunner) -> None:
    sequence = runner.new_sequence()
    answers = []
    for threads in (1, 2, 1):
        runner.set_threads(threads)
        runner.truncate(sequence, 0)
        answers.append(runner.forward([BatchItem(sequence, [5, 6, 7, 8])]).argmax(0))
    assert len(set(answers)) == 1


def test_close_is_final_and_may_be_repeated(load_runner: LoadModel) -> None:
    runner = load_runner()
    sequence = runner.new_sequence()
    runner.close()
    runner.close()
    runner.abort()
    uses: list[Callable[[], object]] = [
        lambda: runner.forward([BatchItem(sequence, [1])]),
        lambda: runner.tokenize("text", add_special=False, parse_special=False),
        lambda: runner.truncate(sequence, 0),
        lambda: runner.save(sequence),
        lambda: runner.restore(b"x"),
        lambda: runner.set_threads(1),
        runner.new_sequence,
        runner.vocabulary,
    ]
    for use in uses:
        with pytest.raises(EngineError, match="closed"):
            use()


def test_a_file_that_is_gone_is_named_with_the_pull_command(
    load_runner: LoadModel, tmp_path: Path
) -> None:
    with pytest.raises(ModelNotFoundError, match=r"gone\.model") as caught:
        load_runner(tmp_path / "gone.model")
    assert caught.value.hint == "localrun pull test"


def test_a_context_of_one_token_is_a_context(load_runner: LoadModel) -> None:
    runner = load_runner(n_ctx=1, ubatch=1)
    sequence = runner.new_sequence()
    assert runner.forward([BatchItem(sequence, [1])]).rows == 1
    with pytest.raises(EngineError, match="context of 1"):
        runner.forward([BatchItem(sequence, [2])])
    runner.close()
