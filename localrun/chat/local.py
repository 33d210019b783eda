"""Knows no tensors: the model of an engine on this machine, as something to talk to."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

from localrun.chat.choices import merged
from localrun.chat.messages import Message, ReplyEvent, ReplyOptions
from localrun.chat.reasoning import Piece, ReasoningSplitter, for_template
from localrun.chat.templates import CHATML_END, Renderer
from localrun.engine.client import EngineClient
from localrun.engine.request import GenerationRequest, TokenEvent, TokenLogprob, choices


class LocalChatModel:
    """A ``ServedModel`` over an engine. Owns both: ``close`` closes client and renderer."""

    def __init__(self, client: EngineClient, renderer: Renderer) -> None:
        self._client = client
        self._renderer = renderer
        renderer.warm()

    @property
    def name(self) -> str:
        return self._client.info.ref

    @property
    def backend(self) -> str:
        return self._client.info.backend

    @property
    def n_ctx(self) -> int:
        return self._client.info.n_ctx

    async def prompt(
        self, messages: Sequence[Message], options: ReplyOptions
    ) -> tuple[str, list[int]]:
        """The rendered conversation and its token ids.

        Raises:
            TemplateError, RequestError: as ``Renderer.render``.
        """
        info = self._client.info
        text = await self._renderer.render_async(
            info.chat_template, messages, tools=options.tools, bos=info.bos, eos=info.eos
        )
        # A template that writes BOS itself must not be given a second one.
        add_special = info.add_bos and not (info.bos and text.startswith(info.bos))
        return text, await self._client.tokenize(text, add_special=add_special, parse_special=True)

    async def reply(
        self, messages: Sequence[Message], options: ReplyOptions
    ) -> AsyncGenerator[ReplyEvent]:
        """Stream one answer; see ``ChatModel.reply``."""
        text, tokens = await self.prompt(messages, options)
        splitter = self._splitter(text, options)
        async with aclosing(self._answer(self._asked(tokens, splitter, options), splitter)) as made:
            async for event in made:
                yield event

    async def replies(
        self, messages: Sequence[Message], options: ReplyOptions, n: int
    ) -> AsyncGenerator[ReplyEvent]:
        """Stream ``n`` answers to one prompt; see ``ServedModel.replies``."""
        text, tokens = await self.prompt(messages, options)
        asked = choices(self._asked(tokens, self._splitter(text, options), options), n)
        streams = [self._answer(each, self._splitter(text, options)) for each in asked]
        async with aclosing(merged(streams)) as events:
            async for choice, event in events:
                yield replace(event, choice=choice)

    def _splitter(self, text: str, options: ReplyOptions) -> ReasoningSplitter:
        # What a grammar admits has no marks: a thought that the prompt began would never end.
        template = self._client.info.chat_template if options.grammar is None else None
        return for_template(template, text)

    def _asked(
        self, tokens: Sequence[int], splitter: ReasoningSplitter, options: ReplyOptions
    ) -> GenerationRequest:
        context = options.context
        return GenerationRequest(
            id=str(uuid.uuid4()),
            prompt=tuple(tokens),
            sampling=options.sampling,
            max_tokens=options.max_tokens,
            stop=options.stop + self._template_stops(),
            ignore_end=options.ignore_end,
            marks=splitter.marks,
            grammar=options.grammar,
            owner=context.owner,
            client=context.client,
            priority=context.priority,
        )

    async def _answer(
        self, request: GenerationRequest, splitter: ReasoningSplitter
    ) -> AsyncGenerator[ReplyEvent]:
        answer = _Answer(splitter, len(request.prompt))
        # Leaving early must end the generation now, not when a collector comes by.
        async with aclosing(self._client.generate(request)) as stream:
            async for event in stream:
                for reply in answer.take(event):
                    yield reply

    def _template_stops(self) -> tuple[str, ...]:
        """A model without a template may lack ChatML's end as a token and spell it out."""
        return (CHATML_END,) if self._client.info.chat_template is None else ()

    async def close(self) -> None:
        try:
            await self._client.close()
        finally:
            self._renderer.close()


class _Answer:
    """From an engine's events to those of one answer."""

    def __init__(self, splitter: ReasoningSplitter, prompt_tokens: int) -> None:
        self._splitter = splitter
        self._prompt_tokens = prompt_tokens
        self._logprobs: tuple[TokenLogprob, ...] = ()

    def take(self, event: TokenEvent) -> list[ReplyEvent]:
        replies: list[ReplyEvent] = []
        if event.prefilled is not None:
            replies.append(ReplyEvent(prefilled=event.prefilled, prompt_tokens=self._prompt_tokens))
        pieces = self._splitter.feed(event.text) if event.text else []
        if event.finish is not None:
            pieces += self._splitter.finish()
        told = [piece_event(piece) for piece in pieces]
        if event.finish is not None:
            told.append(self._last(event))
        self._logprobs += event.logprobs
        if told and self._logprobs:
            # A splitter holds text back: the tokens go with what comes next.
            told[0] = replace(told[0], logprobs=self._logprobs)
            self._logprobs = ()
        return replies + told

    def _last(self, event: TokenEvent) -> ReplyEvent:
        return ReplyEvent(
            prompt_tokens=self._prompt_tokens,
            finish=event.finish,
            timings=event.timings,
            error=event.error,
        )


def piece_event(piece: Piece) -> ReplyEvent:
    """One piece of an answer as an event."""
    if piece.kind == "reasoning":
        return ReplyEvent(reasoning=piece.text)
    return ReplyEvent(text=piece.text)
