from __future__ import annotations

import json
import random
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bench.agent_schemas import AGENT_SCHEMAS
from bench.random_schemas import bounded, problem, random_schema
from localrun.engine.grammar.compiler import SOURCE_BYTES_MAX, GrammarCompiler, Matcher
from localrun.engine.grammar.gbnf import lark_of_gbnf
from localrun.engine.process import limited
from localrun.engine.request import Grammar, GrammarKind
from localrun.engine.runner import Vocabulary
from localrun.errors import EngineError, GrammarError
from tests.mock_runner import BOS, CONTROL, EOS, VOCABULARY_SIZE, MockRunner, encode

VOCABULARY = MockRunner().vocabulary()
QUOTES_AND_ENDS = frozenset(b'"}],')


@pytest.fixture(scope="module")
def compiler() -> Iterator[GrammarCompiler]:
    made = GrammarCompiler(VOCABULARY, encode)
    yield made
    made.close()


def allowed(matcher: Matcher) -> list[int]:
    bits = np.unpackbits(matcher.mask().view(np.uint8), bitorder="little")
    return [int(token) for token in np.flatnonzero(bits)]


def follow(matcher: Matcher, source: random.Random, most: int = 6000) -> bytes:
    """A text of tokens drawn from each mask, short because it prefers to end what it is in."""
    text = bytearray()
    for _ in range(most):
        if matcher.finished:
            return bytes(text)
        matcher.prepare()
        tokens = allowed(matcher)
        ends = [token for token in tokens if token == EOS or token in QUOTES_AND_ENDS]
        token = source.choice(ends if ends and source.random() < 0.4 else tokens)
        matcher.accept(token)
        if token == EOS:
            return bytes(text)
        text += VOCABULARY.tokens[token]
    raise AssertionError(f"no end after {most} tokens: {bytes(text)[:200]!r}")


def accepts(matcher: Matcher, text: str) -> bool:
    """Whether ``text`` and then the end of it are allowed token by token."""
    for token in encode(text):
        if token not in allowed(matcher):
            return False
        matcher.accept(token)
    return EOS in allowed(matcher)


def every_schema() -> dict[str, object]:
    """30 that tools have, and 170 that nobody has."""
    known = {name: bounded(schema) for name, schema in AGENT_SCHEMAS.items()}
    return known | {f"seed {seed}": random_schema(seed) for seed in range(170)}


def test_whatever_is_drawn_from_the_masks_of_200_schemas_is_an_instance(
    compiler: GrammarCompiler,
) -> None:
    schemas = every_schema()

    problems = {}
    for seed, (name, schema) in enumerate(schemas.items()):
        matcher = compiler.compile(Grammar("json_schema", json.dumps(schema)))
        text = follow(matcher, random.Random(seed)).decode()
        if found := problem(text, schema):
            problems[name] = found

    assert len(schemas) == 200
    assert problems == {}


@pytest.mark.parametrize("name", AGENT_SCHEMAS)
def test_a_schema_that_a_tool_has_is_compiled_as_it_is(
    compiler: GrammarCompiler, name: str
) -> None:
    matcher = compiler.compile(Grammar("json_schema", json.dumps(AGENT_SCHEMAS[name])))

    assert allowed(matcher) == [ord("{")]


TEXTS: list[tuple[GrammarKind, str, str, bool]] = [
    ("json_schema", "{}", '["any", {"json": null}]', True),
    ("json_schema", "true", "12.5", True),
    ("json_schema", '{"type": "object"}', "{}", True),
    ("json_schema", '{"type": "object"}', '{"a": {"b": [1, true]}}', True),
    ("json_schema", '{"type": "object"}', "[]", False),
    ("json_schema", '{"type": "object"}', '{\n    "a": 1\n}', True),
    ("json_schema", '{"type": "object"}', '{\n\n"a": 1}', False),
    ("json_schema", '{"type": "object"}', "{  }", False),
    ("json_schema", '{"type": "object"}', "{\n" + 20 * " " + "}", True),
    ("json_schema", '{"type": "object"}', "{\n" + 21 * " " + "}", False),
    ("json_schema", '{"type": "object"}', "{}\n", False),
    ("json_schema", '{"type": "object", "x-guidance": {"item_separator": "x"}}', "{}", True),
    ("json_schema", '{"type": "string", "format": "int32"}', '"ß"', True),
    ("json_schema", '{"type": "string", "format": "date"}', '"2024-13-01"', False),
    ("json_schema", '{"type": "array", "uniqueItems": true}', "[1,1]", True),
    ("json_schema", '{"type": "string", "maxLength": 2}', '"äö"', True),
    ("json_schema", '{"type": "string", "maxLength": 2}', '"äöü"', False),
    ("json_schema", '{"type": "string", "pattern": "^a/b\\\\d$"}', '"a/b7"', True),
    ("json_schema", '{"oneOf": [{"const": 1}, {"type": "integer"}]}', "1", True),
    ("regex", "[a-z]{2,3}", "abc", True),
    ("regex", "[a-z]{2,3}", "a", False),
    ("regex", "^a/b$", "a/b", True),
    ("regex", "", "", True),
    ("regex", r"\d", "7", True),
    ("regex", r"\d", "٣", False),
    ("regex", "(?i)straße", "STRASSE", False),
    ("regex", "(?i)yes", "YeS", True),
    ("regex", "a\nb", "a\nb", True),
    ("choice", '["yes", "no"]', "no", True),
    ("choice", '["yes", "no"]', "ye", False),
    ("choice", '["a", "ab"]', "a", True),
    ("choice", '["a", "ab"]', "ab", True),
    ("choice", '["", "\\u0000\\n\\"\\\\/\\u007f\\u2028é😀"]', '\0\n"\\/\x7f\u2028é😀', True),
    ("lark", 'start: "a" B+\nB: /[0-9]/', "a12", True),
    ("lark", 'start: "a" %json {"type": "boolean"}', "atrue", True),
    ("lark", 'start: "x" | y\ny: "(" start ")"', "((x))", True),
    ("lark", '{"grammars": []}', "", False),
]


@pytest.mark.parametrize(("kind", "source", "text", "may"), TEXTS)
def test_a_text_is_allowed_when_its_grammar_says_so(
    compiler: GrammarCompiler, kind: GrammarKind, source: str, text: str, may: bool
) -> None:
    try:
        matcher = compiler.compile(Grammar(kind, source))
    except GrammarError:
        assert not may
        return

    assert accepts(matcher, text) is may


GBNF = {
    "sequence and alternatives": ('root ::= "a" ("b" | "c") | "d"', ["ab", "ac", "d"], ["a", "ad"]),
    "nothing as an alternative": ('root ::= ("a" | ) "b"', ["ab", "b"], ["a"]),
    "repetition": ('root ::= "a"* "b"+ "c"?', ["b", "aabbc"], ["a", "cb"]),
    "counts": ('root ::= "a"{2} "b"{1,} "c"{0,2} "d"{0}', ["aab", "aabbcc"], ["ab", "aabd"]),
    "a count of a count": ('root ::= "a"{2}{2}', ["aaaa"], ["aa", "aaa"]),
    "a group over lines": ('root ::= (\n  "a" # first\n  | "b"\n)\n', ["a", "b"], ["ab"]),
    "alternatives over lines": ('root ::= "a" |\n  "b"\n  | "c"\nx ::= "d"', ["a", "b", "c"], "d"),
    "comments": ('# one\nroot ::= "#" x # two\n\n# three\nx ::= "y"', ["#y"], [""]),
    "carriage returns": ('root ::= x "a"\r\nx ::= "b"\r\n', ["ba"], ["b"]),
    "escapes": (r'root ::= "\x41\u00e9\U0001F600\t\n\r\"\\"', ['Aé😀\t\n\r"\\'], ["A"]),
    "a tab in a string": ('root ::= "a\tb"', ["a\tb"], ["ab"]),
    "classes": (r"root ::= [a-cX\]\\/-]{6}", ["abX]\\/", "------"], ["dddddd"]),
    "escaped ranges": (r"root ::= [\u00e0-\u00ff]+", ["éà"], ["e"]),
    "not a class": (r"root ::= [^\n\x22a-z]", ["A", "é", "\0", "\u2028"], ["a", '"', "\n"]),
    "a caret that is one": ("root ::= [a^]", ["^"], ["b"]),
    "no operators in classes": ("root ::= [a&&b~~c]+", ["&~"], ["d"]),
    "any character": ('root ::= . "x"', ["\nx", "éx"], ["x"]),
    "names alike": ('root ::= A a fooBar foo-bar 1st_\nA ::= "1"\na ::= "2"\nfooBar ::= "3"\n'
                    'foo-bar ::= "4"\n1st_ ::= start\nstart ::= "5"', ["12345"], ["21345"]),
    "recursion to the right": ('root ::= "(" root ")" | "x"', ["((x))"], ["((x)"]),
    "words beside letters": ('root ::= "(" root ")" | "int" | [a-z]+', ["(inx)", "int"], ["in)"]),
    "recursion to the left": ('root ::= root "+" n | n\nn ::= [0-9]', ["1+2+3"], ["1+"]),
    "a rule that stops early": ('root ::= word " x"\nword ::= [a-z ]+', ["ab x"], ["ab"]),
}  # fmt: skip


@pytest.mark.parametrize("name", GBNF)
def test_gbnf_means_what_it_means_to_llama_cpp(compiler: GrammarCompiler, name: str) -> None:
    source, texts, others = GBNF[name]
    grammar = Grammar("gbnf", source)

    assert {text: accepts(compiler.compile(grammar), text) for text in [*texts, *others]} == {
        **dict.fromkeys(texts, True),
        **dict.fromkeys(others, False),
    }


def test_llama_cpp_s_own_grammars_are_read_and_followed(
    compiler: GrammarCompiler, llama_cpp_source: Path
) -> None:
    texts = {
        "arithmetic.gbnf": "x *(y +1) = 3\n",
        "chess.gbnf": "1. e4 e5\n2. Nf3 Nc6\n",
        "json.gbnf": '{"a": [1, -2.5e3, "\\u00e9"]}',
        "list.gbnf": "- one\n- two\n",
        "japanese.gbnf": "こんにちは",
        "c.gbnf": "int f(int x){return x+1;}",
    }
    files = sorted((llama_cpp_source / "grammars").glob("*.gbnf"))

    for file in files:
        matcher = compiler.compile(Grammar("gbnf", file.read_text(encoding="utf-8")))
        if file.name in texts:
            assert accepts(matcher, texts[file.name]), file.name

    assert {file.name for file in files} >= texts.keys()


WRONG: list[tuple[GrammarKind, str, str]] = [
    ("json_schema", "{", "not JSON"),
    ("json_schema", "[]", "a schema is a JSON object"),
    ("json_schema", "false", "a schema is a JSON object"),
    ("json_schema", '{"type": "strin"}', "Invalid type: strin"),
    ("json_schema", '{"$ref": "#/$defs/x"}', "does not exist"),
    ("json_schema", '{"$ref": "https://example.com/x"}', "does not fetch"),
    ("json_schema", '{"type": "string", "minLength": 2, "maxLength": 1}', "minLength"),
    ("json_schema", '{"type": "string", "pattern": "(?=a)"}', "look-around"),
    ("json_schema", '{"const": "\\ud800"}', "hex escape"),
    ("json_schema", '{"$ref": "#"}', "allows no text"),
    ("regex", "(", "unclosed group"),
    ("regex", r"(a)\1", "backreferences"),
    ("regex", "\ud800", "half of one"),
    ("regex", "a" * (SOURCE_BYTES_MAX + 1), str(SOURCE_BYTES_MAX)),
    ("choice", '"yes"', "list of at least one string"),
    ("choice", "[]", "list of at least one string"),
    ("choice", "[1]", "list of at least one string"),
    ("lark", "start: x", "unknown name"),
    ("lark", 'start: <|nobody|>', "nobody"),
    ("gbnf", "", "no rule called root"),
    ("gbnf", 'a ::= "b"', "no rule called root"),
    ("gbnf", 'root ::= "a"\nroot ::= "b"', "line 2: the rule root is there twice"),
    ("gbnf", 'root ::= "a"\n  b', "line 2: ::= is missing"),
    ("gbnf", "root ::= a\n", "line 1: there is no rule called a"),
    ("gbnf", 'root ::= "a', "line 1: a string is not closed"),
    ("gbnf", "root ::= [a", "line 1: a class of characters is not closed"),
    ("gbnf", "root ::= []", "empty"),
    ("gbnf", "root ::= [z-a]", "ends before it begins"),
    ("gbnf", r'root ::= "\q"', r"there is no escape \q"),
    ("gbnf", r'root ::= "\ud800"', "is no character"),
    ("gbnf", 'root ::= ("a"', "not closed"),
    ("gbnf", 'root ::= "a")', "')' is out of place"),
    ("gbnf", 'root ::= "a"{', "{m,n}"),
    ("gbnf", 'root ::= "a"{3,2}', "below where it begins"),
    ("gbnf", 'root ::= "a"{9999999999}', "{m,n}"),
    ("gbnf", "root ::= * ", "'*' is out of place"),
    ("gbnf", "root ::= root", "allows no text"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "source", "reason"), WRONG)
def test_what_is_no_grammar_is_refused_with_its_kind_and_the_reason(
    compiler: GrammarCompiler, kind: GrammarKind, source: str, reason: str
) -> None:
    with pytest.raises(GrammarError) as caught:
        compiler.compile(Grammar(kind, source))

    assert caught.value.message.startswith(f"{kind}: ")
    assert reason in caught.value.message
    assert len(caught.value.message) < 350
    assert caught.value.message.isprintable()


def test_a_matcher_is_finished_when_nothing_but_an_end_may_follow(
    compiler: GrammarCompiler,
) -> None:
    matcher = compiler.compile(Grammar("regex", "ab?"))

    assert not matcher.finished
    matcher.accept(ord("a"))
    assert not matcher.finished
    assert allowed(matcher) == [ord("b"), EOS]
    matcher.accept(ord("b"))
    assert matcher.finished
    assert allowed(matcher) == [EOS]


def test_an_end_token_ends_a_text_that_could_go_on(compiler: GrammarCompiler) -> None:
    matcher = compiler.compile(Grammar("regex", "a+"))
    matcher.accept(ord("a"))
    matcher.accept(EOS)

    assert matcher.finished


def test_a_token_outside_the_mask_is_an_error_of_the_engine_s(compiler: GrammarCompiler) -> None:
    matcher = compiler.compile(Grammar("regex", "a+"))

    with pytest.raises(EngineError, match="token 98 was drawn"):
        matcher.accept(ord("b"))
    with pytest.raises(GrammarError):
        matcher.mask()
    assert accepts(compiler.compile(Grammar("regex", "a+")), "aa")


def test_a_matcher_s_texts_do_not_meet_though_their_grammar_is_compiled_once(
    compiler: GrammarCompiler,
) -> None:
    first = compiler.compile(Grammar("regex", "ab|ba"))
    second = compiler.compile(Grammar("regex", "ab|ba"))
    first.accept(ord("a"))

    assert allowed(first) == [ord("b")]
    assert allowed(second) == [ord("a"), ord("b")]


def test_masks_of_many_texts_are_computed_side_by_side(compiler: GrammarCompiler) -> None:
    grammar = Grammar("json_schema", json.dumps(random_schema(3)))
    texts: dict[int, str] = {}

    def write(seed: int) -> None:
        texts[seed] = follow(compiler.compile(grammar), random.Random(seed)).decode()

    threads = [threading.Thread(target=write, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    alone = {
        seed: follow(compiler.compile(grammar), random.Random(seed)).decode() for seed in range(8)
    }
    assert texts == alone


def test_a_grammar_that_cannot_be_followed_ends_its_text_and_is_compiled_anew(
    compiler: GrammarCompiler,
) -> None:
    hidden = "start: A\nA: (/x|q(.*a.{16}.*)/) & (/x|q(.*b.{16}.*)/) & ~/(q.*c.{16}.*)/"
    matcher = compiler.compile(Grammar("lark", hidden))
    matcher.accept(ord("q"))

    with pytest.raises(GrammarError, match="lark: cannot be followed further"):
        matcher.mask()
    other = compiler.compile(Grammar("lark", hidden))
    other.accept(ord("x"))
    assert other.finished


def test_a_grammar_that_is_too_ambiguous_to_follow_ends_its_text(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("localrun.engine.grammar.compiler._BURST_S", 0.0)
    monkeypatch.setattr("localrun.engine.grammar.compiler._STEP_S", 0.0)
    matcher = compiler.compile(Grammar("gbnf", 'root ::= root root | [a-z] | ""'))

    with pytest.raises(GrammarError, match="too ambiguous"):
        follow(matcher, random.Random(1))


def test_every_end_token_ends_a_text_and_control_tokens_have_their_names() -> None:
    ends = frozenset({EOS, 261})
    vocabulary = Vocabulary(VOCABULARY.tokens, BOS, EOS, ends, False, VOCABULARY.names)
    compiler = GrammarCompiler(vocabulary, encode)
    try:
        matcher = compiler.compile(Grammar("lark", "start: /a/ <|user|> /b/?"))
        matcher.accept(ord("a"))
        named = allowed(matcher)
        matcher.accept(258)
        after = allowed(matcher)
    finally:
        compiler.close()

    assert CONTROL[258] == "<|user|>"
    assert named == [258]
    assert after == [ord("b"), EOS, 261]


def test_tokens_that_stand_for_the_same_bytes_are_allowed_alike() -> None:
    size = VOCABULARY_SIZE
    vocabulary = Vocabulary(
        (*VOCABULARY.tokens, b"a", b"ab", b"a"), BOS, EOS, frozenset({EOS}), False, VOCABULARY.names
    )
    compiler = GrammarCompiler(vocabulary, encode)
    try:
        matcher = compiler.compile(Grammar("regex", "[ac]b?"))
        first = allowed(matcher)
        matcher.accept(size + 2)
        then = allowed(matcher)
    finally:
        compiler.close()

    assert first == [ord("a"), ord("c"), size, size + 1, size + 2]
    assert then == [ord("b"), EOS]


def test_a_model_without_an_end_token_can_follow_a_grammar_to_its_end() -> None:
    vocabulary = Vocabulary(VOCABULARY.tokens[:256], None, None, frozenset(), False, {})
    compiler = GrammarCompiler(vocabulary, encode)
    try:
        matcher = compiler.compile(Grammar("regex", "ab"))
        matcher.accept(ord("a"))
        matcher.accept(ord("b"))
    finally:
        compiler.close()

    assert matcher.finished


def test_a_grammar_that_no_token_of_the_model_fits_is_refused_and_no_hang() -> None:
    tokens = tuple(text if text != b"b" else b"" for text in VOCABULARY.tokens)
    vocabulary = Vocabulary(tokens, BOS, EOS, frozenset({EOS}), False, VOCABULARY.names)
    compiler = GrammarCompiler(vocabulary, encode)
    try:
        matcher = compiler.compile(Grammar("regex", "a[b]{2}"))
        with pytest.raises(GrammarError, match="regex: cannot be followed further"):
            follow(matcher, random.Random(1))
    finally:
        compiler.close()


def test_a_text_is_that_text_where_a_tokenizer_puts_a_space_in_front() -> None:
    def spaced(text: str) -> list[int]:
        return encode(" " + text)

    compiler = GrammarCompiler(VOCABULARY, spaced)
    try:
        matcher = compiler.compile(Grammar("choice", '["hello", "help"]'))
        follows = accepts(matcher, "help")
    finally:
        compiler.close()

    assert follows


def test_a_trial_that_ends_badly_spoils_no_other(compiler: GrammarCompiler) -> None:
    trial = compiler._trial
    compiler.compile(Grammar("regex", "a"))
    assert trial._child is not None
    trial._child.kill()
    trial._child.wait()

    assert accepts(compiler.compile(Grammar("regex", "abc")), "abc")


def test_a_process_that_does_not_start_is_an_error_of_the_engine_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limited.sys, "executable", "/bin/false")
    compiler = GrammarCompiler(VOCABULARY, encode)
    try:
        with pytest.raises(EngineError, match="did not start"):
            compiler.compile(Grammar("regex", "a"))
    finally:
        compiler.close()


def test_after_close_nothing_is_compiled_and_a_matcher_still_knows_its_mask() -> None:
    compiler = GrammarCompiler(VOCABULARY, encode)
    matcher = compiler.compile(Grammar("regex", "a"))
    compiler.close()
    compiler.close()
    matcher.prepare()

    assert allowed(matcher) == [ord("a")]
    with pytest.raises(EngineError, match="closed"):
        compiler.compile(Grammar("regex", "b"))


def test_only_a_grammar_without_recursion_becomes_one_lexeme() -> None:
    flat = lark_of_gbnf('root ::= a\na ::= b "xy"\nb ::= [0-9]+\nunused ::= unused')
    deep = lark_of_gbnf('root ::= a | "(" root ")"\na ::= "xy"')

    assert re.findall(r"^\w+: .*", flat, re.MULTILINE)[:2] == ["start: T0", "T0: T1"]
    assert '"xy"' in flat
    assert re.findall(r"^\w+", deep, re.MULTILINE) == ["start", "r0", "r1"]
    assert '("x" "y")' in deep
