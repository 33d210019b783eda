"""Hidden states: what the model's head gets, from a context that goes on generating."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from localrun.engine.runner import BatchItem, ForwardAborted, ModelRunner
from localrun.errors import EngineError
from localrun.formats.read import read_header
from tests.shapes import Shape, write

Floats = NDArray[np.float32]
LoadModel = Callable[..., ModelRunner]
TEXT = "Rivers carry what the rain takes from the hills, and the sea takes what they bring. " * 3


@pytest.fixture(scope="module", params=[1, 3], ids=["one stream", "three streams"])
def shared_runner(request: pytest.FixtureRequest, load_model: LoadModel) -> Iterator[ModelRunner]:
    runner = load_model(ubatch=128, parallel=request.param, flash=request.param == 1)
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def text(shared_runner: ModelRunner) -> list[int]:
    """More tokens than are computed at once."""
    tokens = shared_runner.tokenize(TEXT, add_special=False, parse_special=False)
    assert 32 < len(tokens) < shared_runner.capabilities.max_tokens
    return tokens


def head_rows(path: Path, ids: list[int]) -> Floats:
    """``[ids, width]`` of the table that is this model's head too, in Q8_0: 32 bytes to a scale."""
    info = next(t for t in read_header([path]).tensors if t.name == "token_embd.weight")
    assert info.type.name == "Q8_0"
    raw = np.memmap(path, np.uint8, "r", info.offset, (info.shape[0], info.shape[1] // 32, 34))
    blocks = np.array(raw[ids])
    scales = blocks[:, :, :2].copy().view(np.float16).astype(np.float32)
    return (blocks[:, :, 2:].view(np.int8) * scales).reshape(len(ids), -1)


def test_hidden_states_are_those_that_the_logits_are_made_of(
    runner: ModelRunner, text: list[int], smollm2_path: Path
) -> None:
    states = runner.embed([text])[0]
    logits = runner.forward([BatchItem(runner.new_sequence(), text, "all")]).numpy()
    ids = list(range(100, 49_000, 61))
    made = states @ head_rows(smollm2_path, ids).T
    # The head reads them in 8 bits, and short pieces of a text may be summed in another order.
    assert np.corrcoef(made.ravel(), logits[:, ids].ravel())[0, 1] > 0.99
    assert np.abs(made - logits[:, ids]).mean() < 0.1 * logits[:, ids].std()


def test_each_text_is_computed_alone_and_leaves_nothing(
    runner: ModelRunner, text: list[int]
) -> None:
    held = runner.new_sequence()
    runner.forward([BatchItem(held, text[:20])])
    expected = runner.forward([BatchItem(held, [7])]).numpy().copy()
    assert runner.truncate(held, 20) == 20
    short, whole, again = runner.embed([text[:9], text, text[:9]])
    assert whole.shape == (len(text), short.shape[1])
    np.testing.assert_array_equal(short, again)
    np.testing.assert_array_equal(runner.forward([BatchItem(held, [7])]).numpy(), expected)
    others = [runner.new_sequence() for _ in range(runner.capabilities.max_sequences - 1)]
    assert len({held, *others}) == runner.capabilities.max_sequences


def test_what_is_given_out_stays_when_the_runner_goes_on(
    runner: ModelRunner, text: list[int]
) -> None:
    states = runner.embed([text[:5]])[0]
    kept = states.copy()
    runner.embed([text[::-1]])
    runner.forward([BatchItem(runner.new_sequence(), text, "all")])
    np.testing.assert_array_equal(states, kept)


def test_a_text_that_fails_leaves_nothing_and_generation_goes_on(
    runner: ModelRunner, text: list[int]
) -> None:
    for texts in ([text[:5], [10_000_000]], [[]], [[-1]], [[5] * 300]):
        with pytest.raises(EngineError):
            runner.embed(texts)
    held = [runner.new_sequence() for _ in range(runner.capabilities.max_sequences)]
    with pytest.raises(EngineError, match="in use"):
        runner.embed([text])
    assert runner.forward([BatchItem(held[0], text[:5])]).rows == 1


def test_an_abort_ends_embedding(load_model: LoadModel) -> None:
    runner = load_model(n_ctx=2048, ubatch=2048)
    done = threading.Event()

    def abort_until_done() -> None:
        while not done.is_set():
            runner.abort()

    aborter = threading.Thread(target=abort_until_done)
    aborter.start()
    try:
        with pytest.raises(ForwardAborted):
            runner.embed([[9] * 1500])
    finally:
        done.set()
        aborter.join()
    assert runner.embed([[9] * 3])[0].shape[0] == 3
    runner.close()


@pytest.mark.parametrize(
    ("number", "pooling"),
    [(None, None), (0, None), (1, "mean"), (2, "cls"), (3, "last"), (4, None)],
)
def test_the_pooling_is_what_the_file_says(
    load_model: LoadModel, tmp_path: Path, number: int | None, pooling: str | None
) -> None:
    path = write(tmp_path / "model.gguf", Shape(layers=1, pooling=number))
    runner = load_model(path)
    assert (runner.capabilities.embeddings, runner.capabilities.pooling) == (True, pooling)
    states = runner.embed([[1, 2, 3]])[0]
    assert states.shape == (3, 256)
    runner.close()
