"""Knows no engine's thread: one generation's events as those of an answer."""

from __future__ import annotations

import secrets
from dataclasses import replace

from localrun.chat.messages import CallDelta, ReplyEvent
from localrun.chat.tools.pieces import AnswerReader, Piece
from localrun.engine.request import TokenEvent, TokenLogprob


class Answer:
    """Tells text, reasoning and calls apart by ``reader``. ``begun`` is what the answer begins with
    already: text that was given to the model as its own."""

    def __init__(self, reader: AnswerReader, prompt_tokens: int, *, begun: str = "") -> None:
        self._reader = reader
        self._prompt_tokens = prompt_tokens
        self._begun = begun
        self._logprobs: tuple[TokenLogprob, ...] = ()

    def take(self, event: TokenEvent) -> list[ReplyEvent]:
        replies: list[ReplyEvent] = []
        if event.prefilled is not None:
            replies.append(ReplyEvent(prefilled=event.prefilled, prompt_tokens=self._prompt_tokens))
        pieces: list[Piece] = []
        if event.text or event.finish is not None:
            begun, self._begun = self._begun, ""
            pieces = self._reader.feed(begun + event.text)
        if event.finish is not None:
            pieces += self._reader.finish()
        told = [piece_event(piece) for piece in pieces]
        if event.finish is not None:
            told.append(last_event(event, self._prompt_tokens))
        self._logprobs += event.logprobs
        if told and self._logprobs:
            # A reader holds text back: the tokens go with what comes next.
            told[0] = replace(told[0], logprobs=self._logprobs)
            self._logprobs = ()
        return replies + told


class PlainAnswer:
    """All of it is text, told with the tokens that it is made of."""

    def __init__(self, prompt_tokens: int) -> None:
        self._prompt_tokens = prompt_tokens

    def take(self, event: TokenEvent) -> list[ReplyEvent]:
        replies: list[ReplyEvent] = []
        if event.prefilled is not None:
            replies.append(ReplyEvent(prefilled=event.prefilled, prompt_tokens=self._prompt_tokens))
        if event.finish is not None:
            last = last_event(event, self._prompt_tokens)
            replies.append(
                replace(last, text=event.text, tokens=event.tokens, logprobs=event.logprobs)
            )
        elif event.text or event.tokens:
            replies.append(
                ReplyEvent(text=event.text, tokens=event.tokens, logprobs=event.logprobs)
            )
        return replies


def last_event(event: TokenEvent, prompt_tokens: int) -> ReplyEvent:
    """What ends an answer."""
    return ReplyEvent(
        prompt_tokens=prompt_tokens,
        finish=event.finish,
        stopped=event.stopped,
        timings=event.timings,
        error=event.error,
    )


def piece_event(piece: Piece) -> ReplyEvent:
    """One piece of an answer as an event."""
    match piece.kind:
        case "reasoning":
            return ReplyEvent(reasoning=piece.text)
        case "call":
            id_ = piece.id or f"call_{secrets.token_hex(12)}"
            return ReplyEvent(call=CallDelta(piece.index, id=id_, name=piece.text))
        case "arguments":
            return ReplyEvent(call=CallDelta(piece.index, arguments=piece.text))
        case "text":
            return ReplyEvent(text=piece.text)
