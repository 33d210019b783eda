"""Knows no model: what a ChatModel answers as the chat completions API tells it.

https://platform.openai.com/docs/api-reference/chat and its streaming form; beside them
``reasoning_content``, as DeepSeek and llama.cpp send it, and llama.cpp's ``timings``.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from localrun.chat.messages import CallDelta, ReplyEvent
from localrun.engine.request import FinishReason, Timings
from localrun.errors import LocalrunError
from localrun.server.answers import finish_of, unfinished
from localrun.server.errors import STOPPING, openai_shape, refusal_of
from localrun.server.gathered import Gathered, gathered
from localrun.server.logprobs import logprobs
from localrun.server.sent import TextSlot, server_sent
from localrun.server.timings import llama_timings, usage

DONE = b"data: [DONE]\n\n"
FINISH = {FinishReason.STOP: "stop", FinishReason.LENGTH: "length", FinishReason.CANCELLED: "stop"}


@dataclass(frozen=True, slots=True)
class Answer:
    """The fields every chunk or the whole completion shares."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def _choice(answer: Gathered, index: int) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": answer.text}
    if answer.reasoning:
        message["reasoning_content"] = answer.reasoning
    if answer.calls:
        # OpenAI: null where nothing was said beside.
        message["content"] = message["content"] or None
        message["tool_calls"] = [
            {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}
            for id_, name, arguments in answer.calls
        ]
    return {
        "index": index,
        "message": message,
        "finish_reason": _finish(answer.finish, bool(answer.calls)),
        "logprobs": logprobs(answer.logprobs),
    }


async def completion(model: str, events: AsyncIterator[ReplyEvent], n: int = 1) -> dict[str, Any]:
    """The whole answer, of ``n`` choices, as one object.

    Raises:
        LocalrunError: what the generation raised, or EngineError for what it ended with.
    """
    answers = await gathered(events, n)
    choices = [_choice(answer, index) for index, answer in enumerate(answers)]
    document = Answer(model).head("chat.completion") | {"choices": choices}
    timings = [answer.last.timings for answer in answers if answer.last.timings is not None]
    if timings:
        document["usage"] = usage(timings)
    if len(timings) == 1:
        document["timings"] = llama_timings(timings[0])
    return document


class _Chunks:
    """The chunks of one answer."""

    def __init__(self, model: str, *, include_usage: bool) -> None:
        self.head = Answer(model).head("chat.completion.chunk")
        # OpenAI: with include_usage every chunk but the last has a null usage.
        self._tail: dict[str, Any] = {"usage": None} if include_usage else {}
        self._slots: dict[tuple[int, str], TextSlot] = {}

    def chunk(
        self, event: ReplyEvent, delta: dict[str, Any], finish: str | None = None
    ) -> dict[str, Any]:
        choice = {
            "index": event.choice,
            "delta": delta,
            "finish_reason": finish,
            "logprobs": logprobs(event.logprobs),
        }
        return self.head | {"choices": [choice]} | self._tail

    def told(self, event: ReplyEvent, key: str, text: str) -> bytes:
        """The chunk of some text. Nearly all differ in it alone, and thousands leave a second."""
        # OpenAI's are those of the content: a thought's are told of nowhere.
        if event.logprobs and key == "content":
            return server_sent(self.chunk(event, {key: text}))
        slot = self._slots.get((event.choice, key))
        if slot is None:
            # Its last empty string is the one that a text takes the place of.
            empty = server_sent(self.chunk(ReplyEvent(choice=event.choice), {key: ""}))
            slot = self._slots[event.choice, key] = TextSlot(empty)
        return slot.with_text(text)

    def called(self, event: ReplyEvent, call: CallDelta) -> bytes:
        """The chunk of a call's beginning, or of some of its arguments."""
        function: dict[str, str] = {"arguments": call.arguments}
        told: dict[str, Any] = {"index": call.index, "function": function}
        if call.name:
            function["name"] = call.name
            told |= {"id": call.id, "type": "function"}
        return server_sent(self.chunk(event, {"tool_calls": [told]}))


async def chunks(
    model: str, events: AsyncIterator[ReplyEvent], n: int = 1, *, include_usage: bool
) -> AsyncGenerator[bytes]:
    """The answer as server-sent events, each with the index of its choice.

    An error ends the stream as an event of its own.
    """
    made = _Chunks(model, include_usage=include_usage)
    for index in range(n):
        began = {"role": "assistant", "content": ""}
        yield server_sent(made.chunk(ReplyEvent(choice=index), began))
    ended: list[Timings | None] = []
    callers: set[int] = set()
    try:
        async for event in events:
            if event.reasoning:
                yield made.told(event, "reasoning_content", event.reasoning)
            if event.text:
                yield made.told(event, "content", event.text)
            if event.call is not None:
                callers.add(event.choice)
                yield made.called(event, event.call)
            if event.finish is None:
                continue
            finish = _finish(finish_of(event), event.choice in callers)
            last = made.chunk(event, {}, finish)
            if event.timings is not None:
                last["timings"] = llama_timings(event.timings)
            yield server_sent(last)
            ended.append(event.timings)
            if len(ended) == n:
                break
        else:
            raise unfinished()
        counted = [timings for timings in ended if timings is not None]
        if include_usage and counted:
            yield server_sent(made.head | {"choices": [], "usage": usage(counted)})
    except LocalrunError as error:
        yield server_sent(openai_shape(refusal_of(error)))
    yield DONE


def _finish(reason: FinishReason, called: bool) -> str:
    return "tool_calls" if called and reason is FinishReason.STOP else FINISH[reason]


def goodbye() -> bytes:
    """The last words of a stream that a stopping server cuts."""
    return server_sent(openai_shape(STOPPING)) + DONE
