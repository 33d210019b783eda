"""Embeddings: which token's state, how long a vector, and how much of the runner's time at once."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from localrun.cli.worker import describe
from localrun.engine.embeddings import EmbeddingJob, normalized, pooled, shortened
from localrun.engine.engine import Engine
from localrun.engine.request import EmbeddingRequest
from localrun.engine.runner import ForwardAborted, Pooling
from localrun.errors import ContextLengthError, EngineError, RequestError
from tests.engine_child import plan
from tests.mock_runner import MockRunner

HIDDEN = np.array([[1, 2], [3, 4], [5, 12]], np.float32)
SIZE = 262


class Recording(MockRunner):
    """Remembers the lengths of the texts of each call; ``raises`` comes first, once."""

    def __init__(self, max_tokens: int = 512) -> None:
        super().__init__(max_tokens=max_tokens)
        self.calls: list[list[int]] = []
        self.raises: BaseException | None = None
        self.factor = 1.0
        self.made: Callable[[list[NDArray[np.float32]]], None] = lambda states: None

    def embed(self, batch: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        if self.raises is not None:
            error, self.raises = self.raises, None
            raise error
        self.calls.append([len(text) for text in batch])
        states = [hidden * np.float32(self.factor) for hidden in super().embed(batch)]
        self.made(states)
        return states


def asked(*texts: str, **fields: object) -> EmbeddingRequest:
    values: dict[str, object] = {"id": "e", "texts": tuple(tuple(t.encode()) for t in texts)}
    return EmbeddingRequest(**(values | fields))  # type: ignore[arg-type]  # a builder of tests


def job(runner: MockRunner, request: EmbeddingRequest) -> EmbeddingJob:
    return EmbeddingJob(request, runner.capabilities, vocabulary_size=SIZE)


def computed(runner: MockRunner, request: EmbeddingRequest) -> NDArray[np.float32]:
    made = job(runner, request)
    while not made.step(runner):
        pass
    return made.vectors


@pytest.mark.parametrize(
    ("pooling", "expected"), [("mean", [3, 6]), ("cls", [1, 2]), ("last", [5, 12])]
)
def test_a_text_has_the_state_its_pooling_says(pooling: Pooling, expected: list[float]) -> None:
    assert pooled(HIDDEN, pooling).tolist() == expected


def test_a_mean_over_many_tokens_keeps_its_digits() -> None:
    hidden = np.full((200_000, 1), 0.1, np.float32)
    assert pooled(hidden, "mean")[0] == np.float32(0.1)


def test_a_vector_has_length_one_and_zeros_stay_zeros() -> None:
    assert normalized(np.array([3, 4], np.float32)).tolist() == pytest.approx([0.6, 0.8])
    assert normalized(np.zeros(3, np.float32)).tolist() == [0, 0, 0]
    assert normalized(np.array([3e30, 4e30], np.float32)).tolist() == pytest.approx([0.6, 0.8])


def test_dimensions_keep_the_first_places_and_are_at_most_the_width() -> None:
    vector = np.arange(4, dtype=np.float32)
    assert shortened(vector, 2).tolist() == [0, 1]
    assert shortened(vector, None).size == shortened(vector, 4).size == 4
    with pytest.raises(RequestError, match=r"dimensions 5: .* 4"):
        shortened(vector, 5)


def test_a_vector_is_shortened_before_it_gets_its_length() -> None:
    vectors = computed(MockRunner(), asked("ab", dimensions=2))
    assert np.linalg.norm(vectors[0]) == pytest.approx(1)
    assert vectors.shape == (1, 2)


def test_without_a_wish_the_models_own_pooling_holds_else_the_mean() -> None:
    request = asked("ab", normalize=False)
    limits = MockRunner().capabilities
    for own, expected in (("last", 98), ("cls", 97), ("mean", 97.5), (None, 97.5)):
        runner = MockRunner()
        made = EmbeddingJob(request, replace(limits, pooling=own), vocabulary_size=SIZE)
        made.step(runner)
        assert made.vectors[0, 0] == expected


def test_a_wish_goes_before_the_models_own_pooling() -> None:
    assert computed(MockRunner(), asked("ab", pooling="last", normalize=False))[0, 0] == 98


@given(lengths=st.lists(st.integers(1, 8), min_size=1, max_size=20), most=st.integers(1, 20))
def test_texts_come_in_order_and_no_slice_is_over_its_limit(lengths: list[int], most: int) -> None:
    runner = Recording(max_tokens=8)
    texts = [chr(97 + at) * length for at, length in enumerate(lengths)]
    made = job(runner, asked(*texts, pooling="cls", normalize=False))
    while not made.step(runner, most):
        pass

    assert made.vectors[:, 0].tolist() == [97 + at for at in range(len(lengths))]
    assert [length for call in runner.calls for length in call] == lengths
    assert all(len(call) == 1 or sum(call) <= min(most, 8) for call in runner.calls)
    assert made.tokens == sum(lengths)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_a_vector_keeps_no_states_of_its_text_alive(pooling: Pooling) -> None:
    runner = Recording()
    hidden: list[weakref.ref[NDArray[np.float32]]] = []
    runner.made = lambda states: hidden.extend(weakref.ref(each) for each in states)
    made = job(runner, asked("abc", pooling=pooling, normalize=False))
    made.step(runner)

    assert [each() for each in hidden] == [None]
    assert made.vectors.shape == (1, 4)


def test_a_slice_that_was_aborted_is_computed_again() -> None:
    runner = Recording(max_tokens=2)
    made = job(runner, asked("a", "bc", normalize=False, pooling="cls"))
    assert not made.step(runner)
    runner.raises = ForwardAborted()
    with pytest.raises(ForwardAborted):
        made.step(runner)
    assert made.step(runner)
    assert made.vectors[:, 0].tolist() == [97, 98]


def test_a_request_out_of_its_ranges_is_refused_before_it_waits() -> None:
    with pytest.raises(RequestError, match="text 1 is empty"):
        job(MockRunner(), asked("a", ""))


def test_a_text_longer_than_a_forward_is_told_with_both_numbers() -> None:
    with pytest.raises(ContextLengthError, match=r"9 tokens.* 8"):
        job(MockRunner(max_tokens=8), asked("a" * 9))


def test_a_text_longer_than_the_context_is_told_with_both_numbers() -> None:
    with pytest.raises(ContextLengthError, match=r"9 tokens.* 4"):
        job(MockRunner(n_ctx=4), asked("a" * 9))


def test_a_runner_without_embeddings_says_so() -> None:
    limits = replace(MockRunner().capabilities, embeddings=False)
    with pytest.raises(RequestError, match="embeddings"):
        EmbeddingJob(asked("a"), limits, vocabulary_size=SIZE)


def test_more_dimensions_than_the_model_has_are_refused() -> None:
    with pytest.raises(RequestError, match="have 4"):
        computed(MockRunner(), asked("a", dimensions=5))


def test_a_state_that_is_no_number_is_an_error_and_no_vector() -> None:
    runner = Recording()
    runner.factor = float("nan")
    with pytest.raises(EngineError, match="not finite"):
        computed(runner, asked("a"))


@pytest.mark.parametrize(("n_ctx", "max_tokens"), [(64, 16), (16, 64)])
def test_an_engine_says_how_long_a_text_it_embeds(n_ctx: int, max_tokens: int) -> None:
    engine = Engine(MockRunner(n_ctx=n_ctx, max_tokens=max_tokens))
    try:
        longest = describe(plan("mock:echo", n_ctx=n_ctx), engine).longest_text
        made = engine.embed(asked("x" * longest)).result(timeout=30)
        with pytest.raises(ContextLengthError) as refused:
            engine.embed(asked("x" * (longest + 1)))
    finally:
        engine.close()

    assert len(made) == 1
    assert (longest, refused.value.n_ctx) == (16, 16)
