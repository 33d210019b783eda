"""Knows no model: what a client of ``POST /api/chat`` asked, in our own words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from localrun.chat.messages import Message, ReplyOptions, RequestContext, ToolCall
from localrun.engine.request import Grammar
from localrun.server.ollama.chat_request import ChatMessage, ChatRequest
from localrun.server.ollama.fields import Options
from localrun.server.sampling import sampling_of

FORM = "format"


def messages_of(asked: Sequence[ChatMessage]) -> list[Message]:
    """Calls without an id get one, and a result without any answers the first open call of its
    name: older clients know no ids, and some templates cannot do without."""
    told: list[Message] = []
    open_calls: list[ToolCall] = []
    made = 0
    for message in asked:
        calls = []
        for call in message.tool_calls or ():
            id_ = call.id or f"call_{made:05}"
            calls.append(ToolCall(id_, call.function.name, call.function.arguments))
            made += 1
        open_calls += calls
        answers = message.tool_call_id
        if message.role == "tool" and open_calls:
            answers = _answered(open_calls, message)
        told.append(
            Message(
                role=message.role,
                content=message.content or "",
                reasoning=message.thinking or None,
                tool_calls=tuple(calls),
                tool_call_id=answers,
                name=message.tool_name,
            )
        )
    return told


def _answered(open_calls: list[ToolCall], result: ChatMessage) -> str | None:
    """The id of the call that a tool's result belongs to, which is open no more."""
    for call in open_calls:
        named = call.name == result.tool_name or result.tool_name is None
        if call.id == result.tool_call_id or (result.tool_call_id is None and named):
            open_calls.remove(call)
            return call.id
    return result.tool_call_id


def options_of(body: ChatRequest, context: RequestContext) -> ReplyOptions:
    options = body.options or Options()
    last = body.messages[-1] if body.messages else None
    return ReplyOptions(
        sampling=sampling_of(options, logprobs=body.alternatives),
        max_tokens=options.max_tokens,
        stop=tuple(options.stop or ()),
        tools=tuple(body.tools or ()),
        variables=body.variables,
        continues=last is not None and last.role == "assistant" and not last.tool_calls,
        grammar=grammar_of(body.format),
        context=context,
    )


def grammar_of(form: str | dict[str, Any] | None) -> Grammar | None:
    if form is None:
        return None
    schema = {"type": "object"} if isinstance(form, str) else form
    return Grammar("json_schema", json.dumps(schema))
