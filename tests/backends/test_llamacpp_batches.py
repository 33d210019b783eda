"""What is computed beside a sequence changes nothing of it: not a bit of its logits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from localrun.engine.runner import BatchItem, ForwardAborted, ModelRunner, SequenceId
from localrun.errors import EngineError

Rows = NDArray[np.float32]
LoadModel = Callable[..., ModelRunner]
STREAMS = 8
GENERATED = 96

QUESTIONS = (
    "Write a short story about a lighthouse keeper who finds a letter.",
    "Explain how a bicycle stays upright to a child of ten.",
    "Give me a recipe for lentil soup and say why each spice matters.",
    "What were the causes of the French Revolution?",
    "Write a Python function that merges two sorted lists.",
    "Describe how water goes round between sea, air and land.",
    "Plan three days in Lisbon for a family with two small children.",
    "How do vaccines work, and why do some of them need to be repeated?",
)
NOTES = (
    "The harbour was built in 1823, when the old one had filled with sand. Its wall is {} metres "
    "long. Ships of {} tons came in at high water; {} men unloaded them by hand, and the town grew "
    "by {} houses every year until the railway came. "
)


@pytest.fixture(scope="module")
def streams(load_model: LoadModel) -> Iterator[ModelRunner]:
    """As a plan for several streams on a CPU has it."""
    runner = load_model(n_ctx=512, ubatch=256, parallel=STREAMS, flash=False)
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def prompts(streams: ModelRunner) -> list[list[int]]:
    """Chats, every third with notes, so that its answer passes 256 tokens."""
    found = []
    for at, question in enumerate(QUESTIONS):
        notes = NOTES.format(at, at * 7, at * 31, at + 2) * (3 if at % 3 == 1 else 0)
        text = f"<|im_start|>user\n{notes}{question}<|im_end|>\n<|im_start|>assistant\n"
        found.append(streams.tokenize(text, add_special=False, parse_special=True))
    assert max(map(len, found)) > 220
    return found


@pytest.fixture
def held(streams: ModelRunner) -> Iterator[list[SequenceId]]:
    """All sequences of ``streams``, empty."""
    sequences = [streams.new_sequence() for _ in range(STREAMS)]
    yield sequences
    for sequence in sequences:
        streams.free(sequence)


def step(runner: ModelRunner, items: Sequence[BatchItem]) -> Rows:
    return runner.forward(items).numpy().copy()


def pieces(tokens: Sequence[int], size: int) -> list[list[int]]:
    """Of ``size`` tokens; none of one token, which is computed as an answer's tokens are."""
    ends = [*range(0, len(tokens) - 1, size), len(tokens)]
    return [list(tokens[start:end]) for start, end in pairwise(ends)]


def answered(runner: ModelRunner, sequence: SequenceId, prompt: Sequence[int]) -> list[Rows]:
    """The logits of each step of a greedy answer to a prompt that is read whole."""
    rows = [step(runner, [BatchItem(sequence, part)])[-1] for part in pieces(prompt, 256)][-1:]
    while len(rows) < GENERATED:
        rows.append(step(runner, [BatchItem(sequence, [int(rows[-1].argmax())])])[-1])
    return rows


def answered_together(
    runner: ModelRunner, sequences: Sequence[SequenceId], prompts: Sequence[Sequence[int]]
) -> list[list[Rows]]:
    """All at once: prompts in pieces of different sizes, read while others already answer."""
    sizes = (256, 7, 64, 31, 100, 2, 65, 16)
    unread = [pieces(prompt, size) for prompt, size in zip(prompts, sizes, strict=True)]
    rows: list[list[Rows]] = [[] for _ in prompts]
    while any(len(each) < GENERATED for each in rows):
        works: list[tuple[int, BatchItem]] = []
        reading = next((at for at, parts in enumerate(unread) if parts), None)
        for at, sequence in enumerate(sequences):
            if at == reading:
                wanted = "last" if len(unread[at]) == 1 else "none"
                works.append((at, BatchItem(sequence, unread[at].pop(0), wanted)))
            elif rows[at] and len(rows[at]) < GENERATED:
                works.append((at, BatchItem(sequence, [int(rows[at][-1].argmax())])))
        made = iter(step(runner, [item for _, item in works]))
        for at, item in works:
            if item.logits == "last":
                rows[at].append(next(made))
    return rows


def test_answers_of_eight_streams_are_those_of_each_alone(
    streams: ModelRunner, held: list[SequenceId], prompts: list[list[int]]
) -> None:
    together = answered_together(streams, held, prompts)
    for at, sequence in enumerate(held):
        streams.truncate(sequence, 0)
        alone = answered(streams, held[0], prompts[at])
        streams.truncate(held[0], 0)
        assert [int(row.argmax()) for row in together[at]] == [int(row.argmax()) for row in alone]
        np.testing.assert_array_equal(together[at][-1], alone[-1])


def test_a_short_cache_that_is_shared_gives_the_same_answers(load_model: LoadModel) -> None:
    """One stream: bits stay as they are while all that is held is within 256 tokens."""
    runner = load_model(n_ctx=256, ubatch=64)
    prompts = [
        runner.tokenize(question, add_special=False, parse_special=False)
        for question in QUESTIONS[:3]
    ]
    sequences = [runner.new_sequence() for _ in prompts]
    together = [
        [step(runner, [BatchItem(sequence, prompt)])[-1]]
        for sequence, prompt in zip(sequences, prompts, strict=True)
    ]
    for _ in range(40):
        items = [
            BatchItem(sequence, [int(rows[-1].argmax())])
            for sequence, rows in zip(sequences, together, strict=True)
        ]
        for rows, row in zip(together, step(runner, items), strict=True):
            rows.append(row)
    for sequence in sequences:
        runner.free(sequence)
    for prompt, expected in zip(prompts, together, strict=True):
        sequence = runner.new_sequence()
        row = step(runner, [BatchItem(sequence, prompt)])[-1]
        for expected_row in expected[:-1]:
            np.testing.assert_array_equal(row, expected_row)
            row = step(runner, [BatchItem(sequence, [int(row.argmax())])])[-1]
        runner.free(sequence)
    runner.close()


def warm_by_truncating(runner: ModelRunner, prompt: list[int], cut: int) -> SequenceId:
    sequence = runner.new_sequence()
    step(runner, [BatchItem(sequence, [*prompt[:cut], 5, 6, 7])])
    assert runner.truncate(sequence, cut) == cut
    return sequence


def warm_by_forking(runner: ModelRunner, prompt: list[int], cut: int) -> SequenceId:
    sequence = runner.new_sequence()
    step(runner, [BatchItem(sequence, [*prompt[:cut], 5, 6, 7])])
    copy = runner.fork(sequence)
    assert runner.truncate(copy, cut) == cut
    step(runner, [BatchItem(sequence, [8, 9])])
    return copy


def warm_by_restoring(runner: ModelRunner, prompt: list[int], cut: int) -> SequenceId:
    sequence = runner.new_sequence()
    step(runner, [BatchItem(sequence, prompt[:cut])])
    state = runner.save(sequence)
    runner.free(sequence)
    other = runner.new_sequence()
    step(runner, [BatchItem(other, [3, 4, 5])])
    return runner.restore(state)


@pytest.mark.parametrize("warm", [warm_by_truncating, warm_by_forking, warm_by_restoring])
def test_a_prefix_that_is_reused_gives_the_logits_of_one_that_is_computed(
    streams: ModelRunner,
    prompts: list[list[int]],
    warm: Callable[[ModelRunner, list[int], int], SequenceId],
) -> None:
    prompt = prompts[1][:150]
    cold = streams.new_sequence()
    expected = step(streams, [BatchItem(cold, prompt)])[-1]
    streams.free(cold)
    beside = streams.new_sequence()
    sequence = warm(streams, prompt, 83)
    rows = step(streams, [BatchItem(sequence, prompt[83:]), BatchItem(beside, prompt[:40], "none")])
    np.testing.assert_array_equal(rows[-1], expected)
    for at in range(STREAMS):
        free_if_held(streams, SequenceId(at))


def free_if_held(runner: ModelRunner, sequence: SequenceId) -> None:
    try:
        runner.free(sequence)
    except EngineError as error:
        assert "does not exist" in str(error)  # noqa: PT017  what is told of one that is free


def test_rows_are_in_the_order_asked_for_however_a_step_is_split(
    streams: ModelRunner, held: list[SequenceId], prompts: list[list[int]]
) -> None:
    """Streams are computed in their order, with gaps apart and the longest at the end."""
    asked: list[tuple[int, int, str]] = [
        (6, 5, "all"),
        (0, 40, "last"),
        (3, 9, "none"),
        (2, 3, "all"),
        (7, 2, "last"),
        (1, 30, "all"),
    ]
    items = [BatchItem(held[at], prompts[at][:count], wanted) for at, count, wanted in asked]
    rows = step(streams, items)
    for sequence in held:
        streams.truncate(sequence, 0)
    expected = [step(streams, [item]) for item in items if item.logits != "none"]
    assert len(rows) == 5 + 1 + 3 + 1 + 30
    np.testing.assert_array_equal(rows, np.concatenate(expected))


def lengths(runner: ModelRunner, sequences: Sequence[SequenceId]) -> list[int]:
    return [runner.truncate(sequence, 10_000) for sequence in sequences]


@pytest.fixture(params=[1, STREAMS], ids=["one stream", "eight streams"])
def four(
    request: pytest.FixtureRequest, load_model: LoadModel
) -> Iterator[tuple[ModelRunner, list[SequenceId]]]:
    """Four sequences that hold ten tokens and more."""
    parallel = request.param
    runner = load_model(n_ctx=2048, ubatch=2048, parallel=parallel, flash=parallel == 1)
    sequences = [runner.new_sequence() for _ in range(4)]
    for at, sequence in enumerate(sequences):
        runner.forward([BatchItem(sequence, list(range(100, 110 + at)))])
    yield runner, sequences
    runner.close()


def next_rows(runner: ModelRunner, sequences: Sequence[SequenceId]) -> Rows:
    rows = step(runner, [BatchItem(sequence, [42]) for sequence in sequences])
    for sequence in sequences:
        runner.rollback(sequence, 1)
    return rows


def test_an_abort_cuts_every_sequence_of_the_step_back(
    four: tuple[ModelRunner, list[SequenceId]],
) -> None:
    """The long prompt is a pass of its own after a first one for all of them."""
    runner, sequences = four
    expected, before = next_rows(runner, sequences), lengths(runner, sequences)
    items = [BatchItem(sequence, [7]) for sequence in sequences[:3]]
    items.insert(1, BatchItem(sequences[3], [9] * 1500))
    done = threading.Event()

    def abort_until_done() -> None:
        while not done.is_set():
            runner.abort()

    aborter = threading.Thread(target=abort_until_done)
    aborter.start()
    try:
        with pytest.raises(ForwardAborted):
            runner.forward(items)
    finally:
        done.set()
        aborter.join()
    assert lengths(runner, sequences) == before
    np.testing.assert_array_equal(next_rows(runner, sequences), expected)


def test_a_step_that_fails_leaves_all_its_sequences_as_they_were(
    four: tuple[ModelRunner, list[SequenceId]],
) -> None:
    runner, sequences = four
    expected, before = next_rows(runner, sequences), lengths(runner, sequences)
    good = [BatchItem(sequence, [7, 8, 9], "all") for sequence in sequences[:3]]
    bad = {
        "a token that the vocabulary has not": BatchItem(sequences[3], [5, 10_000_000]),
        "no token": BatchItem(sequences[3], []),
        "a sequence that is not there": BatchItem(SequenceId(99), [5]),
        "more than a context": BatchItem(sequences[3], [5] * 2040),
    }
    for item in bad.values():
        with pytest.raises(EngineError):
            runner.forward([*good, item])
        assert lengths(runner, sequences) == before
    np.testing.assert_array_equal(next_rows(runner, sequences), expected)
    assert runner.forward(good).rows == 9


def test_drafts_are_taken_back_to_where_they_began(
    four: tuple[ModelRunner, list[SequenceId]],
) -> None:
    runner, sequences = four
    expected = next_rows(runner, sequences)
    for sequence in sequences:
        runner.checkpoint(sequence)
    drafts = [BatchItem(sequence, [11] * (at + 3), "all") for at, sequence in enumerate(sequences)]
    assert runner.forward(drafts).rows == 3 + 4 + 5 + 6
    for at, sequence in enumerate(sequences):
        runner.rollback(sequence, at + 3)
    np.testing.assert_array_equal(next_rows(runner, sequences), expected)
