"""Knows no dialect: answers gathered to their ends, for those who tell them whole."""

from __future__ import annotations

from collections.abc import AsyncIterator

from localrun.chat.messages import ReplyEvent
from localrun.engine.request import FinishReason, TokenLogprob
from localrun.server.answers import finish_of, unfinished
from localrun.server.calls import GatheredCalls


class Gathered:
    """One answer. ``logprobs`` are those of its text, not of its reasoning; ``last`` is the event
    that ended it."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self.calls = GatheredCalls()
        self.tokens: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.last = ReplyEvent()

    @property
    def text(self) -> str:
        return "".join(self._texts)

    @property
    def reasoning(self) -> str:
        return "".join(self._thoughts)

    @property
    def finish(self) -> FinishReason:
        return finish_of(self.last)

    def take(self, event: ReplyEvent) -> None:
        self._texts.append(event.text)
        self._thoughts.append(event.reasoning)
        if event.call is not None:
            self.calls.take(event.call)
        self.tokens += event.tokens
        if event.text or not event.reasoning:
            self.logprobs += event.logprobs
        if event.finish is not None:
            self.last = event


async def gathered(events: AsyncIterator[ReplyEvent], choices: int) -> list[Gathered]:
    """All answers, whole, in the order of their choices.

    Raises:
        LocalrunError: what a generation raised, or EngineError for what it ended with.
    """
    answers = [Gathered() for _ in range(choices)]
    going_on = choices
    async for event in events:
        answers[event.choice].take(event)
        if event.finish is not None:
            finish_of(event)
            going_on -= 1
            if not going_on:
                return answers
    raise unfinished()
