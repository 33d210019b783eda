"""Whatever a model writes is read without loss, at once and in one pass."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localrun.chat.tools.declared import declared
from localrun.chat.tools.families import FAMILIES, family_of, takes_tools
from localrun.chat.tools.pieces import Piece
from localrun.chat.tools.reading import closing_mark, reader_for
from localrun.chat.tools.typed import json_of
from tests.transcripts import objects, others
from tests.transcripts.form import TOOLS, function
from tests.transcripts.templates import TEMPLATES

RAW = [
    transcript.raw
    for table in (objects.every() | others.every()).values()
    for transcript in table.values()
]
MARKS = sorted({mark for family in FAMILIES for mark in family.marks})
BITS = [
    *"{}[]()\"'`:,=\\;<>\n 1",
    "```", "```json\n", "get_time", "get_weather(", 'city="', '{"name": "get_time", "arguments": ',
    '"name"', '"arguments"', '{"', '"}', '": ', "null", "call:", "function", "functions.get_time:0",
    "\\u00e9", "\\ud83d", "é", "<function=get_time>", "<parameter=city>", "</parameter>",
    "</function>", '<invoke name="get_time">', "</invoke>", '<｜DSML｜invoke name="plan">',
    '<｜DSML｜parameter name="x" string="true">', "</｜DSML｜parameter>", "</｜DSML｜invoke>",
    "<｜DSML｜tool_calls>", "</｜DSML｜tool_calls>", "<think>", "</think>", "<|channel|>",
    "<|message|>", "<|end|>", "<|call|>", "<|start|>", "assistant", "analysis",
    "commentary to=functions.get_time ", "final",
]  # fmt: skip
# The quote makes a word no key, no name and no value of JSON, which may be left out of an answer.
WORDS = [f'«{number}"»' for number in range(8)]
parts = st.one_of(
    st.sampled_from(MARKS),
    st.sampled_from(BITS),
    st.sampled_from(WORDS),
    st.sampled_from(RAW),
    st.builds(
        lambda raw, start, length: raw[start : start + length],
        st.sampled_from(RAW),
        st.integers(0, 80),
        st.integers(1, 60),
    ),
)
answers = st.lists(parts, max_size=14).map("".join)
families = st.sampled_from(sorted(TEMPLATES))
# An answer that is cut within a call ends in what is neither text nor arguments yet.
ENVELOPE_MAX = 600


def read(template: str | None, chunks: list[str]) -> list[Piece]:
    """The pieces of an answer, neighbours joined."""
    reader = reader_for(template, "", TOOLS)
    pieces = [piece for chunk in chunks for piece in reader.feed(chunk)] + reader.finish()
    joined: list[Piece] = []
    for piece in pieces:
        assert piece.text
        last = joined[-1] if joined else None
        if last and piece.kind != "call" and (last.kind, last.index) == (piece.kind, piece.index):
            joined[-1] = Piece(piece.kind, last.text + piece.text, piece.index)
        else:
            joined.append(piece)
    return joined


@given(family=families, answer=answers, cuts=st.lists(st.integers(0, 400), max_size=6))
def test_how_the_stream_is_cut_changes_nothing(family: str, answer: str, cuts: list[int]) -> None:
    template = TEMPLATES[family]
    edges = [0, *sorted(min(cut, len(answer)) for cut in cuts), len(answer)]
    whole = read(template, [answer])

    assert read(template, [answer[a:b] for a, b in pairwise(edges)]) == whole
    assert read(template, list(answer)) == whole


@given(family=families.filter(lambda family: family != "gpt-oss"), answer=answers)
def test_no_word_is_lost(family: str, answer: str) -> None:
    pieces = read(TEMPLATES[family], [answer])
    shown = " ".join(f"{piece.text} {piece.id}" for piece in pieces)
    cut = bool(pieces) and pieces[-1].kind in {"call", "arguments"}

    certain = answer[: max(len(answer) - ENVELOPE_MAX, 0)] if cut else answer
    for word in WORDS:
        start = word.partition('"')[0]
        assert certain.count(start) <= shown.count(start), word


@given(family=families, answer=answers)
def test_calls_are_numbered_in_their_order_and_arguments_are_the_last_call_s(
    family: str, answer: str
) -> None:
    calls = 0
    for piece in read(TEMPLATES[family], [answer]):
        if piece.kind == "call":
            assert piece.index == calls
            calls += 1
        elif piece.kind == "arguments":
            assert piece.index == calls - 1


@given(answer=answers)
def test_without_tools_nothing_is_a_call(answer: str) -> None:
    for template in TEMPLATES.values():
        reader = reader_for(template, "", ())
        assert {piece.kind for piece in reader.feed(answer) + reader.finish()} <= {
            "text", "reasoning",
        }  # fmt: skip


def test_arguments_are_handed_on_as_they_come() -> None:
    reader = reader_for(TEMPLATES["Hermes"], "", TOOLS)
    chunks = ('<tool_call>\n{"name": "get_', 'time", "arg', 'uments": {"a', '": "b', '"}}', "\n</")

    seen = [[(piece.kind, piece.text) for piece in reader.feed(chunk)] for chunk in chunks]

    assert seen == [
        [],
        [],
        [("call", "get_time"), ("arguments", '{"a')],
        [("arguments", '": "b')],
        [("arguments", '"}')],
        [],
    ]


def test_a_string_without_quotes_is_handed_on_as_it_comes() -> None:
    reader = reader_for(TEMPLATES["Qwen3-Coder"], "", TOOLS)
    chunks = ("<function=write_file>\n<parameter=content>\n", 'a "b"', "\n</par", "t>\n", "c")

    seen = ["".join(piece.text for piece in reader.feed(chunk)) for chunk in chunks]

    assert seen == ['write_file{"content": "', 'a \\"b\\"', "", "\\n</part>", "\\nc"]


def test_text_is_handed_on_as_soon_as_it_is_certain() -> None:
    reader = reader_for(TEMPLATES["Hermes"], "", TOOLS)

    seen = [[piece.text for piece in reader.feed(chunk)] for chunk in ("ab", " c <tool", "s> d")]

    assert seen == [["ab"], [" c"], [" <tools> d"]]


LONG = 200_000
LONG_ANSWERS = {
    "text": ("Hermes", "word " * (LONG // 5)),
    "white space": ("Hermes", " " * LONG),
    "braces": ("Hermes", "{\n" * (LONG // 2)),
    "marks": ("Hermes", "<tool_call>" * (LONG // 11)),
    "half a mark": ("Hermes", "<tool_cal" * (LONG // 9)),
    "arguments first": ("Hermes", '<tool_call>{"arguments": {"a": "' + "x\\n" * (LONG // 3)),
    "deep arguments": ("Mistral, names", "[TOOL_CALLS]f[ARGS]" + '{"a":[' * (LONG // 6)),
    "a long string": ("Qwen3-Coder", "<function=f>\n<parameter=a>\n" + "</param\n" * (LONG // 8)),
    "a long list": ("Qwen3-Coder", "<function=plan>\n<parameter=steps>\n" + "[1],\n" * (LONG // 5)),
    "many calls": ("Llama 3", "[" + "get_time()," * (LONG // 11)),
    "deep Python": ("Llama 3", "[plan(" + "[" * LONG),
    "Gemma's quotes": ("Gemma 4", '<|tool_call>call:f{a:<|"|>' + "<|" * (LONG // 2)),
    "channels": ("gpt-oss", "<|channel|>commentary to=f<|message|>{}<|call|>" * (LONG // 48)),
}  # fmt: skip


@pytest.mark.parametrize("case", LONG_ANSWERS)
@pytest.mark.parametrize("size", [7, 4096])
def test_a_long_answer_is_read_in_one_pass(case: str, size: int) -> None:
    family, answer = LONG_ANSWERS[case]
    chunks = [answer[at : at + size] for at in range(0, len(answer), size)]
    began = time.process_time()

    read(TEMPLATES[family], chunks)

    # A pass takes well below a second; one that starts again and again, minutes.
    assert time.process_time() - began < 10


NAMES = {
    "Hermes": "Hermes", "no template": "Hermes", "Qwen3-Coder": "Qwen3-Coder",
    "MiniMax M2": "MiniMax M2", "GLM": "GLM", "Mistral, lists": "Mistral",
    "Mistral, names": "Mistral", "DeepSeek V3": "DeepSeek V3", "DeepSeek V3.1": "DeepSeek V3",
    "DeepSeek V3.2": "DeepSeek DSML", "DeepSeek V4": "DeepSeek DSML",
    "DeepSeek V4.1": "DeepSeek DSML", "Kimi K2": "Kimi K2", "Llama 3": "Llama",
    "Llama 3.1": "Llama", "Llama 4": "Llama", "LFM2": "Llama", "Phi 4 mini": "lists",
    "Nemotron Nano": "lists", "Command R7B": "lists", "Gemma 3": "Gemma 3",
    "FunctionGemma": "Gemma 4", "Gemma 4": "Gemma 4",
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_family_is_known_by_its_template(name: str) -> None:
    assert family_of(TEMPLATES[name]).name == NAMES[name]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_no_opening_is_the_beginning_of_another(family: object) -> None:
    openings = [each.mark for each in family.openings(declared(TOOLS))]  # type: ignore[attr-defined]

    for mark in openings:
        assert not [each for each in openings if each != mark and each.startswith(mark)]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (None, False),
        ("{{ messages }}", False),
        ("{% if message.tool_calls %}", False),
        ("{% if tools %}", True),
        ("{%- set tools = custom_tools %}", True),
    ],
)
def test_a_template_takes_tools_where_it_names_them(template: str | None, expected: bool) -> None:
    assert takes_tools(template) is expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Hermes", "</tool_call>"),
        ("no template", "</tool_call>"),
        ("gpt-oss", "<|call|>"),
        ("DeepSeek V3.1", "<｜tool▁call▁end｜>"),
        ("Gemma 4", "<tool_call|>"),
        ("FunctionGemma", "<end_function_call>"),
        ("Llama 3", None),
    ],
)
def test_the_text_that_ends_a_call_is_known(name: str, expected: str | None) -> None:
    assert closing_mark(TEMPLATES[name]) == expected


def test_a_reader_sees_the_marks_of_reasoning_and_of_calls() -> None:
    assert set(reader_for(TEMPLATES["Hermes"], "", TOOLS).marks) == {
        "<think>", "</think>", "<tool_call>", "</tool_call>",
    }  # fmt: skip
    assert "<|constrain|>" in reader_for(TEMPLATES["gpt-oss"], "", TOOLS).marks


TYPES = {
    "a type": ({"type": "integer"}, {"integer"}),
    "several": ({"type": ["string", "null"]}, {"string", "null"}),
    "options": ({"anyOf": [{"type": "string"}, {"type": "null"}]}, {"string", "null"}),
    "an option that may be anything": ({"oneOf": [{"type": "string"}, {}]}, set()),
    "a list of values": ({"enum": ["a", 1, None, True]}, {"string", "integer", "null", "boolean"}),
    "one value": ({"const": {"a": 1}}, {"object"}),
    "a reference": ({"$ref": "#/$defs/a~1b"}, {"boolean"}),
    "a reference to nowhere": ({"$ref": "#/$defs/x/y"}, set()),
    "a reference to itself": ({"$ref": "#/$defs/loop"}, set()),
    "properties": ({"properties": {}}, {"object"}),
    "true": (True, set()),
    "nothing": ({}, set()),
}  # fmt: skip


@pytest.mark.parametrize(("schema", "expected"), TYPES.values(), ids=TYPES)
def test_a_schema_says_what_an_argument_may_be(schema: object, expected: set[str]) -> None:
    tool = function("f", a=schema)
    tool["function"]["parameters"]["$defs"] = {
        "a/b": {"type": "boolean"},
        "loop": {"$ref": "#/$defs/loop"},
    }

    assert declared([tool]).types("f", "a") == expected


WHOLE = {
    "a number of 400 digits": ("9" * 400, frozenset({"integer"}), "9" * 400),
    "of 400 digits, where it may be a string": (
        "9" * 400,
        frozenset({"integer", "string"}),
        "9" * 400,
    ),
    "more digits than Python reads": ("9" * 5000, frozenset({"integer"}), f'"{"9" * 5000}"'),
    "beyond doubles": ("1e999", frozenset({"integer", "string"}), '"1e999"'),
    "a whole float": ("2.0", frozenset({"integer", "string"}), "2.0"),
    "a half": ("2.5", frozenset({"integer", "string"}), '"2.5"'),
    "Python's true": ("True", frozenset({"boolean"}), "true"),
}


@pytest.mark.parametrize(("text", "types", "expected"), WHOLE.values(), ids=WHOLE)
def test_an_argument_without_quotes_is_what_its_schema_allows(
    text: str, types: frozenset[str], expected: str
) -> None:
    assert json_of(text, types) == expected
