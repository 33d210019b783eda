"""Knows no model: what a model answers as ``/api/chat`` and ``/api/generate`` tell it.

Streams are lines of JSON; the last has ``done`` true and what the answer cost, in nanoseconds.
Calls are told whole, when the answer is. https://docs.ollama.com/api/chat
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from localrun.chat.messages import ReplyEvent, ServedModel
from localrun.engine.request import FinishReason, Timings, TokenLogprob
from localrun.errors import LocalrunError
from localrun.server.answers import finish_of, unfinished
from localrun.server.calls import GatheredCalls, arguments_of
from localrun.server.errors import STOPPING, ollama_shape, refusal_of
from localrun.server.logprobs import told_tokens
from localrun.server.sent import TextSlot, json_line

FINISH: Final = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.CANCELLED: "stop",
}

Part = Callable[[dict[str, Any]], dict[str, Any]]
"""Where ``content``, ``thinking`` and ``tool_calls`` stand in a line."""
Remembered = Callable[[str], Awaitable[list[int]]]
"""What a client sends to go on from an answer with this text."""


def chat_part(said: dict[str, Any]) -> dict[str, Any]:
    return {"message": {"role": "assistant"} | said}


def generate_part(said: dict[str, Any]) -> dict[str, Any]:
    told = dict(said)
    told.pop("tool_calls", None)
    return {"response": told.pop("content"), **told}


@dataclass(slots=True)
class Course:
    """When the work on a request began, and when which model was ready for it."""

    began: float = field(default_factory=time.perf_counter)
    ready: float | None = None
    model: ServedModel | None = None

    def started(self, model: ServedModel) -> None:
        self.ready, self.model = time.perf_counter(), model

    def durations(self) -> dict[str, int]:
        now = time.perf_counter()
        loaded = now if self.ready is None else self.ready
        return {"total_duration": _ns(now - self.began), "load_duration": _ns(loaded - self.began)}


@dataclass(frozen=True, slots=True)
class Answer:
    """``model`` is its name as asked for; ``remembered`` makes the last line's ``context``."""

    model: str
    part: Part
    course: Course
    remembered: Remembered | None = None

    async def whole(self, events: AsyncIterator[ReplyEvent]) -> dict[str, Any]:
        """The answer as one object.

        Raises:
            LocalrunError: what the generation raised, or EngineError for what it ended with.
        """
        content: list[str] = []
        thinking: list[str] = []
        logprobs: list[TokenLogprob] = []
        calls = GatheredCalls()
        async for event in events:
            content.append(event.text)
            thinking.append(event.reasoning)
            logprobs += event.logprobs
            if event.call is not None:
                calls.take(event.call)
            if event.finish is not None:
                break
        else:
            raise unfinished()
        said: dict[str, Any] = {"content": "".join(content)}
        if any(thinking):
            said["thinking"] = "".join(thinking)
        if whole := called(calls):
            said["tool_calls"] = whole
        document = self.line(said) | await self._ending(event, "".join(content))
        return document | told_logprobs(logprobs)

    async def lines(self, events: AsyncIterator[ReplyEvent]) -> AsyncGenerator[bytes]:
        """The answer as it comes. An error ends it as a line of its own."""
        # All but the last say when the answer began: a time for each would cost more than its text.
        slots = {
            "content": TextSlot(json_line(self.line({"content": ""}))),
            "thinking": TextSlot(json_line(self.line({"content": "", "thinking": ""}))),
        }
        calls = GatheredCalls()
        # Nobody wants the text of an answer back whose context is not asked for.
        texts: list[str] | None = None if self.remembered is None else []
        try:
            async for event in events:
                if event.reasoning:
                    yield slots["thinking"].with_text(event.reasoning)
                if event.logprobs:
                    said = self.line({"content": event.text}) | told_logprobs(event.logprobs)
                    yield json_line(said)
                elif event.text:
                    yield slots["content"].with_text(event.text)
                if event.text and texts is not None:
                    texts.append(event.text)
                if event.call is not None:
                    calls.take(event.call)
                if event.finish is not None:
                    ending = await self._ending(event, "".join(texts or ()))
                    if whole := called(calls):
                        yield json_line(self.line({"content": "", "tool_calls": whole}))
                    yield json_line(self.line({"content": ""}) | ending)
                    break
            else:
                raise unfinished()
        except LocalrunError as error:
            yield json_line(ollama_shape(refusal_of(error)))

    def line(self, said: dict[str, Any]) -> dict[str, Any]:
        return {"model": self.model, "created_at": now(), **self.part(said), "done": False}

    def ended(self, reason: str) -> dict[str, Any]:
        """The answer to a request that wanted a model loaded or unloaded."""
        return self.line({"content": ""}) | {"done": True, "done_reason": reason}

    async def _ending(self, event: ReplyEvent, text: str) -> dict[str, Any]:
        ending: dict[str, Any] = {"done": True, "done_reason": FINISH[finish_of(event)]}
        if self.remembered is not None:
            ending["context"] = await self.remembered(text)
        cost = {} if event.timings is None else _cost(event.timings)
        return ending | self.course.durations() | cost


def called(calls: GatheredCalls) -> list[dict[str, Any]]:
    """The calls that are whole; an answer cut by its length may end within one."""
    told: list[dict[str, Any]] = []
    for index, (id_, name, text) in enumerate(calls):
        if (arguments := arguments_of(text)) is not None:
            function = {"index": index, "name": name, "arguments": arguments}
            told.append({"id": id_, "function": function})
    return told


def told_logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """Nothing where none were asked for."""
    return {"logprobs": told_tokens(tokens)} if tokens else {}


def _cost(timings: Timings) -> dict[str, int]:
    return {
        "prompt_eval_count": timings.prompt_tokens,
        "prompt_eval_duration": _ns(timings.prefill_s),
        "eval_count": timings.generated_tokens,
        "eval_duration": _ns(timings.decode_s),
    }


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


def now() -> str:
    """The time as RFC 3339 has it."""
    return stamped(datetime.now(UTC))


def stamped(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


def goodbye() -> bytes:
    """The last words of a stream that a stopping server cuts."""
    return json_line(ollama_shape(STOPPING))
