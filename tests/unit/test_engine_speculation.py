"""Knows no weights: with guesses or without, an engine says the same, with fewer steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cache
from typing import Any, Final

import numpy as np
import pytest
from numpy.typing import NDArray

from localrun.engine.drafting.draft_model import DraftModel
from localrun.engine.drafting.lookup import PromptLookup
from localrun.engine.drafting.speculation import Both, Drafting
from localrun.engine.engine import Engine
from localrun.engine.request import (
    FinishReason,
    GenerationRequest,
    SamplingParams,
    Timings,
)
from localrun.engine.rows import NumpyLogits
from localrun.engine.runner import BatchItem, SequenceId, Vocabulary
from localrun.engine.threads import ThreadRange
from localrun.errors import UsageError
from tests import engines
from tests.mock_runner import CERTAIN, VOCABULARY_SIZE, MockRunner, Timeline, echo, encode

GREEDY = SamplingParams(temperature=0)
LIVELY = SamplingParams(temperature=0.9, top_k=0, top_p=1, min_p=0, seed=7)
PROMPTS: Final = (
    "hello, hello, hello",
    "to be or not to be, that is",
    "x",
    "a list: 1, 2, 3, 1, 2",
)


class Oracle:
    """Guesses from texts that it was told, some of them wrong.

    right: whether the guess for a place in the text is the text's token, else another one.
    """

    costly = False

    def __init__(
        self, texts: Sequence[Sequence[int]], right: Callable[[int], bool] = lambda place: True
    ) -> None:
        self._texts = texts
        self._right = right
        self.odds: list[float] = []
        self.closed = False

    def start(self, target: Vocabulary) -> None:
        return

    def drafters(self) -> tuple[Oracle]:
        return (self,)

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        text = next((each for each in self._texts if list(each[: len(tokens)]) == tokens), [])
        places = range(len(tokens), min(len(tokens) + most, len(text)))
        self.odds = [0.99] * len(places)
        return [
            text[place] if self._right(place) else (text[place] + 1) % VOCABULARY_SIZE
            for place in places
        ]

    def close(self) -> None:
        self.closed = True


class Result:
    """What a request was answered."""

    def __init__(self, events: Sequence[Any]) -> None:
        self.text = "".join(event.text for event in events)
        self.tokens = [token for event in events for token in event.tokens]
        self.finish = events[-1].finish
        self.error = events[-1].error
        timings = events[-1].timings
        assert isinstance(timings, Timings)
        self.timings = timings
        assert timings.generated_tokens == len(self.tokens)
        assert 0 <= timings.accepted_tokens <= timings.drafted_tokens


def running(runner: MockRunner, drafting: Drafting | None = None) -> AbstractContextManager[Engine]:
    """An engine for which every step takes as long as any other, so that guesses always pay."""
    return engines.running(runner, drafting=drafting, clock=lambda: runner.count / 1000)


def ask(id_: str, prompt: str = PROMPTS[0], **fields: Any) -> GenerationRequest:
    values = {"id": id_, "prompt": tuple(encode(prompt)), "sampling": GREEDY, "max_tokens": 60}
    return GenerationRequest(**(values | fields))


def answers(
    runner: MockRunner, drafting: Drafting | None, requests: Sequence[GenerationRequest]
) -> list[Result]:
    """All requests at once."""
    with running(runner, drafting) as engine:
        runner.hold(0)
        generations = [engine.submit(request) for request in requests]
        runner.entered.wait()
        runner.release()
        return [Result(list(generation)) for generation in generations]


def whole(requests: Sequence[GenerationRequest], results: Sequence[Result]) -> list[list[int]]:
    pairs = zip(requests, results, strict=True)
    return [[*request.prompt, *result.tokens] for request, result in pairs]


def third(place: int) -> bool:
    return place % 3 > 0


def never(place: int) -> bool:
    return False


def always(place: int) -> bool:
    return True


class Hashed(MockRunner):
    """What it says follows from all tokens before it. Notes what each sequence held in the end."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(**({"hashed": True} | fields))
        self.ended: list[list[int]] = []

    def free(self, sequence: SequenceId) -> None:
        self.ended.append(self.holds_tokens(sequence))
        super().free(sequence)


class Round(Hashed):
    """Says what it said, or was told, ``PERIOD`` tokens before."""

    PERIOD: Final = 11

    def _row(self, timeline: Timeline) -> NDArray[np.float32]:
        row = np.zeros(VOCABULARY_SIZE, np.float32)
        row[timeline.tokens[-min(self.PERIOD, len(timeline.tokens))]] = CERTAIN
        return row


@pytest.mark.parametrize("sampling", [GREEDY, LIVELY], ids=["greedy", "lively"])
@pytest.mark.parametrize("right", [always, third, never])
@pytest.mark.parametrize("streams", [1, 4])
@pytest.mark.parametrize("make", [Hashed, Round])
def test_guesses_right_or_wrong_change_no_text(
    make: type[Hashed], streams: int, right: Callable[[int], bool], sampling: SamplingParams
) -> None:
    requests = [
        ask(str(at), prompt, sampling=sampling) for at, prompt in enumerate(PROMPTS[:streams])
    ]
    plain = answers(make(max_sequences=streams), None, requests)
    runner = make(max_sequences=streams)
    texts = whole(requests, plain)

    told = answers(runner, Oracle(texts, right), requests)

    assert [each.text for each in told] == [each.text for each in plain]
    assert [each.tokens for each in told] == [each.tokens for each in plain]
    assert [each.finish for each in told] == [each.finish for each in plain]
    # What is kept for the next prompt is what the runner holds.
    assert len(runner.ended) == streams
    for held in runner.ended:
        assert any(held == text[:-1] for text in texts)


@pytest.mark.parametrize("make", [Hashed, Round])
def test_guesses_from_the_text_change_no_text(make: type[Hashed]) -> None:
    requests = [ask(str(at), prompt * 3) for at, prompt in enumerate(PROMPTS)]

    plain = answers(make(max_sequences=4), None, requests)
    told = answers(make(max_sequences=4), PromptLookup(), requests)

    assert [each.tokens for each in told] == [each.tokens for each in plain]
    accepted = sum(each.timings.accepted_tokens for each in told)
    assert (accepted > 100) == (make is Round)


def test_right_guesses_spare_steps_and_are_counted() -> None:
    requests = [ask("r", "a sentence long enough to be said again", max_tokens=None)]
    plain_runner, runner = MockRunner(echo), MockRunner(echo)
    (plain,) = answers(plain_runner, None, requests)
    (told,) = answers(runner, PromptLookup(), requests)

    assert told.text == plain.text == "a sentence long enough to be said again"
    assert plain.timings.drafted_tokens == 0
    assert told.timings.accepted_tokens > 25
    assert runner.count < plain_runner.count - told.timings.accepted_tokens + 2


def test_wrong_guesses_are_counted_as_such() -> None:
    requests = [ask("r")]
    texts = whole(requests, answers(Hashed(), None, requests))
    (told,) = answers(Hashed(), Oracle(texts, never), requests)

    assert told.timings.drafted_tokens > 0
    assert told.timings.accepted_tokens == 0


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 7, 8, 20])
def test_max_tokens_ends_within_guesses(max_tokens: int) -> None:
    requests = [ask("r", max_tokens=max_tokens)]
    longer = [ask("r", max_tokens=80)]
    texts = whole(longer, answers(Hashed(), None, longer))

    (told,) = answers(Hashed(), Oracle(texts), requests)

    assert len(told.tokens) == max_tokens
    assert told.finish == FinishReason.LENGTH
    assert [*requests[0].prompt, *told.tokens] == texts[0][: len(requests[0].prompt) + max_tokens]


@pytest.mark.parametrize("at", range(1, 12))
def test_a_stop_string_ends_within_guesses(at: int) -> None:
    said = "abcdefghijklmnop"
    prompt = encode("say ")
    told = Oracle([[*prompt, *encode(said)]])
    runner = Hashed(hashed=False, reply=said)

    (result,) = answers(runner, told, [ask("r", "say ", stop=(said[at : at + 2],))])

    assert result.text == said[:at]
    assert result.finish == FinishReason.STOP
    # The stop string's last token was drawn, and is not in the runner.
    assert runner.ended == [[*prompt, *encode(said)[: at + 1]]]


def test_an_end_token_ends_within_guesses() -> None:
    prompt, said = encode("say "), encode("abc")
    runner = MockRunner("abc")
    told = Oracle(
        [
            [
                *prompt,
                *said,
                runner.tokenize("<|end|>", add_special=False, parse_special=True)[0],
                *said,
            ]
        ]
    )

    (result,) = answers(runner, told, [ask("r", "say ")])

    assert result.text == "abc"
    assert result.finish == FinishReason.STOP


def test_the_context_fills_up_within_guesses() -> None:
    requests = [ask("r", max_tokens=None)]
    plain = answers(Hashed(n_ctx=64), None, requests)
    (told,) = answers(Hashed(n_ctx=64), Oracle(whole(requests, plain)), requests)

    assert told.tokens == plain[0].tokens
    assert told.finish == FinishReason.LENGTH


def test_a_cancel_in_a_step_of_guesses_leaves_the_next_request_unharmed() -> None:
    requests = [ask("r", max_tokens=None)]
    text = whole([ask("r")], answers(Hashed(), None, [ask("r")]))
    runner = Hashed()
    drafting = Oracle(text)
    with running(runner, drafting) as engine:
        runner.hold(3)
        first = engine.submit(requests[0])
        runner.entered.wait()
        assert len(runner.forwards[-1][0].tokens) > 1
        first.cancel()
        ended = Result(list(first))
        second = Result(list(engine.submit(ask("s"))))

    assert ended.finish == FinishReason.CANCELLED
    assert [*ask("s").prompt, *second.tokens] == text[0]


def test_a_step_of_guesses_that_fails_ends_its_request_alone() -> None:
    text = whole([ask("r")], answers(Hashed(), None, [ask("r")]))
    runner = Hashed(fails={3})
    with running(runner, Oracle(text)) as engine:
        failed = Result(list(engine.submit(ask("r"))))
        next_ = Result(list(engine.submit(ask("s"))))

    assert failed.finish == FinishReason.ERROR
    assert [*ask("s").prompt, *next_.tokens] == text[0]


class Marking(Hashed):
    """Notes what was marked and taken back."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        self.marked: dict[SequenceId, int] = {}
        self.rolled: list[int] = []

    def checkpoint(self, sequence: SequenceId) -> None:
        super().checkpoint(sequence)
        self.marked[sequence] = len(self.held[sequence])

    def rollback(self, sequence: SequenceId, count: int) -> None:
        length = len(self.held[sequence])
        depth = self.capabilities.rollback_depth
        assert depth is None or count <= depth
        assert length - count > self.marked[sequence]
        self.rolled.append(count)
        super().rollback(sequence, count)


@pytest.mark.parametrize("depth", [0, 1, 3, None])
def test_no_more_is_guessed_than_the_runner_can_take_back(depth: int | None) -> None:
    requests = [ask("r")]
    plain = answers(Hashed(), None, requests)
    runner = Marking(rollback_depth=depth)

    (told,) = answers(runner, Oracle(whole(requests, plain), third), requests)

    guesses = max(len(fed) for fed in runner.fed[1:]) - 1
    assert told.tokens == plain[0].tokens
    if depth == 0:
        assert (guesses, told.timings.drafted_tokens, runner.rolled) == (0, 0, [])
    else:
        assert 0 < guesses <= (depth or 100)
        assert runner.rolled


@pytest.mark.parametrize("max_tokens", [1, 2, 5])
def test_no_more_is_guessed_than_a_step_takes(max_tokens: int) -> None:
    requests = [ask(str(at), prompt) for at, prompt in enumerate(PROMPTS[:2])]
    plain = answers(Hashed(max_sequences=2), None, requests)
    runner = Hashed(max_sequences=2, max_tokens=max_tokens)

    told = answers(runner, Oracle(whole(requests, plain)), requests)

    assert [each.tokens for each in told] == [each.tokens for each in plain]


def test_a_runner_that_takes_turns_guesses_for_each() -> None:
    requests = [ask(str(at), prompt) for at, prompt in enumerate(PROMPTS)]
    plain = answers(Hashed(max_sequences=4), None, requests)
    runner = Hashed(max_sequences=4, max_batch=1)

    told = answers(runner, Oracle(whole(requests, plain)), requests)

    assert [each.tokens for each in told] == [each.tokens for each in plain]
    assert all(each.timings.accepted_tokens > 0 for each in told)


def test_a_request_may_forbid_guesses() -> None:
    requests = [ask("r", draft=False)]
    plain = answers(Hashed(), None, requests)
    (told,) = answers(Hashed(), Oracle(whole(requests, plain)), requests)

    assert told.timings.drafted_tokens == 0


def test_drafting_is_closed_with_the_engine() -> None:
    drafting = Oracle([])
    with running(MockRunner("abc"), drafting):
        assert not drafting.closed

    assert drafting.closed


# A draft model.


STATES: Final = 8


class Known(MockRunner):
    """The next token's distribution depends on the last token alone, and is ``CHANCES``."""

    def _row(self, timeline: Timeline) -> NDArray[np.float32]:
        row = np.full(VOCABULARY_SIZE, -np.inf, np.float32)
        row[:STATES] = np.log(CHANCES[timeline.tokens[-1] % STATES])
        return row


def _chances() -> NDArray[np.float64]:
    """One token in each row has half of the weight."""
    chances = np.random.default_rng(5).uniform(0.5, 1.5, (STATES, STATES))
    np.fill_diagonal(chances, 0)
    chances /= 2 * chances.sum(axis=1, keepdims=True)
    np.fill_diagonal(chances, 0.5)
    return np.roll(chances, 1, axis=1)


CHANCES: Final = _chances()


def test_a_draft_model_that_agrees_spares_steps_and_changes_no_text() -> None:
    requests = [ask(str(at), prompt) for at, prompt in enumerate(PROMPTS)]
    fields: dict[str, Any] = {"max_sequences": 4}
    plain_runner, runner = Known(**fields), Known(**fields)
    plain = answers(plain_runner, None, requests)
    drafts = Known(**fields)

    told = answers(runner, Both(PromptLookup(), DraftModel(drafts)), requests)

    assert [each.tokens for each in told] == [each.tokens for each in plain]
    assert runner.count < plain_runner.count
    assert all(each.timings.accepted_tokens > 0 for each in told)
    assert drafts.closed
    assert drafts.violations == []
    assert drafts.held == {}


@pytest.mark.parametrize("failing", [0, 1, 2, 5])
def test_a_draft_model_that_fails_harms_nobody(failing: int) -> None:
    requests = [ask("r", max_tokens=30)]
    plain = answers(Known(), None, requests)
    drafts = Known(fails={failing})

    (told,) = answers(Known(), DraftModel(drafts), requests)

    assert told.tokens == plain[0].tokens
    assert told.finish == FinishReason.LENGTH
    assert drafts.held == {}


def test_more_requests_than_the_draft_model_seats_go_on_without_it() -> None:
    requests = [ask(str(at), prompt) for at, prompt in enumerate(PROMPTS)]
    plain = answers(Known(max_sequences=4), None, requests)

    told = answers(Known(max_sequences=4), DraftModel(Known(max_sequences=1)), requests)

    assert [each.tokens for each in told] == [each.tokens for each in plain]
    assert sum(each.timings.drafted_tokens > 0 for each in told) >= 1


def test_a_draft_model_of_another_vocabulary_is_refused_and_everything_closed() -> None:
    class Other(MockRunner):
        def vocabulary(self) -> Vocabulary:
            return replace(super().vocabulary(), names={})

    runner, drafts = MockRunner("abc"), Other("abc")

    with pytest.raises(UsageError, match="token 256"):
        Engine(runner, drafting=DraftModel(drafts))
    assert runner.closed
    assert drafts.closed


# The distribution.


class Guessing:
    """One guess after the other, from the last token alone."""

    costly = False

    def __init__(self, guess: Callable[[int], int]) -> None:
        self._guess = guess
        self.odds: list[float] = []

    def start(self, target: Vocabulary) -> None:
        return

    def drafters(self) -> tuple[Guessing]:
        return (self,)

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        guesses = [tokens[-1]]
        for _ in range(min(most, 4)):
            guesses.append(self._guess(guesses[-1] % STATES))
        self.odds = [0.9] * (len(guesses) - 1)
        return guesses[1:]

    def close(self) -> None:
        return


TOKENS: Final = 20_000
# Quantile 0.9999 of the chi-square distribution with 8 x 7 degrees of freedom.
LIMIT: Final = 101.8


@cache
def sampled(drafting: Drafting | None, seed: int) -> Result:
    sampling = SamplingParams(temperature=1, top_k=0, top_p=1, min_p=0, seed=seed)
    request = ask("r", "\0", sampling=sampling, max_tokens=TOKENS)
    (result,) = answers(Known(n_ctx=TOKENS + 8), drafting, [request])
    return result


def chi_square(tokens: Sequence[int]) -> float:
    counts = np.zeros((STATES, STATES))
    np.add.at(counts, (np.array([0, *tokens[:-1]]), np.array(tokens)), 1)
    expected = counts.sum(axis=1, keepdims=True) * CHANCES
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize(
    ("seed", "drafting", "least", "most"),
    [
        (1, None, 0, 0),
        (2, Guessing(lambda last: int(CHANCES[last].argmin())), 0.01, 0.1),
        (3, Guessing(lambda last: int(CHANCES[last].argmax())), 0.2, 0.6),
    ],
)
def test_guesses_leave_the_distribution_as_it_is(
    seed: int, drafting: Drafting | None, least: float, most: float
) -> None:
    result = sampled(drafting, seed)

    assert len(result.tokens) == TOKENS
    assert chi_square(result.tokens) < LIMIT
    timings = result.timings
    share = timings.accepted_tokens / max(timings.drafted_tokens, 1)
    assert least <= share <= most
    assert (timings.drafted_tokens > 1000) == (drafting is not None)


def test_perfect_guesses_leave_the_distribution_as_it_is() -> None:
    plain = sampled(None, 1)
    told = sampled(Ahead([0, *plain.tokens]), 1)

    assert told.tokens == plain.tokens
    assert chi_square(told.tokens) < LIMIT
    assert told.timings.accepted_tokens == told.timings.drafted_tokens > TOKENS / 2


def test_the_statistic_finds_a_distribution_that_is_not_as_it_should_be() -> None:
    """Where a rare token were taken once more in fifty times, the bound would be exceeded."""
    tokens = sampled(None, 1).tokens
    rarest = [int(CHANCES[last].argmin()) for last in [0, *tokens[:-1]]]
    mended = [
        rare if at % 50 == 0 else token
        for at, (token, rare) in enumerate(zip(tokens, rarest, strict=True))
    ]

    assert chi_square(mended) > LIMIT


class Ahead(Oracle):
    """Knows one text by heart; finds its place by the length alone, as the text is long."""

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        guesses = list(self._texts[0][len(tokens) : len(tokens) + most])
        self.odds = [0.99] * len(guesses)
        return guesses

    def __init__(self, text: Sequence[int]) -> None:
        super().__init__([text])


class Sometimes(Oracle):
    """Guesses at every fifth place."""

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        return super().propose(tokens, 3) if len(tokens) % 5 == 0 else []


class Threaded(Hashed):
    """Notes the tokens of each forward and the threads it had."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[int, int]] = []

    def forward(self, batch: Sequence[BatchItem]) -> NumpyLogits:
        self.steps.append((len(batch[0].tokens), self.threads[-1]))
        return super().forward(batch)


def test_only_steps_without_guesses_try_other_numbers_of_threads() -> None:
    """Steps with guesses take longer, whatever the threads: their times compare with no others."""
    requests = [ask("r", max_tokens=120)]
    texts = whole(requests, answers(Hashed(), None, requests))
    runner = Threaded()
    engine = Engine(
        runner,
        drafting=Sometimes(texts),
        threads=ThreadRange(8, 8),
        clock=lambda: runner.count / 1000,
    )
    try:
        list(engine.submit(requests[0]))
    finally:
        engine.close()

    guessed = {threads for tokens, threads in runner.steps[1:] if tokens > 1}
    plain = {threads for tokens, threads in runner.steps[1:] if tokens == 1}
    assert guessed == {8}
    assert plain > {8}
