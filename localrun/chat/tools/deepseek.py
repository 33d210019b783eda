"""Knows no wire: calls as DeepSeek V3, R1 and V3.1 write them, names and JSON between marks.

    V3.1    <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Paris"}
            <｜tool▁call▁end｜><｜tool▁calls▁end｜>, without line breaks
    V3, R1  <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather
            ```json
            {"city": "Paris"}
            ```<｜tool▁call▁end｜><｜tool▁calls▁end｜>

https://huggingface.co/deepseek-ai/DeepSeek-V3.1#toolcall, and the chat templates of both. Distilled
models spell the marks with plain underscores, or leave the outer ones out.
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

_CALLS, _CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"
_SEPARATOR = "<｜tool▁sep｜>"


def _spelled(mark: str) -> tuple[str, ...]:
    return (mark, mark.replace("▁", "_"))


_NAME: Final = re.compile(r"[^\s<>`{}]+")
_BACKTICKS: Final = re.compile(r"[^\n{]+")


def _openings(tools: Tools) -> tuple[Opening, ...]:
    del tools  # the marks say that it is a call
    blocks = [Opening(mark, _calls) for mark in _spelled(_CALLS)]
    return (*blocks, *(Opening(mark, _alone) for mark in _spelled(CALL)))


def _calls(tape: Tape) -> Steps[None]:
    while True:
        yield from tape.spaces()
        if (yield from tape.literal(*_spelled(_CALLS_END))):
            return
        yield from tape.expect(*_spelled(CALL))
        yield from _call(tape)
        tape.hold()


def _alone(tape: Tape) -> Steps[None]:
    yield from _call(tape)
    tape.hold()
    yield from _calls(tape)


def _call(tape: Tape) -> Steps[None]:
    yield from tape.spaces()
    name = yield from tape.word(_NAME, NAME_MAX)
    yield from tape.expect(*_spelled(_SEPARATOR))
    yield from tape.spaces()
    if (yield from tape.peek()) != "{":
        if name != "function":  # the type
            raise NotACall
        name = yield from tape.word(_NAME, NAME_MAX)
        yield from tape.spaces()
        if (yield from tape.literal("```")):
            yield from tape.word(_BACKTICKS, 32)
            yield from tape.spaces()
    if not name or (yield from tape.peek()) != "{":
        raise NotACall
    tape.call(name)
    yield from json_text.value(tape, tape.arguments)
    yield from tape.spaces()
    yield from tape.literal("```")
    yield from tape.spaces()
    yield from tape.expect(*_spelled(CALL_END))


def _forced(asked: Asked) -> Forced:
    fenced = _fenced(asked.template)
    kind = f"function{_SEPARATOR}" if fenced else ""
    before, behind = ("\n```json\n", "\n```") if fenced else (_SEPARATOR, "")
    calls = alternatives(asked.tools, lambda tool: tool.name + before, behind)
    return Forced(f"{_CALLS}{CALL}{kind}", *calls)


def written(name: str, arguments: str, template: str) -> str:
    """A call as the model itself writes it."""
    if _fenced(template):
        call = f"function{_SEPARATOR}{name}\n```json\n{arguments}\n```"
    else:
        call = f"{name}{_SEPARATOR}{arguments}"
    return f"{_CALLS}{CALL}{call}{CALL_END}{_CALLS_END}"


def _fenced(template: str) -> bool:
    return "```" in template


DEEPSEEK = Family(
    "DeepSeek V3",
    known_by=((_CALLS,), (CALL,)),
    marks=(_CALLS, _CALLS_END, CALL, CALL_END, _SEPARATOR),
    openings=_openings,
    forced=_forced,
    closings=(CALL_END,),
)
