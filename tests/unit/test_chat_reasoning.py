"""Reasoning and text are told apart, however the stream is cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localrun.chat.reasoning import for_template

THINK = "{{ '<think>' }}{{ '</think>' }}"
HARMONY = "<|start|>{{ x }}<|channel|>analysis<|message|>…<|end|>"
CHANNELS = (
    "<|channel|>analysis<|message|>Let me see.<|end|>"
    "<|start|>assistant<|channel|>final<|message|>Paris."
)


def split(template: str | None, tail: str, chunks: list[str]) -> tuple[str, str]:
    """All reasoning and all text of an answer that comes in ``chunks``."""
    splitter = for_template(template, tail)
    pieces = [piece for chunk in chunks for piece in splitter.feed(chunk)] + splitter.finish()
    assert all(piece.text for piece in pieces)
    return (
        "".join(piece.text for piece in pieces if piece.kind == "reasoning"),
        "".join(piece.text for piece in pieces if piece.kind == "text"),
    )


CASES: dict[str, tuple[str | None, str, str, tuple[str, str]]] = {
    "no template": (None, "", "<think>a</think>b", ("", "<think>a</think>b")),
    "a template without marks": ("x", "", "<think>a</think>b", ("", "<think>a</think>b")),
    "no reasoning": (THINK, "", "just text", ("", "just text")),
    "leading white space is the text's": (THINK, "", "\n  text\n", ("", "\n  text\n")),
    "reasoning": (THINK, "", "<think>\nhm\n</think>\n\nyes", ("hm", "yes")),
    "white space before it": (THINK, "", "\n<think>hm</think>yes", ("hm", "yes")),
    "opened by the prompt": (THINK, "assistant\n<think>\n", "hm\n</think>\n\nyes", ("hm", "yes")),
    "closed by the prompt": (THINK, "<think>\n\n</think>\n\n", "yes", ("", "yes")),
    "a mark of the user's": (THINK, "say <think> please<|end|>assistant", "yes", ("", "yes")),
    "empty reasoning": (THINK, "", "<think>\n\n</think>\n\nyes", ("", "yes")),
    "no end": (THINK, "", "<think>\nhm hm\n", ("hm hm", "")),
    "cut in the closing mark": (THINK, "<think>", "hm</thi", ("hm</thi", "")),
    "cut in the opening mark": (THINK, "", "<thi", ("", "<thi")),
    "almost a mark": (THINK, "<think>", "a </thin b </think>c", ("a </thin b", "c")),
    "marks later are text": (THINK, "", "use <think>x</think>", ("", "use <think>x</think>")),
    "a second block is text": (
        THINK, "", "<think>a</think>b<think>c</think>", ("a", "b<think>c</think>"),
    ),
    "inner white space is kept": (THINK, "<think>", "a\n\n  b\n</think>\nc", ("a\n\n  b", "c")),
    "indented answers stay so": (THINK, "<think>", "a</think>\n\n    b", ("a", "    b")),
    "only the closing mark named": ("'</think>' in content", "<think>\n", "a</think>b", ("a", "b")),
    "Mistral": ("[THINK]", "", "[THINK]a[/THINK]b", ("a", "b")),
    "Gemma 4": ("<|channel>thought", "", "<|channel>thought\na\n<channel|>b", ("a", "b")),
    "Cohere": ("<|START_THINKING|>", "", "<|START_THINKING|>a<|END_THINKING|>b", ("a", "b")),
    "Seed-OSS": ("<seed:think>", "", "<seed:think>a</seed:think>b", ("a", "b")),
    "Kimi-VL": ("◁think▷", "", "◁think▷a◁/think▷b", ("a", "b")),
    "harmony": (HARMONY, "<|start|>assistant", CHANNELS, ("Let me see.", "Paris.")),
    "harmony without reasoning": (
        HARMONY, "<|start|>assistant", "<|channel|>final<|message|>Paris.", ("", "Paris."),
    ),
    "harmony opened by the prompt": (
        HARMONY, "<|start|>assistant<|channel|>analysis<|message|>", "a<|end|>", ("a", ""),
    ),
    "harmony, two thoughts": (
        HARMONY,
        "<|start|>assistant",
        "<|channel|>analysis<|message|>a<|channel|>analysis<|message|>b<|end|>"
        "<|start|>assistant<|channel|>commentary<|message|>c<|return|>",
        ("ab", "c"),
    ),
    "harmony that never opens a channel": (HARMONY, "<|start|>assistant", "Paris.", ("", "Paris.")),
    "harmony that is no header at all": (HARMONY, "<|start|>assistant", "é" * 300, ("", "é" * 300)),
    "harmony whose channel never gets a message": (
        HARMONY, "<|start|>assistant", "<|channel|>" + "é" * 600, ("", "<|channel|>" + "é" * 600),
    ),
    "harmony, a long header after text": (
        HARMONY,
        "<|start|>assistant<|channel|>final<|message|>",
        "Paris.<|channel|>" + "é" * 300,
        ("", "Paris.<|channel|>" + "é" * 300),
    ),
    "harmony cut in a header": (HARMONY, "<|start|>assistant", "<|channel|>ana", ("", "")),
}  # fmt: skip


@pytest.mark.parametrize(("template", "tail", "answer", "expected"), CASES.values(), ids=CASES)
def test_an_answer_is_split(
    template: str | None, tail: str, answer: str, expected: tuple[str, str]
) -> None:
    assert split(template, tail, [answer]) == expected
    assert split(template, tail, list(answer)) == expected


ANSWERS = st.lists(
    st.sampled_from(
        ["<think>", "</think>", "<|channel|>", "<|message|>", "<|end|>", "<|start|>", "analysis",
         "final", "<", "</", "<|", "think>", "a", " ", "\n", "é" * 130]
    ),
    max_size=12,
).map("".join)  # fmt: skip


@given(
    template=st.sampled_from([None, THINK, HARMONY]),
    tail=st.sampled_from(["", "<think>\n", "<|start|>assistant"]),
    answer=ANSWERS,
    cuts=st.lists(st.integers(0, 400), max_size=8),
)
def test_how_the_stream_is_cut_changes_nothing(
    template: str | None, tail: str, answer: str, cuts: list[int]
) -> None:
    edges = [0, *sorted(min(cut, len(answer)) for cut in cuts), len(answer)]
    chunks = [answer[a:b] for a, b in pairwise(edges)]

    assert split(template, tail, chunks) == split(template, tail, [answer])
    assert split(template, tail, list(answer)) == split(template, tail, [answer])


def test_text_is_handed_on_as_soon_as_it_is_certain() -> None:
    splitter = for_template(THINK, "<think>")

    seen = [[piece.text for piece in splitter.feed(chunk)] for chunk in ("ab", " c</th", "ink>d")]

    assert seen == [["ab"], [" c"], ["d"]]
