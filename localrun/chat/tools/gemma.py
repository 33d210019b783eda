"""Knows no wire: calls as Gemmas write them, names and values with quotes of their own.

    Gemma 4        <|tool_call>call:get_weather{city:<|"|>Paris<|"|>,days:3}<tool_call|>
    FunctionGemma  <start_function_call>call:get_time{zone:<escape>UTC<escape>}<end_function_call>

https://ai.google.dev/gemma/docs/capabilities/text/function-calling-gemma4 and
https://ai.google.dev/gemma/docs/functiongemma/formatting-and-best-practices. Gemma 3 has no marks
and writes what it is asked for (https://ai.google.dev/gemma/docs/capabilities/function-calling):
JSON, a Python list of calls, or either in a block of ``tool_code``.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Final

from localrun.chat.tools import pythonic, unmarked
from localrun.chat.tools.declared import Tools
from localrun.chat.tools.family import Asked, Body, Family, Forced, Opening
from localrun.chat.tools.hermes import objects_grammar
from localrun.chat.tools.json_text import NAME_MAX
from localrun.chat.tools.lark import alternatives, repeated
from localrun.chat.tools.tape import NotACall, Steps, Tape

_GEMMA_4, _GEMMA_4_END = "<|tool_call>", "<tool_call|>"
_FUNCTION, _FUNCTION_END = "<start_function_call>", "<end_function_call>"
_QUOTES: Final = ('<|"|>', "<escape>")
_NAME: Final = re.compile(r"[^\s<>{}:]+")


def _called(tools: Tools, closing: str) -> Body:
    def body(tape: Tape) -> Steps[None]:
        yield from tape.spaces()
        yield from tape.literal("call:")
        name = yield from tape.word(_NAME, NAME_MAX)
        yield from tape.spaces()
        if not name or (yield from tape.peek()) != "{":
            raise NotACall
        tape.call(name)
        yield from pythonic.value(tape, members=partial(tools.types, name))
        yield from tape.spaces()
        yield from tape.expect(closing)

    return body


def _openings(tools: Tools) -> tuple[Opening, ...]:
    return (
        Opening(_GEMMA_4, _called(tools, _GEMMA_4_END)),
        Opening(_FUNCTION, _called(tools, _FUNCTION_END)),
    )


def _forced(asked: Asked) -> Forced:
    opening = _GEMMA_4 if _GEMMA_4 in asked.template else _FUNCTION
    # The quotes are control tokens, which no grammar has: JSON's are read as well.
    calls = alternatives(asked.tools, lambda tool: tool.name)
    return Forced(f"{opening}call:", *calls)


def _forced_plain(asked: Asked) -> Forced:
    start, rules = objects_grammar(asked, "name", "parameters")
    if asked.several:
        start = repeated(f"({start})", '\n{"name": "')
    return Forced('{"name": "', start, rules)


GEMMA = Family(
    "Gemma 4",
    known_by=((_GEMMA_4,), (_FUNCTION,)),
    marks=(_GEMMA_4, _GEMMA_4_END, _FUNCTION, _FUNCTION_END, *_QUOTES),
    openings=_openings,
    forced=_forced,
    closings=(_GEMMA_4_END, _FUNCTION_END),
)
GEMMA_3 = Family(
    "Gemma 3",
    known_by=(("<start_of_turn>",),),
    marks=(),
    openings=unmarked.openings,
    forced=_forced_plain,
)
