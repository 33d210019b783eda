"""Knows no model: the one internal form of a conversation and of its answer's stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from localrun.engine.request import (
    FinishReason,
    Grammar,
    Priority,
    SamplingParams,
    Timings,
    TokenLogprob,
)

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call the assistant made. ``arguments`` is a JSON object."""

    id: str
    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. ``reasoning`` is what an assistant thought before its ``content``."""

    role: Role
    content: str
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class RequestContext:
    """Who asks, and how urgently; the fields are ``GenerationRequest``'s."""

    owner: str = ""
    client: str = ""
    priority: Priority = "normal"


@dataclass(frozen=True, slots=True)
class ReplyOptions:
    """``tools`` are JSON-schema function declarations as templates expect them; ``ignore_end`` is
    ``GenerationRequest``'s. Under a ``grammar`` the answer has no reasoning: all of it is held."""

    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    ignore_end: bool = False
    tools: tuple[Mapping[str, Any], ...] = ()
    grammar: Grammar | None = None
    context: RequestContext = RequestContext()


@dataclass(frozen=True, slots=True)
class ReplyEvent:
    """One step of an answer: reasoning, text, prefill progress, or the end.

    Exactly one last event carries ``finish``; ``timings`` is None where a remote server sent none.
    ``logprobs`` are those of the tokens since the last event that had any, where asked for, and
    ``choice`` is which of several answers it belongs to.
    """

    text: str = ""
    reasoning: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    choice: int = 0
    prefilled: int | None = None
    prompt_tokens: int | None = None
    finish: FinishReason | None = None
    timings: Timings | None = None
    error: str | None = None


class ChatModel(Protocol):
    """A model to talk to: the engine here, or a server elsewhere."""

    @property
    def name(self) -> str: ...

    @property
    def backend(self) -> str: ...

    @property
    def n_ctx(self) -> int: ...

    def reply(
        self, messages: Sequence[Message], options: ReplyOptions
    ) -> AsyncGenerator[ReplyEvent]:
        """Stream one answer. Closing the generator early cancels the generation.

        Raises:
            ContextLengthError: the conversation does not fit the context.
            TemplateError: the model's template cannot render these messages.
        """
        ...

    async def close(self) -> None: ...


class ServedModel(ChatModel, Protocol):
    """A model that gives several answers to one question."""

    def replies(
        self, messages: Sequence[Message], options: ReplyOptions, n: int
    ) -> AsyncGenerator[ReplyEvent]:
        """Stream ``n`` answers as one: each ``choice`` has its own last event.

        The prompt is computed once; the seed of each choice is the one before plus 1.

        Raises:
            RequestError: ``n`` is out of its range. Else as ``reply``.
        """
        ...
