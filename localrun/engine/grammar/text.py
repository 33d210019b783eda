"""Knows no token: what a request asks of its text, in the notation of llguidance.

What is done with JSON schemas (https://github.com/guidance-ai/llguidance/blob/main/docs/json_schema.md):

- Tools' schemas say more than any grammar can hold a model to. A keyword or ``format`` that cannot
  be enforced (``not``, ``if``, ``uniqueItems``, ``propertyNames``, ``contains``, dependencies, a
  ``minProperties`` beside optional ones) is left out; ``oneOf`` allows what ``anyOf`` would. The
  text is JSON and keeps everything else. Refused is what has a meaning that is not understood: an
  unknown ``type``, a ``$ref`` to nowhere or to another document, a pattern with look-around, a
  schema that nothing satisfies.
- Properties come in the order of the schema. Between tokens of JSON stands nothing, one space, or a
  line break with up to 20 spaces or tabs, because small models fill pages with more.
- ``{}`` and ``true`` allow any JSON, ``{"type": "object"}`` any object.

A regular expression matches the whole text; it is Rust's, without look-around and back references
(https://docs.rs/regex/latest/regex/#syntax), and ``\\d`` are the ASCII digits.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from localrun.engine.grammar.gbnf import GbnfError, lark_of_gbnf, quoted
from localrun.engine.request import GrammarKind

if TYPE_CHECKING:
    from llguidance import LLParserLimits

_JSON_SPACE: Final = r"\x20|\n[\x20\t]{0,20}"


class GrammarTextError(Exception):
    """The source is not of its kind; the message says why. Never leaves the engine."""


def limits() -> LLParserLimits:
    """What compiling a grammar and following it one token further may take.

    A step's fuel is some tens of milliseconds; 100,000 states are enough for a string of 65,536
    characters and stay below 100 MiB.
    """
    from llguidance import LLParserLimits

    return LLParserLimits(
        max_lexer_states=100_000,
        # Costs time for every token of the vocabulary, which nobody has bounded.
        precompute_large_lexemes=False,
        verbose_errors=False,
    )


def guidance_of(kind: GrammarKind, source: str) -> str:
    """The source as llguidance's compiler takes it, not yet compiled.

    Raises:
        GrammarTextError: it is not of its kind. Other mistakes are found by the compiler.
    """
    from llguidance import regex_to_lark

    match kind:
        case "json_schema":
            return _schema(source)
        case "regex":
            return _lark(f"start: /{regex_to_lark(source, 'd')}/")
        case "choice":
            options = " | ".join(quoted(text) for text in _choices(source))
            return _lark(f"start: T\nT: {options}")
        case "gbnf":
            try:
                return _lark(lark_of_gbnf(source))
            except GbnfError as error:
                raise GrammarTextError(str(error)) from error
        case "lark":
            return _lark(source)


def _lark(text: str) -> str:
    return json.dumps({"grammars": [{"lark_grammar": text}]})


def _schema(source: str) -> str:
    from llguidance import LLMatcher

    schema = _json(source)
    if schema is True:
        source = "{}"
    elif not isinstance(schema, dict):
        raise GrammarTextError("a schema is a JSON object")
    try:
        return LLMatcher.grammar_from_json_schema(
            source,
            overrides={
                "whitespace_pattern": _JSON_SPACE,
                "item_separator": ",",
                "key_separator": ":",
                "lenient": True,
            },
        )
    except ValueError as error:
        raise GrammarTextError(str(error)) from error


def _choices(source: str) -> list[str]:
    texts = _json(source)
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
        raise GrammarTextError("choices are a JSON list of at least one string")
    return texts


def _json(source: str) -> Any:
    try:
        return json.loads(source)
    except (ValueError, RecursionError) as error:
        raise GrammarTextError(f"not JSON: {error}") from error
