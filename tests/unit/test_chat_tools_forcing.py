"""A forced call is read back as a whole call, in every family, with arguments of the schema."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from typing import Any

import jsonschema
import numpy as np
import pytest

from localrun.chat.tools.forcing import forced_call
from localrun.chat.tools.pieces import Piece
from localrun.chat.tools.reading import reader_for
from localrun.engine.grammar.compiler import GrammarCompiler, Matcher
from localrun.engine.request import Grammar
from localrun.errors import GrammarError, RequestError
from tests.mock_runner import EOS, MockRunner, encode
from tests.transcripts.form import TOOLS, function
from tests.transcripts.templates import TEMPLATES

VOCABULARY = MockRunner().vocabulary()
QUOTES_AND_ENDS = frozenset(b'"}],')
# What ends a string that has no quotes: drawn by chance, it would never come.
CLOSINGS = ("</parameter>\n", "</arg_value>\n")
TWO = (
    function(
        "get_weather",
        ("city",),
        city={"type": "string", "maxLength": 30},
        days={"type": "integer", "minimum": 0, "maximum": 99},
        unit={"type": "string", "enum": ["celsius", "fahrenheit"]},
        mode={"anyOf": [{"type": "string"}, {"type": "null"}]},
    ),
    function("get-time.v2"),
)
SCHEMAS = {tool["function"]["name"]: tool["function"]["parameters"] for tool in (*TOOLS, *TWO)}
every_family = pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)


@pytest.fixture(scope="module")
def compiler() -> Iterator[GrammarCompiler]:
    made = GrammarCompiler(VOCABULARY, encode, deadline_s=5.0)
    yield made
    made.close()


def allowed(matcher: Matcher) -> list[int]:
    bits = np.unpackbits(matcher.mask().view(np.uint8), bitorder="little")
    return [int(token) for token in np.flatnonzero(bits)]


def draw(matcher: Matcher, source: random.Random, most: int = 6000) -> str:
    """A text of the grammar, by chance, short because what ends something is preferred."""
    text = bytearray()
    plan: list[int] = []
    for _ in range(most):
        if matcher.finished:
            return text.decode()
        tokens = allowed(matcher)
        if not plan and source.random() < 0.2:
            plan = encode(source.choice(CLOSINGS))
        ends = [token for token in tokens if token == EOS or token in QUOTES_AND_ENDS]
        token = source.choice(ends if ends and source.random() < 0.4 else tokens)
        if plan and plan[0] in tokens:
            token = plan.pop(0)
        else:
            plan = []
        matcher.accept(token)
        if token == EOS:
            return text.decode()
        text += VOCABULARY.tokens[token]
    raise AssertionError(f"no end after {most} tokens: {bytes(text)[:200]!r}")


def read(template: str | None, tail: str, text: str, tools: Any = TWO) -> list[Piece]:
    reader = reader_for(template, tail, tools)
    return reader.feed(text) + reader.finish()


def made(pieces: list[Piece]) -> list[tuple[str, Any]]:
    """The calls of an answer that says nothing else."""
    assert {piece.kind for piece in pieces} == {"call", "arguments"}, pieces
    names = [piece.text for piece in pieces if piece.kind == "call"]
    return [
        (name, json.loads("".join(p.text for p in pieces if p.kind != "call" and p.index == index)))
        for index, name in enumerate(names)
    ]


def drawn(
    compiler: GrammarCompiler,
    template: str | None,
    *,
    tools: tuple[Mapping[str, Any], ...] = TWO,
    name: str | None = None,
    parallel: bool = False,
    tail: str = "",
    seed: int = 0,
) -> list[tuple[str, Any]]:
    forced = forced_call(template, tail, tools, name=name, parallel=parallel)
    text = draw(compiler.compile(forced.grammar), random.Random(seed))
    calls = made(read(template, tail, forced.opening + text, tools))
    for called, arguments in calls:
        jsonschema.validate(arguments, SCHEMAS[called])
    return calls


@every_family
def test_a_named_tool_is_called_once(compiler: GrammarCompiler, template: str | None) -> None:
    for seed in range(3):
        calls = drawn(compiler, template, name="get_weather", parallel=True, seed=seed)

        assert [name for name, _ in calls] == ["get_weather"]


@every_family
def test_any_of_two_tools_is_called(compiler: GrammarCompiler, template: str | None) -> None:
    names = {drawn(compiler, template, seed=seed)[0][0] for seed in range(12)}

    assert names == {"get_weather", "get-time.v2"}


@every_family
def test_parallel_calls_are_whole_too(compiler: GrammarCompiler, template: str | None) -> None:
    for seed in range(4):
        assert 1 <= len(drawn(compiler, template, parallel=True, seed=seed)) <= 8


@every_family
def test_schemas_with_definitions_and_several_types_hold(
    compiler: GrammarCompiler, template: str | None
) -> None:
    step = {"type": "object", "properties": {"do": {"type": "string", "enum": ["a", "b"]}}}
    tool = function("plan", ("steps",), steps={"type": "array", "items": {"$ref": "#/$defs/step"}})
    tool["function"]["parameters"]["$defs"] = {"step": step | {"additionalProperties": False}}
    forced = forced_call(template, "", (tool,), name="plan", parallel=False)

    text = draw(compiler.compile(forced.grammar), random.Random(5))
    ((name, arguments),) = made(read(template, "", forced.opening + text, (tool,)))

    assert name == "plan"
    jsonschema.validate(arguments, tool["function"]["parameters"])


def test_several_calls_do_come(compiler: GrammarCompiler) -> None:
    counts = {
        len(drawn(compiler, TEMPLATES["Hermes"], parallel=True, seed=seed)) for seed in range(12)
    }

    assert len(counts) > 1


THINKING = {
    "Hermes": ("<think>\n", "\n</think>\n\n"),
    "Mistral, names": ("[THINK]", "\n[/THINK]\n\n"),
    "Gemma 4": ("<|channel>thought", "\n<channel|>\n\n"),
    "gpt-oss": (
        "<|start|>assistant<|channel|>analysis<|message|>", "<|end|><|start|>assistant",
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", THINKING)
def test_reasoning_that_the_prompt_began_is_closed_first(
    compiler: GrammarCompiler, family: str
) -> None:
    tail, closing = THINKING[family]

    forced = forced_call(TEMPLATES[family], tail, TWO, name=None, parallel=False)

    assert forced.opening.startswith(closing)
    assert drawn(compiler, TEMPLATES[family], tail=tail)


def test_reasoning_that_the_prompt_ended_is_not_closed_again() -> None:
    forced = forced_call(
        TEMPLATES["Hermes"], "<think>\n\n</think>\n\n", TWO, name=None, parallel=False
    )

    assert forced.opening == '<tool_call>\n{"name": "'


@every_family
def test_a_tool_that_is_not_among_tools_cannot_be_forced(template: str | None) -> None:
    with pytest.raises(RequestError, match="tool_choice names 'dance', which is not among tools"):
        forced_call(template, "", TWO, name="dance", parallel=True)


@pytest.mark.parametrize("name", [None, "dance"])
def test_without_tools_nothing_can_be_forced(name: str | None) -> None:
    with pytest.raises(RequestError, match="tools declares no function"):
        forced_call(None, "", (), name=name, parallel=True)


BAD_SCHEMAS: dict[str, Any] = {
    "an unknown type": {"type": "object", "properties": {"a": {"type": "text"}}},
    "a reference to nowhere": {"type": "object", "properties": {"a": {"$ref": "#/$defs/x"}}},
    "a pattern with look-around": {
        "type": "object",
        "properties": {"a": {"type": "array", "items": {"type": "string", "pattern": "(?=a)b"}}},
    },
}


@pytest.mark.parametrize("schema", BAD_SCHEMAS.values(), ids=BAD_SCHEMAS)
@pytest.mark.parametrize("family", ["Hermes", "Qwen3-Coder", "gpt-oss"])
def test_a_schema_that_cannot_be_compiled_is_refused_by_the_compiler(
    compiler: GrammarCompiler, family: str, schema: Any
) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    forced = forced_call(TEMPLATES[family], "", (tool,), name="f", parallel=False)

    with pytest.raises(GrammarError):
        compiler.compile(forced.grammar)


def test_a_schema_that_is_not_json_is_refused() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"enum": [{1}]}}}

    with pytest.raises(RequestError, match="a schema is not JSON"):
        forced_call(None, "", (tool,), name="f", parallel=False)


def test_names_with_quotes_are_spelled_as_json(compiler: GrammarCompiler) -> None:
    tool = function('say "é"\\n')
    forced = forced_call(None, "", (tool,), name=None, parallel=False)

    text = draw(compiler.compile(forced.grammar), random.Random(0))

    assert made(read(None, "", forced.opening + text, (tool,))) == [('say "é"\\n', {})]


def test_a_tool_without_parameters_takes_none(compiler: GrammarCompiler) -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    forced = forced_call(None, "", (tool,), name="f", parallel=False)
    matcher = compiler.compile(Grammar("lark", forced.grammar.source))

    text = draw(matcher, random.Random(1))

    assert "".join(text.split()) == 'f","arguments":{}}'
