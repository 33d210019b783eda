"""Knows no wire: calls as Kimi K2 writes them, ids that hold a name, and JSON.

    <|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0
    <|tool_call_argument_begin|>{"city": "Paris"}<|tool_call_end|><|tool_calls_section_end|>

https://huggingface.co/moonshotai/Kimi-K2-Instruct/blob/main/docs/tool_call_guidance.md
"""

from __future__ import annotations

import re
from typing import Final

from localrun.chat.tools import json_text
from localrun.chat.tools.declared import Tools
from localrun.chat.tools.family import Asked, Family, Forced, Opening
from localrun.chat.tools.json_text import NAME_MAX
from localrun.chat.tools.lark import alternatives
from localrun.chat.tools.tape import NotACall, Steps, Tape

_CALLS, _CALLS_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
_CALL, _CALL_END = "<|tool_call_begin|>", "<|tool_call_end|>"
_ARGUMENTS: Final = "<|tool_call_argument_begin|>"
_ID: Final = re.compile(r"[^\s<>{}]+")


def _openings(tools: Tools) -> tuple[Opening, ...]:
    def call(tape: Tape) -> Steps[None]:
        yield from _call(tape, tools)

    def calls(tape: Tape) -> Steps[None]:
        while True:
            yield from tape.spaces()
            if (yield from tape.literal(_CALLS_END)):
                return
            yield from tape.expect(_CALL)
            yield from _call(tape, tools)
            tape.hold()

    def alone(tape: Tape) -> Steps[None]:
        yield from call(tape)
        tape.hold()
        yield from calls(tape)

    return (Opening(_CALLS, calls), Opening(_CALL, alone))


def _call(tape: Tape, tools: Tools) -> Steps[None]:
    yield from tape.spaces()
    id = yield from tape.word(_ID, NAME_MAX)
    yield from tape.spaces()
    yield from tape.expect(_ARGUMENTS)
    yield from tape.spaces()
    name = id if id in tools else id.rpartition(":")[0].removeprefix("functions.")
    if not name or (yield from tape.peek()) != "{":
        raise NotACall
    tape.call(name, id)
    yield from json_text.value(tape, tape.arguments)
    yield from tape.spaces()
    yield from tape.expect(_CALL_END)


def _forced(asked: Asked) -> Forced:
    calls = alternatives(asked.tools, lambda tool: f"{tool.name}:0{_ARGUMENTS}")
    return Forced(f"{_CALLS}{_CALL}functions.", *calls)


KIMI = Family(
    "Kimi K2",
    known_by=((_CALLS,), (_CALL,), ("tool_declare", "<|im_middle|>")),
    marks=(_CALLS, _CALLS_END, _CALL, _CALL_END, _ARGUMENTS),
    openings=_openings,
    forced=_forced,
    closings=(_CALL_END,),
)
