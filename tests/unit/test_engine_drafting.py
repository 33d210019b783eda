"""Knows no engine: who guesses what, and how many guesses pay on simulated machines."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from localrun.engine.drafting.draft_model import DraftModel, compatible
from localrun.engine.drafting.lookup import LookupDrafter, PromptLookup
from localrun.engine.drafting.odds import Odds
from localrun.engine.drafting.pace import Pace, RowCosts
from localrun.engine.drafting.speculation import MOST, Both, Drafting, Speculation
from localrun.engine.runner import Vocabulary
from localrun.errors import EngineError, UsageError
from tests.mock_runner import (
    BOS,
    CERTAIN,
    VOCABULARY_SIZE,
    MockRunner,
    Timeline,
    echo,
    encode,
)

Cost = Callable[[int], float]
"""Milliseconds of a step by its rows."""


def cpu(rows: int) -> float:
    """As measured for SmolLM2-135M on two cores: each row is computed anew."""
    return 9.5 if rows == 1 else 8.0 + 4.6 * rows


def gpu(rows: int) -> float:
    """Weights are read once for all rows."""
    return 8.0 + 0.05 * rows


def kernels(rows: int) -> float:
    """A GPU whose kernels for vectors take a few rows, and whose kernels for matrices any."""
    return 8.0 + 1.5 * rows if rows <= 8 else 26.0


def speedup(
    drafting: Drafting,
    prompt: Sequence[int],
    text: Sequence[int],
    cost: Cost,
    *,
    noise: Callable[[random.Random, int], float] = lambda chance, step: 1.0,
    drafting_cost: float = 0.0,
    others: int = 0,
) -> float:
    """Plain decode's simulated time for ``text`` in that of decode with guesses, which must not
    change it.

    noise: what the machine's other work makes of a step's time as it is measured; the result is of
        the times without. drafting_cost: what one guess of the model's takes, in ms. others: rows
        of other streams in each step.
    """
    chance = random.Random(1)
    clock = 0.0
    steps = 0

    def now() -> float:
        runner = drafting.runner if isinstance(drafting, DraftModel) else None
        made = runner.count if isinstance(runner, MockRunner) else 0
        return clock + made * drafting_cost

    speculation = Speculation(drafting.drafters(), clock=now)
    tokens = [*prompt, text[0]]
    began = now()
    while len(tokens) - len(prompt) < len(text):
        done = len(tokens) - len(prompt)
        guesses = speculation.propose(tokens, len(text) - done - 1)
        right = 0
        while right < len(guesses) and guesses[right] == text[done + right]:
            right += 1
        rows = others + 1 + len(guesses)
        clock += cost(rows)
        tokens += text[done : done + right + 1]
        speculation.observe(len(guesses), right, rows, cost(rows) * noise(chance, steps))
        steps += 1
    speculation.close()
    assert tokens[len(prompt) :] == list(text)
    return cost(others + 1) * (len(text) - 1) / (now() - began)


def words(count: int, seed: int) -> list[int]:
    """Tokens as frequent as words are, in no order: pairs come again, sentences do not."""
    chance = random.Random(seed)
    return [min(int(chance.paretovariate(0.7)), 5000) for _ in range(count)]


def quiet(chance: random.Random, step: int) -> float:
    return 1.0


def noisy(chance: random.Random, step: int) -> float:
    """A few percent up, and every fiftieth step many times as long."""
    return (1 + abs(chance.gauss(0, 0.05))) * (20 if chance.random() < 0.02 else 1)


def contended(chance: random.Random, step: int) -> float:
    """Somebody else has the cores for thirty steps, goes, and comes back."""
    return chance.uniform(5, 30) if step // 30 % 2 else noisy(chance, step)


NOISES = [quiet, noisy, contended]


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize(("cost", "least"), [(cpu, 1.5), (gpu, 6), (kernels, 3)])
def test_a_text_that_repeats_its_prompt_is_decoded_faster(
    cost: Cost, least: float, noise: Callable[[random.Random, int], float]
) -> None:
    passage = words(250, seed=1)

    assert speedup(PromptLookup(), passage, passage, cost, noise=noise) >= least


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("others", [0, 3])
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("cost", [cpu, gpu, kernels])
def test_a_text_that_does_not_repeat_itself_costs_less_than_three_percent(
    cost: Cost, noise: Callable[[random.Random, int], float], others: int, seed: int
) -> None:
    text = words(600, seed)

    ratio = speedup(PromptLookup(), text[:300], text[300:], cost, noise=noise, others=others)

    assert ratio >= 0.97


@pytest.mark.parametrize("cost", [cpu, gpu, kernels])
def test_a_text_that_stops_repeating_itself_loses_no_more_than_it_won(cost: Cost) -> None:
    passage, others = words(100, 1), words(300, 2)

    assert speedup(PromptLookup(), passage, passage + others, cost) >= 1


def test_a_text_that_only_seems_to_repeat_itself_costs_less_than_three_percent() -> None:
    """Each sentence begins as one before it did, and ends differently: matches always mislead."""
    chance = random.Random(1)
    text = [token for _ in range(80) for token in (1, 2, 3, 4, *chance.sample(range(9, 9999), 6))]

    # Four tokens in ten are right, but never two hundred in a row.
    assert speedup(PromptLookup(), text[:10], text[10:], cpu) >= 0.97


def test_lookup_proposes_what_followed_the_longest_match() -> None:
    drafter = LookupDrafter()

    assert drafter.propose([1, 2, 3, 4, 50, 9, 2, 3, 4, 60, 1, 2, 3, 4], 3) == [50, 9, 2]


def test_of_equal_matches_the_latest_counts() -> None:
    assert LookupDrafter().propose([8, 1, 2, 50, 9, 1, 2, 60, 7, 1, 2], 2) == [60, 7]


def test_a_text_that_goes_round_is_guessed_on_beyond_its_end() -> None:
    drafter = LookupDrafter()
    tokens = [5, 6, 7, 5, 6, 7, 5, 6]

    assert drafter.propose(tokens, 8) == [7, 5, 6, 7, 5, 6, 7, 5]


@pytest.mark.parametrize("tokens", [[], [1], [1, 2], [1, 2, 3], [3, 1, 2, 9]])
def test_nothing_is_proposed_where_nothing_matches(tokens: list[int]) -> None:
    drafter = LookupDrafter()

    assert drafter.propose(tokens, 4) == []
    assert list(drafter.odds) == []


def test_the_odds_rise_with_the_match_and_follow_the_text() -> None:
    drafter = LookupDrafter()
    passage = list(range(100, 160))
    drafter.propose([*passage, 100, 101], 1)
    before = drafter.odds[0]
    drafter.propose([*passage, *range(100, 150)], 1)

    assert drafter.odds[0] > before

    misled = LookupDrafter()
    tokens = [1, 2]
    for other in range(10, 40):
        tokens += [other, 1, 2]
        misled.propose(tokens, 1)

    assert misled.odds[0] < 0.2


@given(
    text=st.lists(st.integers(0, 3), max_size=60),
    steps=st.lists(st.integers(1, 5), min_size=1),
    most=st.integers(1, 9),
)
def test_lookup_read_in_pieces_or_at_once_guesses_a_match(
    text: list[int], steps: list[int], most: int
) -> None:
    """What is guessed first always stands behind an earlier place of the last two tokens, and is
    guessed whenever there is one."""
    drafter = LookupDrafter()
    at = 0
    for step in steps:
        at += step
        tokens = text[:at]
        guesses = drafter.propose(tokens, most)
        followers = {
            tokens[place]
            for place in range(2, len(tokens))
            if tokens[place - 2 : place] == tokens[-2:]
        }
        assert (guesses[0] in followers) if followers else guesses == []
        assert len(guesses) in {0, most}
        assert len(drafter.odds) == len(guesses)


def test_odds_go_from_what_is_believed_to_what_is_seen_and_forget() -> None:
    odds = Odds((0.5, 0.9))
    assert odds[0] == pytest.approx(0.5)

    for _ in range(60):
        odds.learn(0, False)
    assert odds[0] < 0.15
    assert odds[1] == pytest.approx(0.9)

    for _ in range(120):
        odds.learn(0, True)
    assert odds[0] > 0.9


def test_costs_between_and_beyond_those_seen_lie_on_a_line() -> None:
    costs = RowCosts()
    assert costs.seconds(1) is None

    costs.observe(2, 10.0)
    assert costs.seconds(1) == pytest.approx(10)
    costs.observe(6, 30.0)

    assert [costs.seconds(rows) for rows in (2, 4, 6, 8)] == pytest.approx([10, 20, 30, 40])


def test_one_slow_step_is_no_cost() -> None:
    costs = RowCosts()
    for seconds in (1.0, 1.0, 50.0, 1.0):
        costs.observe(1, seconds)

    assert costs.seconds(1) == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "cost", "others", "odds", "expected"),
    [
        ("rows are free, guesses are good", gpu, 0, [0.9] * 8, 8),
        ("rows are free, guesses are poor", gpu, 0, [0.3] * 8, range(1, 9)),
        ("rows cost, guesses are sure", cpu, 0, [0.99] * 24, range(10, 25)),
        ("rows cost, guesses are poor", cpu, 0, [0.5] * 8, 0),
        ("rows cost, guesses get poor", cpu, 0, [0.99] * 6 + [0.2] * 8, 6),
        ("among others rows cost as much as theirs", cpu, 7, [0.5] * 8, 0),
        ("no guess at all", gpu, 0, [], 0),
    ],
)
def test_the_number_of_guesses_is_what_promises_most_tokens_a_second(
    name: str, cost: Cost, others: int, odds: list[float], expected: int | range
) -> None:
    costs = RowCosts()
    for rows in range(1, 40):
        costs.observe(rows, cost(rows))
    pace = Pace(costs)
    pace.observe(0, 0, others, cost(1 + others))

    chosen = pace.length(24, odds)

    assert chosen in expected if isinstance(expected, range) else chosen == expected, name


def test_where_nothing_is_known_of_costs_nothing_is_guessed() -> None:
    assert Pace(RowCosts()).length(8, [0.99] * 8) == 0


def test_guesses_that_do_not_pay_are_tried_again_ever_more_rarely() -> None:
    costs = RowCosts()
    pace = Pace(costs)
    tried = []
    for step in range(2000):
        count = pace.length(8, [0.7] * 8)
        if count:
            tried.append(step)
        # Steps with guesses take ten times as long, and none is right.
        costs.observe(1 + count, 10.0 if count else 1.0)
        pace.observe(count, 0, 0, 10.0 if count else 1.0)

    waits = [later - earlier for earlier, later in pairwise(tried)]
    assert 3 <= len(tried) <= 12
    assert waits[-1] > 8 * waits[0]


def test_guesses_that_have_become_cheap_are_made_again() -> None:
    costs = RowCosts()
    pace = Pace(costs)
    drafted = 0
    for step in range(800):
        busy = step < 200
        count = pace.length(8, [0.95] * 8)
        seconds = 1.0 + count * (3.0 if busy else 0.01)
        costs.observe(1 + count, seconds)
        pace.observe(count, count, 0, seconds)
        drafted += 0 if busy else count

    assert drafted > 800


class Counting(MockRunner):
    """Says the number after the last one."""

    def _row(self, timeline: Timeline) -> NDArray[np.float32]:
        row = np.zeros(VOCABULARY_SIZE, np.float32)
        row[(timeline.tokens[-1] + 1) % 200] = CERTAIN
        return row


def test_a_draft_model_that_agrees_pays_where_it_is_fast() -> None:
    text = [at % 200 for at in range(190)]
    draft = DraftModel(Counting())
    draft.start(draft.runner.vocabulary())

    assert speedup(draft, [199], text, gpu, drafting_cost=0.5) >= 4


@pytest.mark.parametrize("drafting_cost", [0.5, 8.0, 40.0])
def test_a_draft_model_that_does_not_agree_is_switched_off(drafting_cost: float) -> None:
    draft = DraftModel(MockRunner("never what comes " * 40, n_ctx=4096))
    draft.start(draft.runner.vocabulary())
    text = words(1500, seed=3)

    assert (
        speedup(draft, [BOS], [token % 250 for token in text], cpu, drafting_cost=drafting_cost)
        >= 0.9
    )


def drafted(runner: MockRunner) -> tuple[DraftModel, list[int]]:
    draft = DraftModel(runner)
    draft.start(runner.vocabulary())
    return draft, encode("say: ")


def test_a_draft_model_proposes_its_own_continuation() -> None:
    draft, prompt = drafted(MockRunner("abcdefgh"))
    (drafter,) = draft.drafters()

    assert drafter.propose(prompt, 4) == encode("abcd")
    assert all(odds > 0.9 for odds in drafter.odds)

    # Two were right; what came then is its own text's end.
    assert drafter.propose([*prompt, *encode("abX")], 3) == encode("abc")


def test_a_draft_model_reads_a_long_prompt_in_steps() -> None:
    runner = MockRunner("abcdefgh", max_tokens=16)
    draft, _ = drafted(runner)
    (drafter,) = draft.drafters()
    prompt = encode("x" * 40)

    assert drafter.propose(prompt, 2) == []
    assert drafter.propose(prompt, 2) == []
    assert drafter.propose(prompt, 2) == encode("ab")
    assert [len(fed) for fed in runner.fed] == [16, 16, 8, 1]


def test_a_draft_model_stops_where_it_is_not_sure() -> None:
    draft, prompt = drafted(MockRunner())

    assert draft.drafters()[0].propose(prompt, 4) == []


def test_a_draft_runner_that_keeps_less_than_asked_reads_it_again() -> None:
    runner = MockRunner("abcdefgh", keep=lambda length: length // 2)
    draft, prompt = drafted(runner)
    (drafter,) = draft.drafters()
    drafter.propose(prompt, 4)
    tokens = [*prompt, *encode("aXY")]
    drafter.propose(tokens, 1)

    held = next(iter(runner.held.values()))
    assert held[: len(tokens)] == tokens


def test_without_a_seat_nothing_is_proposed_until_one_is_free() -> None:
    draft, prompt = drafted(MockRunner("abc", max_sequences=1))
    (first,), (second,) = draft.drafters(), draft.drafters()
    first.propose(prompt, 2)

    assert second.propose(prompt, 2) == []
    first.close()
    assert second.propose(prompt, 2) == encode("ab")


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_draft_model_that_fails_proposes_nothing_more_and_gives_its_seat_back(
    failing: int,
) -> None:
    runner = MockRunner("abcdefgh", fails={failing})
    draft, prompt = drafted(runner)
    (drafter,) = draft.drafters()

    assert drafter.propose(prompt, 4) == []
    assert list(drafter.odds) == []
    assert drafter.propose([*prompt, 97], 4) == []
    assert runner.held == {}


def test_beyond_its_context_a_draft_model_proposes_nothing() -> None:
    draft, prompt = drafted(MockRunner("abcdefgh", n_ctx=8))
    (drafter,) = draft.drafters()

    assert drafter.propose(prompt, 9) == encode("abc")
    assert drafter.propose([*prompt, *encode("abc")], 9) == []


def test_an_id_that_the_target_lacks_is_never_proposed() -> None:
    runner = MockRunner("ab\x7fcd")
    draft = DraftModel(runner)
    draft.start(runner.vocabulary())
    draft.size = 0x7F

    assert draft.drafters()[0].propose(encode("say: "), 4) == encode("ab")


VOCABULARY = Vocabulary(
    tokens=(b"a", b"b", b"", b""),
    bos=None,
    eos=2,
    end=frozenset({2}),
    add_bos=False,
    names={2: "<end>"},
)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (VOCABULARY, None),
        (replace(VOCABULARY, tokens=(*VOCABULARY.tokens, b"", b"")), None),
        (replace(VOCABULARY, bos=1, add_bos=True), None),
        (replace(VOCABULARY, tokens=(b"a", b"c", b"", b"")), "token 1 is b'c'"),
        (replace(VOCABULARY, names={2: "<stop>"}), "token 2 is '<stop>'"),
        (replace(VOCABULARY, end=frozenset({2, 3})), r"turns end with \[2, 3\]"),
        (replace(VOCABULARY, tokens=VOCABULARY.tokens + (b"",) * 500), "504 tokens"),
    ],
)
def test_vocabularies_fit_where_the_ids_mean_the_same(
    other: Vocabulary, reason: str | None
) -> None:
    problem = compatible(VOCABULARY, other)

    if reason is None:
        assert problem is None
    else:
        with pytest.raises(AssertionError, match=reason):
            raise AssertionError(problem)


def test_a_draft_model_of_another_vocabulary_is_refused() -> None:
    draft = DraftModel(MockRunner("abc"))

    with pytest.raises(UsageError, match="--draft"):
        draft.start(VOCABULARY)


def test_a_draft_model_that_tells_no_vocabulary_is_an_engine_error() -> None:
    class Silent(MockRunner):
        def vocabulary(self) -> Vocabulary:
            raise EngineError("no vocabulary")

    with pytest.raises(EngineError, match="no vocabulary"):
        DraftModel(Silent()).start(VOCABULARY)


def test_the_text_is_asked_first_and_the_model_where_it_knows_better() -> None:
    runner = MockRunner(echo)
    both = Both(PromptLookup(), DraftModel(runner))
    both.start(runner.vocabulary())
    costs = RowCosts()
    for rows in range(1, 40):
        costs.observe(rows, gpu(rows))
    speculation = Speculation(both.drafters(), costs)
    passage = encode("a text that is as long as it is different")

    sure = speculation.propose([*passage, *passage[:34]], 4)
    assert sure == passage[34:38]
    assert runner.count == 0

    # Nothing here has come by before.
    fresh = speculation.propose([*passage, *passage[:34], *encode("#%")], 4)
    assert runner.count > 0
    assert len(fresh) == 4
    speculation.close()
    both.close()
    assert runner.closed


def test_no_step_has_more_guesses_than_others_can_wait_for() -> None:
    costs = RowCosts()
    costs.observe(1, 1.0)
    costs.observe(100, 1.0)
    speculation = Speculation(PromptLookup().drafters(), costs)

    assert len(speculation.propose([1, 2, 3] * 40, 1000)) == MOST


def test_what_slows_all_steps_makes_no_number_of_rows_dear() -> None:
    costs = RowCosts()
    for rows in (1, 5) * 9:
        costs.observe(rows, float(rows))
    for _ in range(4):
        costs.observe(1, 30.0)

    assert costs.seconds(5) == pytest.approx(150)

    for _ in range(4):
        costs.observe(5, 5.0)

    assert costs.seconds(1) == pytest.approx(1)


def test_more_rows_never_cost_less_than_fewer() -> None:
    costs = RowCosts()
    costs.observe(1, 10.0)
    costs.observe(2, 4.0)

    assert costs.seconds(2) == pytest.approx(10)


def test_of_a_machine_that_is_not_quiet_little_is_believed() -> None:
    costs = RowCosts()
    for seconds in (1.0, 9.0, 2.0, 7.0, 1.0, 5.0):
        costs.observe(1, seconds)
    costs.observe(3, 2.0)
    usual, most = costs.seconds(3), costs.at_most(3)

    assert usual is not None
    assert most is not None
    assert most > 1.3 * usual
