"""Knows no wire: calls as Qwen3-Coder writes them, parameters in tags, without quotes.

    <tool_call>
    <function=get_weather>
    <parameter=city>
    Paris
    </parameter>
    </function>
    </tool_call>

https://huggingface.co/Qwen/Qwen3-Coder-30B-A3B-Instruct/blob/main/chat_template.jinja; Qwen 3.5 and
Nemotron 3 write it too. The outer mark is often forgotten. MiniMax M2 writes the same with other
tags (https://huggingface.co/MiniMaxAI/MiniMax-M2/blob/main/docs/tool_calling_guide.md):

    <minimax:tool_call>
    <invoke name="get_weather">
    <parameter name="city">Paris</parameter>
    </invoke>
    </minimax:tool_call>
"""

from __future__ import annotations

import json
import re
from typing import Final

from localrun.chat.tools import hermes
from localrun.chat.tools.declared import Tool, Tools
from localrun.chat.tools.family import Asked, Body, Family, Forced, Opening
from localrun.chat.tools.lark import argument_schema, json_rule, literal, repeated
from localrun.chat.tools.tagged import Tags, alone, block
from localrun.chat.tools.tape import Steps, Tape

_QWEN: Final = Tags(
    call="<function=",
    call_header=re.compile(r"\s*(?P<name>[^\s<>]+)\s*"),
    call_end="</function>",
    parameter="<parameter=",
    parameter_header=re.compile(r"\s*(?P<name>[^<>]*[^<>\s])\s*"),
    parameter_end="</parameter>",
    block_end="</tool_call>",
    padded=True,
)
_MINIMAX: Final = Tags(
    call="<invoke name=",
    call_header=re.compile(r'\s*"?(?P<name>[^\s<>"]+)"?\s*'),
    call_end="</invoke>",
    parameter="<parameter name=",
    parameter_header=re.compile(r'\s*"?(?P<name>[^<>"]+)"?\s*'),
    parameter_end="</parameter>",
    block_end="</minimax:tool_call>",
)
_LENGTH_MAX: Final = 1000
_MINIMAX_BLOCK: Final = "<minimax:tool_call>"


def _qwen(tools: Tools) -> tuple[Opening, ...]:
    tagged, objects = block(_QWEN, tools), hermes.between(hermes.CLOSING)

    def body(tape: Tape) -> Steps[None]:
        yield from tape.spaces()
        # Models that were trained on both forms mix them up.
        form: Body = objects if (yield from tape.peek()) in {"{", "["} else tagged
        yield from form(tape)

    return (Opening(hermes.OPENING, body), Opening(_QWEN.call, alone(_QWEN, tools)))


def _minimax(tools: Tools) -> tuple[Opening, ...]:
    return (
        Opening(_MINIMAX_BLOCK, block(_MINIMAX, tools)),
        Opening(_MINIMAX.call, alone(_MINIMAX, tools)),
    )


def _forced_qwen(asked: Asked) -> Forced:
    start, rules = _functions(asked.tools, "{}>\n", "<parameter={}>\n", "</parameter>\n")
    if asked.several:
        start = repeated(f"({start})", "\n</tool_call>\n<tool_call>\n<function=")
    return Forced("<tool_call>\n<function=", start, rules)


def _forced_minimax(asked: Asked) -> Forced:
    start, rules = _functions(
        asked.tools, '{}">\n', '<parameter name="{}">', "</parameter>\n", "</invoke>"
    )
    if asked.several:
        start = repeated(f"({start})", '\n<invoke name="')
    return Forced(f'{_MINIMAX_BLOCK}\n<invoke name="', start, rules)


def _functions(
    tools: tuple[Tool, ...],
    header: str,
    parameter: str,
    parameter_end: str,
    call_end: str = "</function>",
) -> tuple[str, tuple[str, ...]]:
    """Any of the tools: the rule for a call, from behind its opening on."""
    options, rules = [], []
    for at, tool in enumerate(tools):
        parts = [literal(header.format(tool.name))]
        for number, name in enumerate(tool.properties):
            rule = f"a{at}_{number}"
            part = f"{literal(parameter.format(name))} {rule}"
            parts.append(part if name in tool.required else f"({part})?")
            rules += argument_rules(rule, tool, name, parameter_end)
        options.append(" ".join([*parts, literal(call_end)]))
    return " | ".join(options), tuple(rules)


def argument_rules(rule: str, tool: Tool, name: str, closing: str) -> list[str]:
    """The rules for an argument's text and what closes it. A string stands without quotes."""
    schema = argument_schema(tool, name)
    types = tool.types(name)
    if "string" not in types:
        return [f"{rule}: {rule}_json {literal(closing)}", json_rule(f"{rule}_json", schema)]
    options = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if options and isinstance(options, list | tuple):
        texts = [each if isinstance(each, str) else json.dumps(each) for each in options]
        return [f"{rule}: ({' | '.join(map(literal, texts))}) {literal(closing)}"]
    least, most = (_length(schema.get(key)) for key in ("minLength", "maxLength"))
    return [f"{rule}[suffix={literal(closing)}]: /(?s:.{{{least or 0},{most}}})/"]


def _length(said: object) -> int | str:
    """A bound that a regular expression can count to; nothing for others."""
    return said if isinstance(said, int) and 0 <= said <= _LENGTH_MAX else ""


QWEN_CODER = Family(
    "Qwen3-Coder",
    known_by=(("<function=", "<parameter="),),
    marks=(hermes.OPENING, hermes.CLOSING),
    openings=_qwen,
    forced=_forced_qwen,
    closings=(hermes.CLOSING,),
)
MINIMAX = Family(
    "MiniMax M2",
    known_by=((_MINIMAX_BLOCK,),),
    marks=(_MINIMAX_BLOCK, _MINIMAX.block_end),
    openings=_minimax,
    forced=_forced_minimax,
    closings=(_MINIMAX.call_end,),
)
