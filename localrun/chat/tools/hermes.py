"""Knows no wire: calls as Hermes and its kin write them, JSON objects between marks.

    <tool_call>
    {"name": "get_weather", "arguments": {"city": "Paris"}}
    </tool_call>

Hermes 2 Pro, Qwen 2.5 and 3, SmolLM3, Granite 4 and many more
(https://github.com/NousResearch/Hermes-Function-Calling), and what templates that know no tools are
told. Lists of such objects between other marks: Phi-4-mini's ``<|tool_call|>``, Nemotron's
``<TOOLCALL>``, Command R7B's ``<|START_ACTION|>``
(https://github.com/ggml-org/llama.cpp/tree/master/models/templates).
"""

from __future__ import annotations

from typing import Final

from localrun.chat.tools import unmarked
from localrun.chat.tools.declared import Tools
from localrun.chat.tools.family import Asked, Body, Family, Forced, Opening
from localrun.chat.tools.lark import alternatives, json_name, repeated
from localrun.chat.tools.objects import object_call
from localrun.chat.tools.tape import NotACall, Steps, Tape

OPENING: Final = "<tool_call>"
CLOSING: Final = "</tool_call>"
_LISTS: Final = {
    "<|tool_call|>": "<|/tool_call|>",
    "<TOOLCALL>": "</TOOLCALL>",
    "<|START_ACTION|>": "<|END_ACTION|>",
}


def between(closing: str) -> Body:
    """Objects, or a list of them, up to ``closing``, from behind the mark on."""

    def body(tape: Tape) -> Steps[None]:
        yield from tape.spaces()
        listed = yield from tape.literal("[")
        if listed:
            yield from unmarked.objects(tape, None)
        else:
            yield from tape.expect("{")
            yield from object_call(tape)
        while True:
            tape.hold()
            yield from tape.spaces()
            if (yield from tape.literal(closing)):
                return
            # Some leave the marks out between two calls.
            if listed or not (yield from tape.literal("{")):
                raise NotACall
            yield from object_call(tape)

    return body


def _openings(tools: Tools) -> tuple[Opening, ...]:
    return (Opening(OPENING, between(CLOSING)), *unmarked.openings(tools))


def _list_openings(tools: Tools) -> tuple[Opening, ...]:
    lists = [Opening(opening, between(closing)) for opening, closing in _LISTS.items()]
    return (*lists, *unmarked.openings(tools))


def _forced(asked: Asked) -> Forced:
    start, rules = objects_grammar(asked, "name", "arguments")
    if asked.several:
        start = repeated(f"({start})", f'\n{CLOSING}\n{OPENING}\n{{"name": "')
    return Forced(f'{OPENING}\n{{"name": "', start, rules)


def _forced_list(asked: Asked) -> Forced:
    opening = next((each for each in _LISTS if each in asked.template), "<TOOLCALL>")
    names = ("tool_name", "parameters") if "ACTION" in opening else ("name", "arguments")
    return forced_list(asked, opening, *names)


def forced_list(asked: Asked, opening: str, name: str, arguments: str) -> Forced:
    """Objects in a list."""
    start, rules = objects_grammar(asked, name, arguments)
    if asked.several:
        start = repeated(f"({start})", f', {{"{name}": "')
    return Forced(f'{opening}[{{"{name}": "', f'{start} "]"', rules)


def objects_grammar(asked: Asked, name: str, arguments: str) -> tuple[str, tuple[str, ...]]:
    """What follows ``{"name": "``, to the object's closing brace."""
    return alternatives(asked.tools, lambda tool: f'{json_name(tool)}", "{arguments}": ', "}")


HERMES = Family(
    "Hermes",
    known_by=((OPENING,), ("<tools>",)),
    marks=(OPENING, CLOSING),
    openings=_openings,
    forced=_forced,
    closings=(CLOSING,),
)
LISTS = Family(
    "lists",
    known_by=tuple((opening,) for opening in _LISTS),
    marks=tuple(mark for pair in _LISTS.items() for mark in pair),
    openings=_list_openings,
    forced=_forced_list,
)
