"""Knows no database: a kept conversation as values, and a message as the columns of a row."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from localrun.chat.messages import Message, Role, ToolCall

TITLE_MAX = 80


@dataclass(frozen=True, slots=True)
class Summary:
    """One line of the list. Times are seconds since the epoch."""

    id: int
    title: str
    model: str
    created: float
    updated: float
    messages: int


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """``complete`` is False for an answer that was cut off while it streamed."""

    id: int
    message: Message
    complete: bool
    created: float


@dataclass(frozen=True, slots=True)
class Conversation:
    """A whole conversation, messages in order, and what was being typed."""

    summary: Summary
    messages: tuple[StoredMessage, ...]
    draft: str


def title_of(text: str) -> str:
    """The first line that says something, on one line, cut to ``TITLE_MAX`` characters."""
    for line in text.splitlines():
        words = "".join(mark if mark.isprintable() else " " for mark in line).split()
        if words:
            title = " ".join(words)
            return (
                storable(title)
                if len(title) <= TITLE_MAX
                else storable(title[: TITLE_MAX - 1]) + "…"
            )
    return ""


def columns(message: Message) -> tuple[str | None, ...]:
    """role, content, reasoning, tool_calls, tool_call_id, name.

    Lone surrogates, which no database holds, become question marks.
    """
    calls = [
        {"id": call.id, "name": call.name, "arguments": dict(call.arguments)}
        for call in message.tool_calls
    ]
    return (
        message.role,
        storable(message.content),
        None if message.reasoning is None else storable(message.reasoning),
        json.dumps(calls),
        None if message.tool_call_id is None else storable(message.tool_call_id),
        None if message.name is None else storable(message.name),
    )


def storable(text: str) -> str:
    """Text that is UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")


def stored_message(row: Mapping[str, Any]) -> StoredMessage:
    """A row of the table back as a value. Raises ValueError, KeyError or TypeError on nonsense."""
    calls: list[dict[str, Any]] = json.loads(row["tool_calls"])
    message = Message(
        role=cast(Role, row["role"]),
        content=row["content"],
        reasoning=row["reasoning"],
        tool_calls=tuple(ToolCall(c["id"], c["name"], c["arguments"]) for c in calls),
        tool_call_id=row["tool_call_id"],
        name=row["name"],
    )
    return StoredMessage(row["id"], message, bool(row["complete"]), row["created"])
