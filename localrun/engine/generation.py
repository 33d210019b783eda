"""Knows no runner: the reader's end of one generation, on any thread but the engine's."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

from localrun.engine.joined import Joined
from localrun.engine.request import GenerationRequest, TokenEvent

MAX_EVENTS: Final = 64


class Generation(Iterator[TokenEvent]):
    """Iterates the events of one request; blocks until the next one; ends after the last.

    The engine never waits for a reader: ``MAX_EVENTS`` are kept apart, what comes after them is
    joined into one event, so memory is bounded by the text itself. ``on_ready`` is called from the
    thread that puts, mostly the engine's, when events wait after none did; it must not block.
    """

    def __init__(
        self,
        request: GenerationRequest,
        cancel: Callable[[], None],
        on_ready: Callable[[], None] | None = None,
    ) -> None:
        self.request = request
        self._cancel = cancel
        self._on_ready = on_ready
        # Few readers wait here: the engine must not pay for a notice to nobody.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._waiting = False
        self._told = False
        self._events: deque[TokenEvent] = deque()
        self._joined = Joined()
        self._final: TokenEvent | None = None
        self._done = False

    @property
    def id(self) -> str:
        return self.request.id

    def __iter__(self) -> Iterator[TokenEvent]:
        return self

    def __next__(self) -> TokenEvent:
        with self._lock:
            while (event := self._take()) is None:
                if self._done:
                    raise StopIteration
                self._waiting = True
                self._changed.wait()
            return event

    @property
    def urgent(self) -> bool:
        """Whether somebody waits for what comes next: the first text, and the end."""
        return self._final is not None or not self._told

    def poll(self) -> list[TokenEvent]:
        """The events there are, without waiting; the last one of the stream has ``finish``."""
        with self._lock:
            events = list(self._events)
            self._events.clear()
            while (event := self._take()) is not None:
                events.append(event)
            self._told = self._told or any(event.text for event in events)
            return events

    def cancel(self) -> None:
        """End within one step, from any thread. The last event still comes; a second call is
        nothing."""
        self._cancel()

    def put(self, event: TokenEvent) -> None:
        """The engine's side: one more event. After the one with ``finish`` nothing is taken."""
        with self._lock:
            if self._final is not None or self._done:
                return
            was_empty = not self._events and not self._joined
            if event.finish is not None:
                self._final = event
            elif self._joined or len(self._events) >= MAX_EVENTS:
                self._joined.add(event)
            else:
                self._events.append(event)
            if self._waiting:
                self._waiting = False
                self._changed.notify_all()
        if self._on_ready is not None and (was_empty or event.finish is not None):
            self._on_ready()

    def _take(self) -> TokenEvent | None:
        if self._events:
            return self._events.popleft()
        if self._joined:
            return self._joined.take()
        final, self._final = self._final, None
        self._done = self._done or final is not None
        return final
