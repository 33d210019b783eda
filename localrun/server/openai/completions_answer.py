"""Knows no model: completions as the completions API tells them, whole and in chunks.

https://platform.openai.com/docs/api-reference/completions/object, with llama.cpp's ``timings``.
"""

from __future__ import annotations

import codecs
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from localrun.chat.messages import ReplyEvent
from localrun.engine.request import Timings, TokenLogprob
from localrun.errors import LocalrunError
from localrun.server.answers import finish_of, unfinished
from localrun.server.errors import openai_shape, refusal_of
from localrun.server.gathered import Gathered, gathered
from localrun.server.logprobs import UNLIKELY
from localrun.server.openai.chat_answer import DONE, FINISH
from localrun.server.sent import TextSlot, server_sent
from localrun.server.timings import llama_timings, usage


@dataclass(frozen=True, slots=True)
class Wanted:
    """``n`` answers to each of ``prompts``, and the fields that every chunk of them shares."""

    model: str
    prompts: int
    n: int
    id: str = field(default_factory=lambda: f"cmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def choices(self) -> int:
        return self.prompts * self.n

    @property
    def head(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
        }

    def usage(self, ended: Mapping[int, Timings]) -> dict[str, Any]:
        """The tokens of all prompts and answers together, by the answers' timings."""
        together: dict[str, Any] = {}
        for at in range(self.prompts):
            of = [ended[choice] for choice in range(at * self.n, at * self.n + self.n)]
            together = _sum(together, usage(of))
        return together


def _sum(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    if not one:
        return other
    return {
        name: _sum(one[name], value) if isinstance(value, dict) else one[name] + value
        for name, value in other.items()
    }


class _Logprobs:
    """One answer's. ``text_offset`` counts characters, each with the last of its tokens."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0

    def take(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        """OpenAI's older shape; beside the alternatives always the token itself."""
        if not tokens:
            return None
        offsets: list[int] = []
        for each in tokens:
            offsets.append(self._offset)
            self._offset += len(self._decoder.decode(each.text))
        return {
            "tokens": [_shown(each.text) for each in tokens],
            "token_logprobs": [max(each.logprob, UNLIKELY) for each in tokens],
            "top_logprobs": [
                {_shown(text): max(logprob, UNLIKELY) for _, text, logprob in each.top}
                | {_shown(each.text): max(each.logprob, UNLIKELY)}
                for each in tokens
            ],
            "text_offset": offsets,
        }


def _shown(text: bytes) -> str:
    """What is no text by itself is told by its bytes, as OpenAI does."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in text)


def _choice(answer: Gathered, index: int) -> dict[str, Any]:
    return {
        "index": index,
        "text": answer.text,
        "logprobs": _Logprobs().take(answer.logprobs),
        "finish_reason": FINISH[answer.finish],
    }


async def completion(wanted: Wanted, events: AsyncIterator[ReplyEvent]) -> dict[str, Any]:
    """All answers as one object.

    Raises:
        LocalrunError: what a generation raised, or EngineError for what it ended with.
    """
    answers = await gathered(events, wanted.choices)
    choices = [_choice(answer, index) for index, answer in enumerate(answers)]
    ended = {
        at: answer.last.timings
        for at, answer in enumerate(answers)
        if answer.last.timings is not None
    }
    document = wanted.head | {"choices": choices}
    if len(ended) == wanted.choices:
        document["usage"] = wanted.usage(ended)
    if len(ended) == wanted.choices == 1:
        document["timings"] = llama_timings(ended[0])
    return document


class _Chunks:
    """The chunks of all answers."""

    def __init__(self, wanted: Wanted, *, include_usage: bool) -> None:
        self.head = wanted.head
        # OpenAI: with include_usage every chunk but the last has a null usage.
        self._head = self.head | ({"usage": None} if include_usage else {})
        self._slots: dict[int, TextSlot] = {}
        self._logprobs = [_Logprobs() for _ in range(wanted.choices)]

    def chunk(self, event: ReplyEvent, text: str, finish: str | None = None) -> dict[str, Any]:
        choice = {
            "index": event.choice,
            "logprobs": self._logprobs[event.choice].take(event.logprobs),
            "finish_reason": finish,
            "text": text,
        }
        return self._head | {"choices": [choice]}

    def told(self, event: ReplyEvent) -> bytes:
        """The chunk of some text. Nearly all differ in it alone, and thousands leave a second."""
        if event.logprobs:
            return server_sent(self.chunk(event, event.text))
        slot = self._slots.get(event.choice)
        if slot is None:
            empty = server_sent(self.chunk(ReplyEvent(choice=event.choice), ""))
            slot = self._slots[event.choice] = TextSlot(empty)
        return slot.with_text(event.text)


async def chunks(
    wanted: Wanted, events: AsyncIterator[ReplyEvent], *, include_usage: bool
) -> AsyncGenerator[bytes]:
    """The answers as server-sent events, each with the index of its choice.

    An error ends the stream as an event of its own.
    """
    made = _Chunks(wanted, include_usage=include_usage)
    ended: dict[int, Timings | None] = {}
    try:
        async for event in events:
            if event.text or event.logprobs:
                yield made.told(event)
            if event.finish is None:
                continue
            ended[event.choice] = event.timings
            finish = FINISH[finish_of(event)]
            last = made.chunk(ReplyEvent(choice=event.choice), "", finish)
            if event.timings is not None:
                last["timings"] = llama_timings(event.timings)
            yield server_sent(last)
            if len(ended) == wanted.choices:
                break
        else:
            raise unfinished()
        counted = {at: timings for at, timings in ended.items() if timings is not None}
        if include_usage and len(counted) == wanted.choices:
            yield server_sent(made.head | {"choices": [], "usage": wanted.usage(counted)})
    except LocalrunError as error:
        yield server_sent(openai_shape(refusal_of(error)))
    yield DONE
