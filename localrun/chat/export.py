"""Knows no database: a conversation as Markdown to read or JSON to process."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from localrun.chat.conversation import Conversation, StoredMessage
from localrun.chat.templates import template_message

_SPEAKERS = {"system": "System", "user": "You", "assistant": "Assistant", "tool": "Tool"}


def to_markdown(conversation: Conversation) -> str:
    """A document: title, model and date, then a heading for each turn. Reasoning is quoted."""
    summary = conversation.summary
    lines = [
        f"# {summary.title or 'Untitled'}",
        "",
        f"{summary.model} · {_time(summary.created)}",
        "",
    ]
    for stored in conversation.messages:
        lines += _turn(stored)
    return "\n".join(lines).rstrip() + "\n"


def to_json(conversation: Conversation) -> str:
    """One JSON document; ``messages`` have the fields chat templates and OpenAI's API know."""
    summary = conversation.summary
    document = {
        "title": summary.title,
        "model": summary.model,
        "created": _time(summary.created),
        "updated": _time(summary.updated),
        "messages": [
            {
                **{k: v for k, v in template_message(stored.message).items() if k != "thinking"},
                "complete": stored.complete,
                "created": _time(stored.created),
            }
            for stored in conversation.messages
        ],
    }
    return json.dumps(document, ensure_ascii=False, indent=2) + "\n"


def _turn(stored: StoredMessage) -> list[str]:
    message = stored.message
    lines = [f"## {_SPEAKERS[message.role]}", ""]
    if message.reasoning:
        lines += [f"> {line}".rstrip() for line in message.reasoning.splitlines()] + [""]
    if message.content:
        lines += [message.content.rstrip(), ""]
    for call in message.tool_calls:
        arguments = json.dumps(dict(call.arguments), ensure_ascii=False)
        lines += [f"Calls `{call.name}` with `{arguments}`", ""]
    if not stored.complete:
        lines += ["*(cut off)*", ""]
    return lines


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
