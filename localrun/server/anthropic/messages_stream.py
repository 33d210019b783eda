"""Knows no model: what a ChatModel answers, as the events of Anthropic's API.

https://docs.claude.com/en/docs/build-with-claude/streaming
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, Final

from localrun.chat.messages import CallDelta, ReplyEvent
from localrun.errors import EngineError, LocalrunError
from localrun.server.anthropic.call_ids import told_id
from localrun.server.anthropic.messages_answer import SIGNATURE, Answer, begun_usage, usage
from localrun.server.errors import STOPPING, Refusal, anthropic_shape, refusal_of
from localrun.server.sent import TextSlot, server_sent
from localrun.server.ticks import ticking

# Proxies and clients give up on a stream that is silent for a minute and more.
PING_S: Final = 10.0
PING: Final = server_sent({"type": "ping"}, "ping")

# What a block of each kind begins with, and how a piece of it is told.
_EMPTY: Final[dict[str, dict[str, Any]]] = {
    "text": {"text": ""},
    "thinking": {"thinking": "", "signature": ""},
    "tool_use": {},
}
_DELTAS: Final[dict[str, dict[str, str]]] = {
    "text": {"type": "text_delta", "text": ""},
    "thinking": {"type": "thinking_delta", "thinking": ""},
    "tool_use": {"type": "input_json_delta", "partial_json": ""},
}


def _event(kind: str, **fields: Any) -> bytes:
    return server_sent({"type": kind, **fields}, kind)


class _Blocks:
    """The blocks of one answer: at most the last of them is open."""

    def __init__(self) -> None:
        self.called = False
        self._index = -1
        self._kind: str | None = None
        self._slot: TextSlot | None = None
        self._blank = ""

    def take(self, event: ReplyEvent) -> bytes:
        told = b""
        if event.reasoning:
            told += self._piece("thinking", event.reasoning)
        if event.text:
            told += self._text(event.text)
        if event.call is not None:
            told += self._call(event.call)
        return told

    def close(self) -> bytes:
        """The end of the open block, if there is one."""
        kind, self._kind, self._blank = self._kind, None, ""
        if kind is None:
            return b""
        signed = b""
        if kind == "thinking":
            delta = {"type": "signature_delta", "signature": SIGNATURE}
            signed = _event("content_block_delta", index=self._index, delta=delta)
        return signed + _event("content_block_stop", index=self._index)

    def _text(self, text: str) -> bytes:
        """White space begins no block: between a thought and a call nobody wrote it."""
        if self._kind != "text":
            text = self._blank + text
            if not text.strip():
                self._blank = text
                return b""
        return self._piece("text", text)

    def _call(self, call: CallDelta) -> bytes:
        told = b""
        if call.name:
            self.called = True
            head = {"id": told_id(call.id), "name": call.name, "input": {}}
            told = self._open("tool_use", head)
        if call.arguments:
            told += self._told(call.arguments)
        return told

    def _piece(self, kind: str, text: str) -> bytes:
        told = b"" if self._kind == kind else self._open(kind, {})
        return told + self._told(text)

    def _open(self, kind: str, head: dict[str, Any]) -> bytes:
        told = self.close()
        self._index += 1
        self._kind = kind
        delta = _event("content_block_delta", index=self._index, delta=_DELTAS[kind])
        self._slot = TextSlot(delta)
        block = {"type": kind, **head, **_EMPTY[kind]}
        return told + _event("content_block_start", index=self._index, content_block=block)

    def _told(self, text: str) -> bytes:
        assert self._slot is not None
        return self._slot.with_text(text)


async def chunks(answer: Answer, events: AsyncIterator[ReplyEvent]) -> AsyncGenerator[bytes]:
    """The answer as server-sent events; an error ends it as one of its own.

    The first event has to tell the length of the prompt (``counted``). While the prompt is being
    read, and whenever else nothing can be told, there are pings, before the message begins too:
    a model may have to be loaded first.
    """
    blocks, begun, sent = _Blocks(), False, time.monotonic()
    try:
        async with aclosing(ticking(events, PING_S)) as ticks:
            async for event in ticks:
                told = b""
                if event is not None and not begun:
                    begun, told = True, _beginning(answer, event) + PING
                if event is not None:
                    told += blocks.take(event)
                    if event.finish is not None:
                        yield told + _ending(answer, event, blocks)
                        return
                if event is None or (not told and time.monotonic() - sent >= PING_S):
                    told = PING
                if told:
                    sent = time.monotonic()
                    yield told
        raise EngineError("the generation ended without a last event")
    except LocalrunError as error:
        yield _failure(refusal_of(error))


def _beginning(answer: Answer, first: ReplyEvent) -> bytes:
    nothing: dict[str, Any] = {"content": [], "stop_reason": None, "stop_sequence": None}
    counted = {"usage": begun_usage(first.prompt_tokens or 0)}
    return _event("message_start", message=answer.head() | nothing | counted)


def _ending(answer: Answer, last: ReplyEvent, blocks: _Blocks) -> bytes:
    stopped = answer.stopped_by(last, called=blocks.called)
    # Without timings the numbers of the beginning stand.
    spent = {"output_tokens": 0} if last.timings is None else usage(last.timings)
    delta = _event("message_delta", delta=stopped, usage=spent)
    return blocks.close() + delta + _event("message_stop")


def _failure(refusal: Refusal) -> bytes:
    return server_sent(anthropic_shape(refusal), "error")


def goodbye() -> bytes:
    """The last words of a stream that a stopping server cuts."""
    return _failure(STOPPING)
