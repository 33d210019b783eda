"""Knows no wire: calls as Mistrals write them, objects or names and JSON behind a control token.

    to 2024    [TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris"}}]
    from 2025  [TOOL_CALLS]get_weather[CALL_ID]a1B2c3D4e[ARGS]{"city": "Paris"}

https://docs.mistral.ai/cookbooks/concept-deep-dive-tokenization-tool_calling, and mistral-common's
tokenizers v3 to v13. Ids have nine letters and digits; some models give none.
"""

from __future__ import annotations

import re
from typing import Final

from localrun.chat.tools import hermes, json_text, unmarked
from localrun.chat.tools.declared import Tools
from localrun.chat.tools.family import Asked, Family, Forced, Opening
from localrun.chat.tools.json_text import NAME_MAX
from localrun.chat.tools.lark import alternatives
from localrun.chat.tools.tape import NotACall, Steps, Tape

MARK: Final = "[TOOL_CALLS]"
_ARGUMENTS, _ID = "[ARGS]", "[CALL_ID]"
_WORD: Final = re.compile(r"[^\s\[\]{}\"]+")


def _openings(tools: Tools) -> tuple[Opening, ...]:
    del tools  # the mark says that it is a call
    return (Opening(MARK, _calls),)


def _calls(tape: Tape) -> Steps[None]:
    yield from tape.spaces()
    if (yield from tape.literal("[")):
        yield from unmarked.objects(tape, None)
        return
    name = yield from tape.word(_WORD, NAME_MAX)
    yield from tape.spaces()
    id = ""
    if (yield from tape.literal(_ID)):
        yield from tape.spaces()
        id = yield from tape.word(_WORD, NAME_MAX)
        yield from tape.spaces()
    yield from tape.literal(_ARGUMENTS)
    yield from tape.spaces()
    if not name or (yield from tape.peek()) != "{":
        raise NotACall
    tape.call(name, id)
    yield from json_text.value(tape, tape.arguments)


def _forced(asked: Asked) -> Forced:
    if _ARGUMENTS not in asked.template:
        return hermes.forced_list(asked, MARK, "name", "arguments")
    return Forced(MARK, *alternatives(asked.tools, lambda tool: tool.name + _ARGUMENTS))


MISTRAL = Family(
    "Mistral",
    known_by=((MARK,),),
    marks=(MARK, _ARGUMENTS, _ID),
    openings=_openings,
    forced=_forced,
)
