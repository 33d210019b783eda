"""Knows no tensors: the adapter between the chat completions API and a ChatModel.

https://platform.openai.com/docs/api-reference/chat and its streaming form; beside them
``reasoning_content``, as DeepSeek and llama.cpp send it, and llama.cpp's ``timings``.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any

from localrun.chat.messages import Message, ReplyEvent, ReplyOptions, Role, ToolCall
from localrun.engine.request import FinishReason, SamplingParams
from localrun.errors import EngineError, LocalrunError
from localrun.server.schemas import ChatMessage, ChatRequest
from localrun.server.shapes import body_of, error_body, llama_timings, usage

DONE = b"data: [DONE]\n\n"
_FINISH = {FinishReason.STOP: "stop", FinishReason.LENGTH: "length", FinishReason.CANCELLED: "stop"}


def messages_of(request: ChatRequest) -> list[Message]:
    return [_message(message) for message in request.messages]


def _message(message: ChatMessage) -> Message:
    role: Role = "system" if message.role == "developer" else message.role
    calls = tuple(
        ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments)
        for call in message.tool_calls or ()
    )
    return Message(
        role=role,
        content=message.content or "",
        reasoning=message.reasoning_content,
        tool_calls=calls,
        tool_call_id=message.tool_call_id,
        name=message.name,
    )


def options_of(request: ChatRequest) -> ReplyOptions:
    """Sampling as asked, the engine's defaults for the rest."""
    asked = {
        "temperature": request.temperature,
        "top_k": request.top_k,
        "top_p": request.top_p,
        "min_p": request.min_p,
        "repeat_penalty": request.repeat_penalty,
        "seed": request.seed,
    }
    given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    tools = () if request.tool_choice == "none" else tuple(request.tools or ())
    return ReplyOptions(
        sampling=replace(SamplingParams(), **given),
        max_tokens=request.max_completion_tokens or request.max_tokens,
        stop=tuple(request.stop or ()),
        ignore_end=bool(request.ignore_eos),
        # Agents send tools of kinds that only their own maker runs: a template knows functions.
        tools=tuple(tool for tool in tools if tool.get("type") == "function"),
    )


@dataclass(frozen=True, slots=True)
class Answer:
    """The fields every chunk or the whole completion shares."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


async def completion(model: str, events: AsyncIterator[ReplyEvent]) -> dict[str, Any]:
    """The whole answer as one object.

    Raises:
        LocalrunError: what the generation raised, or EngineError for what it ended with.
    """
    content: list[str] = []
    reasoning: list[str] = []
    async for event in events:
        content.append(event.text)
        reasoning.append(event.reasoning)
        if event.finish is None:
            continue
        if event.finish is FinishReason.ERROR:
            raise EngineError(event.error or "the generation failed")
        message: dict[str, Any] = {"role": "assistant", "content": "".join(content)}
        if any(reasoning):
            message["reasoning_content"] = "".join(reasoning)
        choice = {
            "index": 0,
            "message": message,
            "finish_reason": _FINISH[event.finish],
            "logprobs": None,
        }
        document = Answer(model).head("chat.completion") | {"choices": [choice]}
        if event.timings is not None:
            document["usage"] = usage(event.timings)
            document["timings"] = llama_timings(event.timings)
        return document
    raise EngineError("the generation ended without a last event")


async def chunks(
    model: str, events: AsyncIterator[ReplyEvent], *, include_usage: bool
) -> AsyncGenerator[bytes]:
    """The answer as server-sent events. An error ends the stream as an event of its own."""
    head = Answer(model).head("chat.completion.chunk")

    def chunk(delta: dict[str, str], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        # OpenAI: with include_usage every chunk but the last has a null usage.
        return head | {"choices": [choice]} | ({"usage": None} if include_usage else {})

    yield server_sent(chunk({"role": "assistant", "content": ""}))
    try:
        async for event in events:
            if event.reasoning:
                yield server_sent(chunk({"reasoning_content": event.reasoning}))
            if event.text:
                yield server_sent(chunk({"content": event.text}))
            if event.finish is FinishReason.ERROR:
                raise EngineError(event.error or "the generation failed")
            if event.finish is not None:
                last = chunk({}, _FINISH[event.finish])
                if event.timings is not None:
                    last["timings"] = llama_timings(event.timings)
                yield server_sent(last)
                if include_usage and event.timings is not None:
                    yield server_sent(head | {"choices": [], "usage": usage(event.timings)})
                break
    except LocalrunError as error:
        yield server_sent(body_of(error))
    yield DONE


def server_sent(document: dict[str, Any]) -> bytes:
    """One event. https://html.spec.whatwg.org/multipage/server-sent-events.html"""
    return b"data: " + json.dumps(document, separators=(",", ":")).encode() + b"\n\n"


def goodbye() -> bytes:
    """The last words of a stream that a stopping server cuts."""
    return server_sent(error_body(503, "the server is shutting down", code="shutdown")) + DONE
