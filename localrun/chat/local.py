"""Knows no tensors: the model of an engine on this machine, as something to talk to."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from localrun.chat.messages import Message, ReplyEvent, ReplyOptions
from localrun.chat.reasoning import Piece, ReasoningSplitter, for_template
from localrun.chat.templates import CHATML_END, Renderer
from localrun.engine.client import EngineClient
from localrun.engine.request import GenerationRequest, TokenEvent


class LocalChatModel:
    """A ``ChatModel`` over an engine. Owns both: ``close`` closes client and renderer."""

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
        splitter = for_template(self._client.info.chat_template, text)
        request = GenerationRequest(
            id=str(uuid.uuid4()),
            prompt=tuple(tokens),
            sampling=options.sampling,
            max_tokens=options.max_tokens,
            stop=options.stop + self._template_stops(),
            ignore_end=options.ignore_end,
            marks=splitter.marks,
        )
        # Leaving early must end the generation now, not when a collector comes by.
        async with aclosing(self._client.generate(request)) as stream:
            async for event in stream:
                for reply in _replies(event, splitter, len(tokens)):
                    yield reply

    def _template_stops(self) -> tuple[str, ...]:
        """A model without a template may lack ChatML's end as a token and spell it out."""
        return (CHATML_END,) if self._client.info.chat_template is None else ()

    async def close(self) -> None:
        try:
            await self._client.close()
        finally:
            self._renderer.close()


def _replies(
    event: TokenEvent, splitter: ReasoningSplitter, prompt_tokens: int
) -> list[ReplyEvent]:
    replies: list[ReplyEvent] = []
    if event.prefilled is not None:
        replies.append(ReplyEvent(prefilled=event.prefilled, prompt_tokens=prompt_tokens))
    pieces = splitter.feed(event.text) if event.text else []
    if event.finish is not None:
        pieces += splitter.finish()
    replies += [piece_event(piece) for piece in pieces]
    if event.finish is not None:
        replies.append(
            ReplyEvent(
                prompt_tokens=prompt_tokens,
                finish=event.finish,
                timings=event.timings,
                error=event.error,
            )
        )
    return replies


def piece_event(piece: Piece) -> ReplyEvent:
    """One piece of an answer as an event."""
    if piece.kind == "reasoning":
        return ReplyEvent(reasoning=piece.text)
    return ReplyEvent(text=piece.text)
