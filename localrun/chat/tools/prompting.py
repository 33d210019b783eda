"""Knows no wire: a conversation with tools, for templates that know of none.

The declarations go into the system message, earlier calls and their results into contents, all in
the form that the answer will be read in.
"""

from __future__ import annotations

import hashlib
import json
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, Final

from localrun.chat.messages import Message, ToolCall
from localrun.chat.tools import deepseek, hermes
from localrun.chat.tools.deepseek import DEEPSEEK
from localrun.chat.tools.families import family_of, takes_tools
from localrun.chat.tools.gemma import GEMMA_3
from localrun.chat.tools.mistral import MISTRAL

_LETTERS: Final = string.ascii_letters + string.digits
_MISTRAL_ID: Final = re.compile(r"[A-Za-z0-9]{9}")
Declarations = Sequence[Mapping[str, Any]]


def adapted(
    template: str | None, messages: Sequence[Message], tools: Declarations
) -> tuple[list[Message], tuple[Mapping[str, Any], ...]]:
    """Messages and tools as the template takes them.

    Templates that know tools get both as they are, but Mistral's, which refuse ids that are not
    theirs.
    """
    if takes_tools(template):
        taken = [_with_short_ids(each) for each in messages] if _is_mistral(template) else messages
        return list(taken), tuple(tools)
    called = any(message.tool_calls or message.role == "tool" for message in messages)
    if not tools and not called:
        return list(messages), ()
    turns = [_written(template, message) for message in messages]
    if tools:
        words = _declarations(template, tools)
        if turns and turns[0].role == "system":
            turns[0] = replace(turns[0], content=f"{turns[0].content}\n\n{words}")
        else:
            turns.insert(0, Message("system", words))
    return _joined(turns), ()


def _is_mistral(template: str | None) -> bool:
    return family_of(template) is MISTRAL


def _with_short_ids(message: Message) -> Message:
    calls = tuple(replace(call, id=_short_id(call.id)) for call in message.tool_calls)
    answered = message.tool_call_id
    return replace(
        message,
        tool_calls=calls,
        tool_call_id=None if answered is None else _short_id(answered),
    )


def _short_id(id: str) -> str:
    """Nine letters and digits, the same for the same id."""
    if _MISTRAL_ID.fullmatch(id):
        return id
    digest = hashlib.sha256(id.encode("utf-8", "replace")).digest()
    return "".join(_LETTERS[byte % len(_LETTERS)] for byte in digest[:9])


def _written(template: str | None, message: Message) -> Message:
    """A turn whose calls or result are part of its content."""
    if message.role == "tool":
        name = f"{message.name}: " if message.name else ""
        content = f"<tool_response>\n{name}{message.content}\n</tool_response>"
        return Message("user", content)
    if not message.tool_calls:
        return message
    calls = "\n".join(_call(template, call) for call in message.tool_calls)
    content = f"{message.content}\n{calls}" if message.content else calls
    return replace(message, content=content, tool_calls=())


def _call(template: str | None, call: ToolCall) -> str:
    arguments = json.dumps(call.arguments, ensure_ascii=False, default=dict)
    name = json.dumps(call.name, ensure_ascii=False)
    family = family_of(template)
    if family is GEMMA_3:
        return f'{{"name": {name}, "parameters": {arguments}}}'
    if family is DEEPSEEK:  # its templates write calls, but tell of no tools
        return deepseek.written(call.name, arguments, template or "")
    return f'{hermes.OPENING}\n{{"name": {name}, "arguments": {arguments}}}\n{hermes.CLOSING}'


def _joined(turns: Sequence[Message]) -> list[Message]:
    """Neighbours of the user's as one turn: results of several calls follow each other, and many
    templates want the roles in turns."""
    joined: list[Message] = []
    for role, run in groupby(turns, lambda turn: turn.role):
        if role == "user":
            first, *others = run
            words = "\n".join((first.content, *(turn.content for turn in others)))
            joined.append(replace(first, content=words))
        else:
            joined += run
    return joined


def _declarations(template: str | None, tools: Declarations) -> str:
    lines = "\n".join(json.dumps(dict(tool), ensure_ascii=False, default=dict) for tool in tools)
    example = _call(template, ToolCall("", "NAME", {"KEY": "VALUE"}))
    return (
        "# Tools\n\nYou may call functions to answer. These are their signatures:\n"
        f"<tools>\n{lines}\n</tools>\n\n"
        "To call one, write nothing but its name and its arguments as JSON, in this form:\n"
        f"{example}"
    )
