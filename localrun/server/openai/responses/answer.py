"""Knows no model: what a ChatModel answers as the Responses API tells it, whole and streamed.

https://platform.openai.com/docs/api-reference/responses/object and
https://platform.openai.com/docs/api-reference/responses-streaming; beside them llama.cpp's
``timings``. What is silent for a while repeats ``response.in_progress``: Codex does not count the
comments that other streams are kept alive with (https://github.com/openai/codex/issues/31539).
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final

from localrun.chat.messages import ReplyEvent
from localrun.engine.request import FinishReason, Timings
from localrun.errors import EngineError, LocalrunError
from localrun.server.answers import finish_of
from localrun.server.errors import STOPPING, Refusal, refusal_of
from localrun.server.logprobs import told_tokens
from localrun.server.openai.responses.output import Item, Output, Status, Step
from localrun.server.openai.responses.tools import Toolbox
from localrun.server.sent import compact, server_sent
from localrun.server.ticks import ticking
from localrun.server.timings import llama_timings

# Well below the 60 s after which proxies close, and the 300 s after which Codex does.
QUIET_S: Final = 15.0
# Of the last event of a stream that is cut: the highest there is.
_LAST_NUMBER: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Answer:
    """What every document of one answer shares. ``echoed`` are the request's own fields."""

    model: str
    echoed: Mapping[str, Any] = field(default_factory=dict)
    tools: Toolbox = field(default_factory=Toolbox)
    summary: bool = False
    seal: bool = False
    id: str = field(default_factory=lambda: f"resp_{secrets.token_hex(24)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def output(self) -> Output:
        return Output(self.tools, summary=self.summary, seal=self.seal)

    def document(self, status: str, output: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "background": False,
            "completed_at": int(time.time()) if status == "completed" else None,
            "error": None,
            "incomplete_details": None,
            "model": self.model,
            "output": output,
            "previous_response_id": None,
            "store": False,
            "truncation": "disabled",
            "usage": None,
            **self.echoed,
            **fields,
        }

    def ended(self, output: Output, event: ReplyEvent) -> tuple[str, dict[str, Any]]:
        """The status and the last document, after the last event."""
        cut = finish_of(event) is FinishReason.LENGTH
        status = "incomplete" if cut else "completed"
        fields: dict[str, Any] = {}
        if cut:
            fields["incomplete_details"] = {"reason": "max_output_tokens"}
        if event.timings is not None:
            fields["usage"] = _usage(event.timings, thought_only=output.thought_only)
            fields["timings"] = llama_timings(event.timings)
        return status, self.document(status, output.done, **fields)

    def failed(self, output: list[dict[str, Any]], refusal: Refusal) -> dict[str, Any]:
        error = {"code": _error_code(refusal), "message": refusal.message}
        return self.document("failed", output, error=error)

    def goodbye(self) -> bytes:
        """The last words of a stream that a stopping server cuts."""
        told = {"sequence_number": _LAST_NUMBER, "response": self.failed([], STOPPING)}
        return server_sent({"type": "response.failed", **told}, "response.failed")


def _error_code(refusal: Refusal) -> str:
    """What clients branch on: Codex compacts, waits, gives up or tries again by it."""
    if refusal.code == "context_length_exceeded":
        return refusal.code
    if refusal.status == 429:
        return "rate_limit_exceeded"
    return "invalid_prompt" if 400 <= refusal.status < 500 else "server_error"


def _usage(timings: Timings, *, thought_only: bool) -> dict[str, Any]:
    """Nobody counts how many tokens a thought had, but where it was all there was."""
    prompt, generated = timings.prompt_tokens, timings.generated_tokens
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": timings.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": generated,
        "output_tokens_details": {"reasoning_tokens": generated if thought_only else 0},
        "total_tokens": prompt + generated,
    }


def _last_status(event: ReplyEvent) -> Status:
    return "incomplete" if finish_of(event) is FinishReason.LENGTH else "completed"


async def whole(answer: Answer, events: AsyncIterator[ReplyEvent]) -> dict[str, Any]:
    """The whole answer as one object.

    Raises:
        LocalrunError: what the generation raised, or EngineError for what it ended with.
    """
    output = answer.output()
    async for event in events:
        output.take(event)
        if event.finish is not None:
            output.close(_last_status(event))
            return answer.ended(output, event)[1]
    raise EngineError("the generation ended without a last event")


class _Delta:
    """The event of some more text: nearly all differ in a number and the text alone."""

    __slots__ = ("_after", "_before", "_between")

    def __init__(self, item: Item) -> None:
        kind = item.delta
        fields: dict[str, Any] = {"item_id": item.id, "output_index": item.index, **item.place}
        if kind == "response.output_text.delta":
            fields["logprobs"] = []
        head = compact({"type": kind, **fields}).decode().removesuffix("}")
        self._before = f'event: {kind}\ndata: {head},"sequence_number":'
        self._between = ',"delta":'
        self._after = "}\n\n"

    def event(self, number: int, text: str) -> bytes:
        told = f"{self._before}{number}{self._between}{json.dumps(text)}{self._after}"
        return told.encode()


class _Stream:
    """The events of one answer, numbered."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.output = answer.output()
        self._number = 0
        self._delta: tuple[Item, _Delta] | None = None

    def event(self, kind: str, fields: Mapping[str, Any]) -> bytes:
        told = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return server_sent(told, kind)

    def lifecycle(self, status: str, document: dict[str, Any]) -> bytes:
        return self.event(f"response.{status}", {"response": document})

    def beginning(self) -> Iterator[bytes]:
        yield self.lifecycle("created", self.answer.document("in_progress", []))
        yield self.going_on()

    def going_on(self) -> bytes:
        document = self.answer.document("in_progress", list(self.output.done))
        return self.lifecycle("in_progress", document)

    def taken(self, event: ReplyEvent) -> list[bytes]:
        item = self.output.goes_on(event)
        if item is not None:
            return [self._delta_of(item, item.more(event.text or event.reasoning))]
        return [sent for step in self.output.take(event) for sent in self._sent(step)]

    def ending(self, event: ReplyEvent) -> Iterator[bytes]:
        for step in self.output.close(_last_status(event)):
            yield from self._sent(step)
        yield self.lifecycle(*self.answer.ended(self.output, event))

    def failing(self, refusal: Refusal) -> Iterator[bytes]:
        for step in self.output.close("incomplete"):
            yield from self._sent(step)
        yield self.lifecycle("failed", self.answer.failed(self.output.done, refusal))

    def _sent(self, step: Step) -> Iterator[bytes]:
        item = step.item
        if step.kind == "more":
            yield self._more(step)
        elif step.kind == "opened":
            yield self._whole("added", item, "in_progress")
            for kind, fields in item.opening():
                yield self.event(kind, self._of(item) | fields)
        else:
            for kind, fields in item.closing():
                yield self.event(kind, self._of(item) | fields)
            yield self._whole("done", item, step.status)

    def _more(self, step: Step) -> bytes:
        item = step.item
        assert item.delta is not None
        if step.logprobs:
            text = {"delta": step.text, "logprobs": told_tokens(step.logprobs)}
            return self.event(item.delta, self._of(item) | item.place | text)
        return self._delta_of(item, step.text)

    def _delta_of(self, item: Item, text: str) -> bytes:
        if self._delta is None or self._delta[0] is not item:
            self._delta = item, _Delta(item)
        number, self._number = self._number, self._number + 1
        return self._delta[1].event(number, text)

    def _whole(self, kind: str, item: Item, status: Status) -> bytes:
        fields = {"output_index": item.index, "item": item.document(status)}
        return self.event(f"response.output_item.{kind}", fields)

    def _of(self, item: Item) -> dict[str, Any]:
        return {"item_id": item.id, "output_index": item.index}


async def chunks(answer: Answer, events: AsyncIterator[ReplyEvent]) -> AsyncGenerator[bytes]:
    """The answer as server-sent events. An error ends the stream as ``response.failed``."""
    stream = _Stream(answer)
    for sent in stream.beginning():
        yield sent
    spoke = time.monotonic()
    try:
        async with aclosing(ticking(events, QUIET_S)) as ticks:
            async for event in ticks:
                told = [] if event is None else stream.taken(event)
                for sent in told:
                    yield sent
                if event is not None and event.finish is not None:
                    for sent in stream.ending(event):
                        yield sent
                    return
                now = time.monotonic()
                if told:
                    spoke = now
                elif event is None or now - spoke >= QUIET_S:
                    # Progress within the prompt is no word to the client.
                    spoke = now
                    yield stream.going_on()
        raise EngineError("the generation ended without a last event")
    except LocalrunError as error:
        for sent in stream.failing(refusal_of(error)):
            yield sent
