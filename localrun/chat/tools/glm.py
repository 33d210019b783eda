"""Knows no wire: calls as GLM writes them, a name, then keys and values in tags.

    <tool_call>get_weather
    <arg_key>city</arg_key>
    <arg_value>Paris</arg_value>
    </tool_call>

https://huggingface.co/zai-org/GLM-4.6/blob/main/chat_template.jinja; GLM 4.7 leaves the line breaks
out.
"""

from __future__ import annotations

import re
from typing import Final

from localrun.chat.tools import hermes, typed
from localrun.chat.tools.declared import Tools
from localrun.chat.tools.family import Asked, Family, Forced, Opening
from localrun.chat.tools.json_text import NAME_MAX, escaped
from localrun.chat.tools.lark import literal, repeated
from localrun.chat.tools.qwen_coder import argument_rules
from localrun.chat.tools.tape import NotACall, Steps, Tape

_NAME: Final = re.compile(r"[^\s<>{}\"]+")
_KEY, _KEY_END, _VALUE, _VALUE_END = "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"


def _openings(tools: Tools) -> tuple[Opening, ...]:
    objects = hermes.between(hermes.CLOSING)

    def body(tape: Tape) -> Steps[None]:
        yield from tape.spaces()
        if (yield from tape.peek()) in {"{", "["}:
            yield from objects(tape)
        else:
            yield from _call(tape, tools)

    return (Opening(hermes.OPENING, body),)


def _call(tape: Tape, tools: Tools) -> Steps[None]:
    name = yield from tape.word(_NAME, NAME_MAX)
    if not name:
        raise NotACall
    between = "{"
    while True:
        yield from tape.spaces()
        mark = yield from tape.expect(_KEY, hermes.CLOSING)
        if between == "{":
            tape.call(name)
        if mark == hermes.CLOSING:
            tape.arguments("{}" if between == "{" else "}")
            return
        key = (yield from tape.until((_KEY_END,), NAME_MAX)).strip()
        yield from tape.spaces()
        yield from tape.expect(_VALUE)
        tape.arguments(f'{between}"{escaped(key)}": ')
        yield from typed.value(tape, tools.types(name, key), (_VALUE_END,))
        between = ", "


def _forced(asked: Asked) -> Forced:
    options, rules = [], []
    for at, tool in enumerate(asked.tools):
        parts = [literal(f"{tool.name}\n")]
        for number, name in enumerate(tool.properties):
            rule = f"a{at}_{number}"
            key = literal(f"{_KEY}{name}{_KEY_END}\n{_VALUE}")
            part = f"{key} {rule}"
            parts.append(part if name in tool.required else f"({part})?")
            rules += argument_rules(rule, tool, name, f"{_VALUE_END}\n")
        options.append(" ".join([*parts, literal(hermes.CLOSING)]))
    start = " | ".join(options)
    if asked.several:
        start = repeated(f"({start})", f"\n{hermes.OPENING}")
    return Forced(hermes.OPENING, start, tuple(rules))


GLM = Family(
    "GLM",
    known_by=((_KEY, _VALUE),),
    marks=(hermes.OPENING, hermes.CLOSING, _KEY, _KEY_END, _VALUE, _VALUE_END),
    openings=_openings,
    forced=_forced,
    closings=(hermes.CLOSING,),
)
