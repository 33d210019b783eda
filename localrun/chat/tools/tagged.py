"""Knows no family: calls whose arguments stand in tags of their own.

<function=get_weather>
<parameter=city>
Paris
</parameter>
</function>
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from localrun.chat.tools import json_text, typed
from localrun.chat.tools.declared import STRING, Tools
from localrun.chat.tools.family import Body
from localrun.chat.tools.json_text import escaped
from localrun.chat.tools.tape import NotACall, Steps, Tape

_HEADER_MAX: Final = 512


@dataclass(frozen=True, slots=True)
class Tags:
    """The tags of one format.

    call, parameter: how each opens; up to ``>`` follows what ``call_header`` and
        ``parameter_header`` match, with the groups ``name`` and perhaps ``string``.
    block_end: what closes a block of calls; empty where a block is one call.
    padded: as in ``typed.value``.
    """

    call: str
    call_header: re.Pattern[str]
    call_end: str
    parameter: str
    parameter_header: re.Pattern[str]
    parameter_end: str
    block_end: str
    padded: bool = False


def block(tags: Tags, tools: Tools) -> Body:
    """The calls of a block, from behind its opening mark on."""

    def body(tape: Tape) -> Steps[None]:
        while True:
            yield from tape.spaces()
            if not (yield from tape.literal(tags.call)):
                if (yield from tape.literal(tags.block_end)):
                    return
                raise NotACall
            yield from _call(tape, tags, tools)
            tape.hold()

    return body


def alone(tags: Tags, tools: Tools) -> Body:
    """One call whose block was not opened, from behind its own mark on."""

    def body(tape: Tape) -> Steps[None]:
        yield from _call(tape, tags, tools)
        tape.hold()
        yield from tape.spaces()
        if not (yield from tape.literal(tags.block_end)):
            raise NotACall

    return body


def _call(tape: Tape, tags: Tags, tools: Tools) -> Steps[None]:
    header = yield from tape.until((">",), _HEADER_MAX)
    match = tags.call_header.fullmatch(header)
    if match is None:
        raise NotACall
    name = match["name"]
    yield from tape.spaces()
    if not (yield from tape.peek()):
        raise NotACall
    if (yield from tape.peek()) == "{":
        # Some write the arguments as the JSON that they were shown.
        tape.call(name)
        yield from json_text.value(tape, tape.arguments)
        yield from tape.spaces()
        yield from tape.expect(tags.call_end)
        return
    between = "{"
    while True:
        yield from tape.spaces()
        mark = yield from tape.expect(tags.parameter, tags.call_end)
        if between == "{":
            tape.call(name)
        if mark == tags.call_end:
            tape.arguments("{}" if between == "{" else "}")
            return
        yield from _parameter(tape, tags, tools, name, between)
        between = ", "


def _parameter(tape: Tape, tags: Tags, tools: Tools, name: str, between: str) -> Steps[None]:
    match = tags.parameter_header.fullmatch((yield from tape.until((">",), _HEADER_MAX)))
    if match is None:
        raise NotACall
    key = match["name"]
    types = tools.types(name, key)
    if (said := match.groupdict().get("string")) is not None:
        types = STRING if said == "true" else types - STRING
    tape.arguments(f'{between}"{escaped(key)}": ')
    yield from typed.value(tape, types, (tags.parameter_end,), padded=tags.padded)
