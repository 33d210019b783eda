"""Knows no engine's thread: one generation's events as those of an answer."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
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
        self._thinks = False

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
            self._give_logprobs(told)
        for each in told:
            if each.reasoning:
                self._thinks = True
            elif each.text or each.call is not None:
                self._thinks = False
        return replies + told

    def _give_logprobs(self, told: list[ReplyEvent]) -> None:
        """A reader holds text back: the tokens go with what comes next. Where a thought has ended
        only those of the words behind it do: the others are the thought's, or a mark's."""
        given, self._logprobs = self._logprobs, ()
        said = next((at for at, each in enumerate(told) if not each.reasoning), len(told))
        if said < len(told) and (said or self._thinks):
            at = _beginning(given, "".join(each.text for each in told[said:]).encode())
            told[said] = replace(told[said], logprobs=given[at:])
            given = given[:at] if said else ()
        if given:
            told[0] = replace(told[0], logprobs=given)


def _beginning(tokens: Sequence[TokenLogprob], text: bytes) -> int:
    """Where those of the tokens begin that the text is made of: it is the last they say."""
    at, found = len(tokens), b""
    while at and text not in found:
        at -= 1
        found = tokens[at].text + found
    return at


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
