"""Knows no template: a conversation of any shape as one that every chat template takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from localrun.chat.messages import Message


def simplified(messages: Sequence[Message]) -> list[Message]:
    """At most one system message, at the start; user and assistant in turns, the user first.

    A system message in the middle becomes the user's words where it stands, so that what comes
    before it stays as it was and its computed prefix is of use. Tool results become the user's.
    """
    turns: list[Message] = []
    for message in messages:
        begins = not turns and message.role == "system"
        role = message.role if begins or message.role == "assistant" else "user"
        _append(turns, replace(message, role=role, tool_call_id=None))
    return turns


def _append(turns: list[Message], message: Message) -> None:
    before = turns[-1] if turns else None
    if before is None or before.role != message.role:
        if message.role == "assistant" and (before is None or before.role == "system"):
            turns.append(Message("user", ""))
        turns.append(message)
        return
    turns[-1] = replace(
        before,
        content="\n\n".join(text for text in (before.content, message.content) if text),
        tool_calls=before.tool_calls + message.tool_calls,
    )
