"""Knows no wire: calls as Llama 3, Llama 4 and LFM2 write them, JSON or Python.

    <|python_tag|>{"name": "get_weather", "parameters": {"city": "Paris"}}    3.1
    {"name": "get_weather", "parameters": {"city": "Paris"}}; {"name": …      3.1, 3.2, 3.3
    <function=get_weather>{"city": "Paris"}</function>                        3.1, as prompted
    [get_weather(city="Paris"), get_time()]                                   3.2, 4
    <|python_tag|>brave_search.call(query="weather in Paris")                 built-in tools

https://www.llama.com/docs/model-cards-and-prompt-formats/llama3_1 and llama4. LFM2 puts the list of
calls between ``<|tool_call_start|>`` and ``<|tool_call_end|>``
(https://docs.liquid.ai/lfm/key-concepts/tool-use).
"""

from __future__ import annotations

import re
from typing import Final

from localrun.chat.tools import json_text, pythonic, unmarked
from localrun.chat.tools.declared import Tools
from localrun.chat.tools.family import Asked, Body, Family, Forced, Opening
from localrun.chat.tools.hermes import objects_grammar
from localrun.chat.tools.json_text import NAME_MAX
from localrun.chat.tools.lark import repeated
from localrun.chat.tools.objects import object_call
from localrun.chat.tools.tape import NotACall, Steps, Tape

_TAG: Final = "<|python_tag|>"
_FUNCTION, _FUNCTION_END = "<function=", "</function>"
_LISTS: Final = {
    "<|python_start|>": "<|python_end|>",
    "<|tool_call_start|>": "<|tool_call_end|>",
}
_NAME: Final = re.compile(r"[^\s<>{}]+")


def _openings(tools: Tools) -> tuple[Opening, ...]:
    def tagged(tape: Tape) -> Steps[None]:
        yield from tape.spaces()
        if not (yield from tape.literal("{")):
            yield from pythonic.statements(tape, tools, known=False)
            return
        yield from object_call(tape)
        while True:
            tape.hold()
            yield from tape.spaces()
            yield from tape.literal(";", ",")
            yield from tape.spaces()
            yield from tape.expect("{")
            yield from object_call(tape)

    lists = [Opening(opening, _listed(tools, end)) for opening, end in _LISTS.items()]
    return (
        Opening(_TAG, tagged),
        Opening(_FUNCTION, _function),
        *lists,
        *unmarked.openings(tools),
    )


def _function(tape: Tape) -> Steps[None]:
    name = yield from tape.word(_NAME, NAME_MAX)
    yield from tape.expect(">")
    yield from tape.spaces()
    if not name or (yield from tape.peek()) != "{":
        raise NotACall
    tape.call(name)
    yield from json_text.value(tape, tape.arguments)
    yield from tape.spaces()
    yield from tape.expect(_FUNCTION_END)


def _listed(tools: Tools, closing: str) -> Body:
    def body(tape: Tape) -> Steps[None]:
        yield from tape.spaces()
        yield from tape.expect("[")
        yield from tape.spaces()
        if (yield from tape.peek()) == "{":
            yield from unmarked.objects(tape, None)
        else:
            yield from pythonic.calls(tape, tools, known=False)
        tape.hold()
        yield from tape.spaces()
        yield from tape.expect(closing)

    return body


def _forced(asked: Asked) -> Forced:
    start, rules = objects_grammar(asked, "name", "parameters")
    listed = next((each for each in _LISTS if each in asked.template), None)
    if asked.several:
        start = repeated(f"({start})", ', {"name": "' if listed else '; {"name": "')
    if listed is None:
        return Forced('{"name": "', start, rules)
    return Forced(f'{listed}[{{"name": "', f'({start}) "]"', rules)


LLAMA = Family(
    "Llama",
    known_by=(
        (_TAG,),
        ("<|start_header_id|>", "tools"),
        ("<|header_start|>", "tools"),
        ("<|tool_list_start|>",),
        *((opening,) for opening in _LISTS),
    ),
    marks=(_TAG, *_LISTS, *_LISTS.values()),
    openings=_openings,
    forced=_forced,
)
