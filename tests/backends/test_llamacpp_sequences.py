"""A sequence whose memory cannot be cut is emptied, and says so before it takes more tokens."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from localrun.engine.runner import BatchItem, ModelRunner, SequenceId
from localrun.errors import EngineError

TEXT = "The quick brown fox jumps over the lazy dog, and the dog does not mind at all."


@pytest.fixture
def tokens(runner: ModelRunner) -> list[int]:
    return runner.tokenize(TEXT, add_special=False, parse_special=False)


def feed(runner: ModelRunner, sequence: SequenceId, tokens: list[int]) -> NDArray[np.float32]:
    """The logits after the last token, copied: ``[vocab]``."""
    last: NDArray[np.float32] = runner.forward([BatchItem(sequence, tokens)]).numpy()[-1].copy()
    return last


@pytest.fixture
def expected(runner: ModelRunner, tokens: list[int]) -> NDArray[np.float32]:
    sequence = runner.new_sequence()
    logits = feed(runner, sequence, tokens)
    runner.free(sequence)
    return logits


def assert_same(logits: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    np.testing.assert_allclose(logits, expected, atol=0.05)
    assert logits.argmax() == expected.argmax()


@pytest.fixture
def uncuttable(runner: ModelRunner, monkeypatch: pytest.MonkeyPatch) -> ModelRunner:
    """The library answers as it does for recurrent models: a sequence goes whole or not at all."""
    from localrun.backends.llamacpp import sequences as module

    remove = module.llama.llama_memory_seq_rm

    def whole_only(memory: int, sequence: int, start: int, end: int) -> bool:
        return start <= 0 and bool(remove(memory, sequence, start, end))

    monkeypatch.setattr(module.llama, "llama_memory_seq_rm", whole_only)
    return runner


def test_a_state_that_cannot_be_cut_is_given_up_whole(
    uncuttable: ModelRunner, tokens: list[int], expected: NDArray[np.float32]
) -> None:
    sequence = uncuttable.new_sequence()
    feed(uncuttable, sequence, tokens)
    assert uncuttable.truncate(sequence, len(tokens) - 1) == 0
    assert_same(feed(uncuttable, sequence, tokens), expected)
    with pytest.raises(EngineError, match="cannot be taken back"):
        uncuttable.rollback(sequence, 1)


def test_a_sequence_emptied_by_a_failed_step_waits_for_truncate(
    uncuttable: ModelRunner, tokens: list[int], expected: NDArray[np.float32]
) -> None:
    sequence = uncuttable.new_sequence()
    feed(uncuttable, sequence, tokens[:-1])
    with pytest.raises(EngineError, match="invalid token"):
        uncuttable.forward([BatchItem(sequence, [10_000_000])])
    with pytest.raises(EngineError, match="lost its tokens"):
        feed(uncuttable, sequence, tokens[-1:])
    assert uncuttable.truncate(sequence, len(tokens) - 1) == 0
    assert_same(feed(uncuttable, sequence, tokens), expected)
