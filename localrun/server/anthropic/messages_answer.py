"""Knows no model: what a ChatModel answers, as a message of Anthropic's API.

https://docs.claude.com/en/api/messages
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from localrun.chat.messages import ReplyEvent
from localrun.engine.request import FinishReason, Timings
from localrun.errors import EngineError
from localrun.server.answers import finish_of
from localrun.server.anthropic.call_ids import told_id
from localrun.server.calls import arguments_of

# Claude Code drops thoughts that nobody signed; what is signed is not looked at here.
SIGNATURE: Final = "bG9jYWxydW4="


@dataclass(frozen=True, slots=True)
class Answer:
    """What an answer repeats of its request, or is judged by."""

    model: str
    stops: Sequence[str] = ()
    max_tokens: int | None = None
    id: str = field(default_factory=lambda: f"msg_{secrets.token_hex(12)}")

    def head(self) -> dict[str, Any]:
        return {"id": self.id, "type": "message", "role": "assistant", "model": self.model}

    def stopped_by(self, last: ReplyEvent, *, called: bool) -> dict[str, str | None]:
        """``stop_reason`` and ``stop_sequence`` of an answer with this last event.

        Raises:
            LocalrunError: it ended by an error.
        """
        finish, sequence = finish_of(last), None
        if finish is FinishReason.LENGTH:
            reason = "max_tokens" if self._full(last.timings) else "model_context_window_exceeded"
        elif last.stopped is not None and last.stopped in self.stops:
            reason, sequence = "stop_sequence", last.stopped
        else:
            reason = "tool_use" if called else "end_turn"
        return {"stop_reason": reason, "stop_sequence": sequence}

    def _full(self, timings: Timings | None) -> bool:
        """Whether it is as long as was asked for."""
        if timings is None:
            return True
        return self.max_tokens is not None and timings.generated_tokens >= self.max_tokens


def usage(timings: Timings | None) -> dict[str, int]:
    """``input_tokens`` are those that were neither read from a cache nor written to be kept: all
    three together are the prompt. Keeping costs nothing here."""
    if timings is None:
        return begun_usage(0)
    return {
        "input_tokens": timings.prompt_tokens - timings.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": timings.cached_tokens,
        "output_tokens": timings.generated_tokens,
    }


def begun_usage(prompt_tokens: int) -> dict[str, int]:
    """Of an answer that begins: what is cached of its prompt is told at its end."""
    return {
        "input_tokens": prompt_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": 0,
    }


@dataclass(slots=True)
class _Block:
    """One block of an answer, gathered: ``texts`` are of its ``kind``; ``head`` names a call."""

    kind: str
    head: dict[str, str] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)

    def told(self) -> dict[str, Any] | None:
        text = "".join(self.texts)
        if self.kind == "thinking":
            return {"type": "thinking", "thinking": text, "signature": SIGNATURE}
        if self.kind == "tool_use":
            # One that ``max_tokens`` cut is told as far as it came.
            return {"type": "tool_use", **self.head, "input": arguments_of(text, cut=True) or {}}
        # Line breaks between a thought and a call are no text that anyone wrote.
        return {"type": "text", "text": text} if text.strip() else None


async def message(answer: Answer, events: AsyncIterator[ReplyEvent]) -> dict[str, Any]:
    """The whole answer.

    Raises:
        LocalrunError: what the generation raised, or EngineError for what it ended with.
    """
    blocks: list[_Block] = []
    async for event in events:
        if event.reasoning:
            _block(blocks, "thinking").texts.append(event.reasoning)
        if event.text:
            _block(blocks, "text").texts.append(event.text)
        if event.call is not None:
            if event.call.name:
                head = {"id": told_id(event.call.id), "name": event.call.name}
                blocks.append(_Block("tool_use", head))
            blocks[-1].texts.append(event.call.arguments)
        if event.finish is not None:
            break
    else:
        raise EngineError("the generation ended without a last event")
    called = any(block.kind == "tool_use" for block in blocks)
    ended = answer.stopped_by(event, called=called)
    content = [told for block in blocks if (told := block.told()) is not None]
    return answer.head() | {"content": content, **ended, "usage": usage(event.timings)}


def _block(blocks: list[_Block], kind: str) -> _Block:
    """The last block if it is of that kind, or a new one."""
    if not blocks or blocks[-1].kind != kind:
        blocks.append(_Block(kind))
    return blocks[-1]
