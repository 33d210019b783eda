"""Knows no model: the one internal form of a conversation and of its answer's stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from localrun.engine.client import EngineInfo
from localrun.engine.request import (
    FinishReason,
    Grammar,
    Priority,
    SamplingParams,
    Timings,
    TokenLogprob,
)
from localrun.engine.runner import RunnerStats
from localrun.errors import LocalrunError

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


NOBODY = RequestContext()


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Whether the answer may be a call (``auto``), is none, or has to be one (``required``): of any
    tool, or of the one called ``name``. Not ``parallel``: at most one call an answer."""

    mode: Literal["auto", "none", "required"] = "auto"
    name: str | None = None
    parallel: bool = True


@dataclass(frozen=True, slots=True)
class ReplyOptions:
    """``tools`` are JSON-schema function declarations as templates expect them; ``variables`` are
    the template's own (``enable_thinking``, ``reasoning_effort``). ``continues``: the last message
    is the beginning of the answer, which goes on from it. ``ignore_end``, ``max_prefill_s``,
    ``max_decode_s`` and ``min_indent`` are ``GenerationRequest``'s. Under a ``grammar`` the answer
    has neither reasoning nor calls: all of it is held."""

    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    ignore_end: bool = False
    tools: tuple[Mapping[str, Any], ...] = ()
    tool_choice: ToolChoice = ToolChoice()
    variables: Mapping[str, Any] = field(default_factory=dict)
    continues: bool = False
    grammar: Grammar | None = None
    max_prefill_s: float | None = None
    max_decode_s: float | None = None
    min_indent: int = 0
    context: RequestContext = NOBODY


@dataclass(frozen=True, slots=True)
class CallDelta:
    """Some of a tool call: ``index`` counts the answer's calls. The first of each carries ``id``
    and ``name``, those after it pieces of ``arguments``, which make one JSON object together."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class ReplyEvent:
    """One step of an answer: reasoning, text, part of a call, prefill progress, or the end.

    Exactly one last event carries ``finish``; ``timings`` is None where a remote server sent none.
    ``logprobs`` are those of the tokens since the last event that had any, where asked for, and
    ``choice`` is which of several answers it belongs to. ``tokens`` are the ids since the last
    event that had any, where the answer is a completion. ``stopped`` is the stop string that ended
    it.
    """

    text: str = ""
    reasoning: str = ""
    call: CallDelta | None = None
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    choice: int = 0
    prefilled: int | None = None
    prompt_tokens: int | None = None
    finish: FinishReason | None = None
    stopped: str | None = None
    timings: Timings | None = None
    error: LocalrunError | None = None


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


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a completion goes on from: texts and token ids, one after the other.

    ``special``: names of control tokens within texts are those tokens; and what the model's
    vocabulary puts before every text is put before it.
    """

    parts: tuple[str | int, ...]
    special: bool = True

    @classmethod
    def of(cls, text: str) -> Prompt:
        return cls((text,))


@dataclass(frozen=True, slots=True)
class Snippet:
    """Text of another place that a model filling a gap should know of."""

    text: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class Gap:
    """What stands before and behind a text to be filled in; ``begun`` is how it begins already.

    ``snippets`` are other files' texts, the most telling last.
    """

    prefix: str
    suffix: str
    begun: str = ""
    snippets: tuple[Snippet, ...] = ()


@dataclass(frozen=True, slots=True)
class Embedded:
    """One vector a text, in their order, and how many ``tokens`` the texts had together."""

    vectors: Sequence[Sequence[float]]
    tokens: int


class ServedModel(ChatModel, Protocol):
    """A model that answers whatever a client of the port may ask."""

    @property
    def info(self) -> EngineInfo: ...

    def replies(
        self, messages: Sequence[Message], options: ReplyOptions, n: int
    ) -> AsyncGenerator[ReplyEvent]:
        """Stream ``n`` answers as one: each ``choice`` has its own last event.

        The prompt is computed once; the seed of each choice is the one before plus 1.

        Raises:
            RequestError: ``n`` is out of its range. Else as ``reply``.
        """
        ...

    def completions(
        self, prompts: Sequence[Prompt], options: ReplyOptions, n: int = 1
    ) -> AsyncGenerator[ReplyEvent]:
        """Stream what follows each prompt, ``n`` times: ``choice`` is prompt * n + time. All of it
        is text: neither reasoning nor calls are looked for.

        Raises:
            RequestError: a prompt is empty. Else as ``replies``.
        """
        ...

    def infill(
        self, gaps: Sequence[Gap], options: ReplyOptions, n: int = 1
    ) -> AsyncGenerator[ReplyEvent]:
        """Stream what fills each gap, ``n`` times, as ``completions``.

        Raises:
            RequestError: the model has no fill-in-the-middle tokens.
        """
        ...

    async def embed(
        self,
        texts: Sequence[Prompt],
        *,
        dimensions: int | None = None,
        truncate: bool = False,
        context: RequestContext = NOBODY,
    ) -> Embedded:
        """``truncate`` cuts a text that is too long at its end, else it is refused.

        Raises:
            EngineError, RequestError, ContextLengthError: see ``EngineClient.embed``.
        """
        ...

    async def prompt(
        self, messages: Sequence[Message], options: ReplyOptions
    ) -> tuple[str, list[int]]:
        """What ``reply`` would go on from: the rendered conversation, and its token ids."""
        ...

    async def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]: ...

    async def pieces(self, tokens: Sequence[int]) -> list[bytes]:
        """The bytes of each token. Raises RequestError: one is none of this model's."""
        ...

    async def stats(self) -> RunnerStats: ...
