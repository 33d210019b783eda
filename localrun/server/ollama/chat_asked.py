"""Knows no model: what a client of ``POST /api/chat`` asked, in our own words."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Any

from localrun.chat.messages import Message, ReplyOptions, RequestContext, ToolCall
from localrun.engine.request import Grammar
from localrun.server.forms import schema_grammar
from localrun.server.ollama.chat_request import ChatMessage, ChatRequest
from localrun.server.ollama.fields import Options
from localrun.server.sampling import sampling_of

FORM = "format"


def messages_of(asked: Sequence[ChatMessage]) -> list[Message]:
    """Calls without an id get one, and a result without any answers the first open call of its
    name: older clients know no ids, and some templates cannot do without."""
    told: list[Message] = []
    open_calls = _OpenCalls()
    made = 0
    for message in asked:
        calls = []
        for call in message.tool_calls or ():
            id_ = call.id or f"call_{made:05}"
            calls.append(ToolCall(id_, call.function.name, call.function.arguments))
            open_calls.add(calls[-1])
            made += 1
        answers = message.tool_call_id
        if message.role == "tool":
            answers = open_calls.answered_by(message)
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


class _OpenCalls:
    """Calls without a result yet, found in the same time however many they are."""

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._closed: set[int] = set()
        self._all: deque[int] = deque()
        self._by_id: dict[str, deque[int]] = defaultdict(deque)
        self._by_name: dict[str, deque[int]] = defaultdict(deque)

    def add(self, call: ToolCall) -> None:
        at = len(self._ids)
        self._ids.append(call.id)
        for row in (self._all, self._by_id[call.id], self._by_name[call.name]):
            row.append(at)

    def answered_by(self, result: ChatMessage) -> str | None:
        """The id of the call that a tool's result belongs to, which is open no more."""
        if result.tool_call_id is not None:
            row = self._by_id[result.tool_call_id]
        elif result.tool_name is not None:
            row = self._by_name[result.tool_name]
        else:
            row = self._all
        while row and row[0] in self._closed:
            row.popleft()
        if not row:
            return result.tool_call_id
        at = row.popleft()
        self._closed.add(at)
        return self._ids[at]


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
    return schema_grammar(None if isinstance(form, str) else form)
