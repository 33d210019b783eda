"""Knows no thread and no loop: many events of one stream as few, with the same text."""

from __future__ import annotations

from localrun.engine.request import TokenEvent, TokenLogprob


class Joined:
    """What was added comes out as at most two events: the latest progress, then all the rest.

    One event alone, the usual case, comes out as it went in.
    """

    __slots__ = ("_last", "_logprobs", "_only", "_prefilled", "_texts", "_tokens")

    def __init__(self) -> None:
        self._only: TokenEvent | None = None
        self._last: TokenEvent | None = None
        self._prefilled: int | None = None
        self._texts: list[str] = []
        self._tokens: list[int] = []
        self._logprobs: list[TokenLogprob] = []

    def __bool__(self) -> bool:
        return self._only is not None or self._last is not None

    def add(self, event: TokenEvent) -> None:
        if self._only is not None:
            only, self._only = self._only, None
            self._append(only)
        elif self._last is None:
            self._only = event
            return
        self._append(event)

    def take(self) -> TokenEvent:
        """The next event; only where there is one."""
        if self._only is not None:
            only, self._only = self._only, None
            return only
        last = self._last
        assert last is not None
        if self._prefilled is not None:
            progress, self._prefilled = self._prefilled, None
            if last.prefilled is not None:
                self._last = None
            return TokenEvent(last.id, prefilled=progress)
        event = TokenEvent(
            last.id,
            "".join(self._texts),
            tuple(self._tokens),
            tuple(self._logprobs),
            finish=last.finish,
            stopped=last.stopped,
            timings=last.timings,
            error=last.error,
        )
        self._last = None
        self._texts.clear()
        self._tokens.clear()
        self._logprobs.clear()
        return event

    def _append(self, event: TokenEvent) -> None:
        if event.prefilled is not None:
            self._prefilled = event.prefilled
            # Progress comes before all text: what is joined already stays the last event.
            self._last = self._last or event
            return
        self._texts.append(event.text)
        self._tokens.extend(event.tokens)
        self._logprobs.extend(event.logprobs)
        self._last = event


def joined(events: list[TokenEvent]) -> list[TokenEvent]:
    """The same stream in as few events as can be."""
    if len(events) < 2:
        return events
    whole = Joined()
    for event in events:
        whole.add(event)
    taken = []
    while whole:
        taken.append(whole.take())
    return taken
