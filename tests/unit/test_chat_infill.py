"""A gap in a text as the tokens of a model: their order, and what is left out for want of room."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localrun.chat.infill import gap_tokens
from localrun.chat.messages import Gap, Snippet
from localrun.engine.runner import FillInMiddle
from localrun.errors import ContextLengthError, RequestError
from tests.fake_chat import FIM, INFO

PRE, SUF, MID, REPO, FILE, BOS = 1001, 1002, 1003, 1004, 1005, 1000
NAMES = {PRE: "<pre>", SUF: "<suf>", MID: "<mid>", REPO: "<repo>", FILE: "<file>", BOS: "<s>"}
MARKED = replace(INFO, add_bos=False, n_ctx=1000)
BARE = replace(MARKED, fim=FillInMiddle(PRE, SUF, MID))


async def tokenize(text: str) -> list[int]:
    return list(text.encode())


def shown(tokens: list[int]) -> str:
    parts = (NAMES[token].encode() if token in NAMES else bytes([token]) for token in tokens)
    return b"".join(parts).decode()


async def asked(gap: Gap, info: object = MARKED, room: int = 8) -> str:
    return shown(await gap_tokens(gap, info, tokenize, room=room))  # type: ignore[arg-type]  # a fake of the one call


async def test_what_stands_behind_the_gap_comes_before_the_mark_of_the_middle() -> None:
    assert await asked(Gap("def f(", "):\n")) == "<pre>def f(<suf>):\n<mid>"


async def test_how_the_gap_begins_already_stands_at_the_end_of_the_prefix() -> None:
    assert await asked(Gap("a\n", "b", begun="    re")) == "<pre>a\n    re<suf>b<mid>"


async def test_prefix_and_beginning_are_tokenized_as_one_text() -> None:
    texts: list[str] = []

    async def listening(text: str) -> list[int]:
        texts.append(text)
        return [1]

    await gap_tokens(Gap("re", "x", begun="turn"), MARKED, listening, room=8)

    assert texts == ["return", "x"]


async def test_an_empty_gap_is_three_marks() -> None:
    assert await asked(Gap("", "")) == "<pre><suf><mid>"


async def test_other_files_come_first_and_the_gap_is_one_more_file() -> None:
    gap = Gap("a", "b", snippets=(Snippet("one", "1.py"), Snippet("two", "2.py")))

    assert await asked(gap) == (
        "<repo>myproject\n<file>1.py\none<file>2.py\ntwo<file>filename\n<pre>a<suf>b<mid>"
    )


async def test_a_snippet_without_a_name_has_one_all_the_same() -> None:
    text = await asked(Gap("a", "b", snippets=(Snippet("one"),)))

    assert text == "<repo>myproject\n<file>tmp\none<file>filename\n<pre>a<suf>b<mid>"


async def test_a_model_without_a_mark_for_files_has_lines_between_them() -> None:
    gap = Gap("a", "b", snippets=(Snippet("one", "1.py"), Snippet("two")))

    assert await asked(gap, BARE) == (
        "\n\n--- 1.py ---\n\none\n\n--- snippet ---\n\ntwo<pre>a<suf>b<mid>"
    )


async def test_a_model_without_a_mark_for_repositories_goes_without() -> None:
    info = replace(MARKED, fim=FillInMiddle(PRE, SUF, MID, file=FILE))

    text = await asked(Gap("a", "b", snippets=(Snippet("one", "1.py"),)), info)

    assert text == "<file>1.py\none<file>filename\n<pre>a<suf>b<mid>"


async def test_what_begins_every_text_begins_this_one_too() -> None:
    info = replace(MARKED, add_bos=True, bos_id=BOS)

    assert await asked(Gap("a", "b"), info) == "<s><pre>a<suf>b<mid>"
    assert (await asked(Gap("a", "b", snippets=(Snippet("x"),)), info)).startswith("<s><repo>")


async def test_the_first_snippets_are_left_out_when_room_is_short() -> None:
    gap = Gap("a", "b", snippets=(Snippet("x" * 40, "far"), Snippet("near", "n")))

    assert await asked(gap, replace(MARKED, n_ctx=60)) == (
        "<repo>myproject\n<file>n\nnear<file>filename\n<pre>a<suf>b<mid>"
    )
    assert await asked(gap, replace(MARKED, n_ctx=30)) == "<pre>a<suf>b<mid>"


async def test_a_snippet_that_nobody_counts_to_its_end_is_left_out() -> None:
    async def refusing(text: str) -> list[int]:
        if len(text) > 100:
            raise ContextLengthError(len(text), 100, at_least=True)
        return await tokenize(text)

    gap = Gap("a", "b", snippets=(Snippet("x" * 200, "long"), Snippet("near", "n")))

    assert shown(await gap_tokens(gap, MARKED, refusing, room=8)) == (
        "<repo>myproject\n<file>n\nnear<file>filename\n<pre>a<suf>b<mid>"
    )


async def test_a_gap_that_is_too_long_is_told_with_both_numbers() -> None:
    with pytest.raises(ContextLengthError, match=r"103 tokens.* 100") as refused:
        await asked(Gap("a" * 60, "b" * 40), replace(MARKED, n_ctx=100))

    assert (refused.value.prompt_tokens, refused.value.n_ctx) == (103, 100)


async def test_a_model_that_fills_nothing_says_which_tokens_it_lacks() -> None:
    with pytest.raises(RequestError, match="prefix, suffix and middle") as refused:
        await asked(Gap("a", "b"), replace(MARKED, fim=None))

    assert refused.value.field == "model"


@given(
    st.lists(st.integers(0, 30), max_size=5),
    st.integers(0, 20),
    st.integers(0, 20),
    st.integers(50, 150),
    st.integers(1, 50),
)
async def test_room_for_the_answer_is_kept_from_snippets(
    sizes: list[int], before: int, behind: int, n_ctx: int, room: int
) -> None:
    snippets = tuple(Snippet("x" * size, str(at)) for at, size in enumerate(sizes))
    gap = Gap("a" * before, "b" * behind, snippets=snippets)
    info = replace(MARKED, n_ctx=n_ctx)
    alone = await gap_tokens(replace(gap, snippets=()), info, tokenize, room=room)

    tokens = await gap_tokens(gap, info, tokenize, room=room)

    assert tokens[-len(alone) :] == alone
    assert tokens == alone or len(tokens) + room <= n_ctx
    if tokens != alone:
        # Of the snippets that are told none between is left out.
        told = [at for at in range(len(sizes)) if f"<file>{at}\n" in shown(tokens)]
        assert told == list(range(told[0], len(sizes)))


def test_the_fake_has_the_marks_that_these_tests_are_of() -> None:
    assert FillInMiddle(PRE, SUF, MID, repository=REPO, file=FILE) == FIM
