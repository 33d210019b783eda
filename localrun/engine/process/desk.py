"""Knows no socket and no model: what the parent asks for, answered by the engine beside it.

The parent's frames are taken on one thread, which no request may hold up. The events of all
generations leave in one frame for each of the engine's steps, sent by the engine's own thread: any
other would have to fight it for the interpreter. While the parent does not read, events wait in
their generations, where they melt together; and for as long as a screen shows one picture, where
steps are shorter: to take in a text costs the port time on a core that the next step wants.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, BinaryIO, Final

from localrun.engine.engine import Engine
from localrun.engine.generation import Generation
from localrun.engine.joined import joined
from localrun.engine.process import fields, frames
from localrun.engine.process.outbox import Outbox
from localrun.engine.request import EmbeddingRequest, GenerationRequest
from localrun.errors import EngineError, LocalrunError

if TYPE_CHECKING:
    from concurrent.futures import Future

    import numpy as np
    from numpy.typing import NDArray

    Vectors = Future[NDArray[np.float32]]

Work = Callable[[frames.Frame], object]

# 30 pictures a second are fluent; models slower than that send each text by itself.
PICTURE_S: Final = 1 / 30


class Desk:
    """One parent's requests. ``stepped`` is what the engine calls after each step."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._delivered = -math.inf
        # None is a request that the engine has not taken yet.
        self._running: dict[int, Generation | None] = {}
        self._embeddings: dict[int, Vectors] = {}
        self._ready: deque[int] = deque()
        self._lock = threading.Lock()
        self._steps = 0
        self._engine: Engine
        self._outbox: Outbox

    def serve(self, incoming: BinaryIO, outbox: Outbox, engine: Engine) -> None:
        """Return when the parent says ``close`` or is gone.

        Raises:
            EngineError: it sent what no parent sends.
        """
        self._engine, self._outbox = engine, outbox
        work: dict[str, Work] = {
            "tokenize": self._tokenize,
            "pieces": self._pieces,
            "stats": lambda _: fields.stats_fields(engine.stats()),
        }
        while (frame := frames.read_frame(incoming)) is not None:
            match frame["type"]:
                case "submit":
                    self._submit(frame["call"], fields.request_of(frame["request"]))
                case "embed":
                    self._embed(frame["call"], fields.embedding_of(frame["request"]))
                case "cancel":
                    self._cancel(frame["call"])
                case "ping":
                    self._send({"type": "pong", "steps": self._steps})
                case "close":
                    return
                case question if question in work:
                    self._answer(frame, work[question])
                case unknown:
                    raise EngineError(f"the engine's process does not know {unknown!r}")

    def stepped(self) -> None:
        """On the engine's thread: the engine goes on, and may have made events."""
        self._steps += 1
        if self._clock() - self._delivered >= PICTURE_S or any(
            generation is not None and generation.urgent
            for generation in map(self._running.get, tuple(self._ready))
        ):
            self.deliver()

    def deliver(self) -> None:
        """Send what the generations have ready, unless the parent is behind. From any thread."""
        if not self._ready or self._outbox.behind:
            return
        with self._lock:
            events: list[fields.EventFields] = []
            while self._ready:
                call = self._ready.popleft()
                generation = self._running.get(call)
                for event in joined(generation.poll()) if generation is not None else ():
                    events.append(fields.event_fields(call, event))
                    if event.finish is not None:
                        del self._running[call]
            if events:
                self._delivered = self._clock()
                self._send_events(events)

    def _send_events(self, events: list[fields.EventFields]) -> None:
        try:
            self._send({"type": "events", "events": events})
        except EngineError as error:
            # What a parent did not fetch for long may have grown beyond a frame.
            if len(events) == 1:
                self._fail(events[0][0], error)
            else:
                for event in events:
                    self._send_events([event])

    def _submit(self, call: int, request: GenerationRequest) -> None:
        self._running[call] = None
        if request.grammar is None:
            self._begin(call, request)
        else:
            # Compiling takes its time, and others' cancels must not wait for it.
            self._apart(self._begin, call, request)

    def _begin(self, call: int, request: GenerationRequest) -> None:
        try:
            on_ready = partial(self._ready.append, call)
            generation = self._engine.submit(request, on_ready=on_ready)
        except LocalrunError as error:
            self._running.pop(call, None)
            self._fail(call, error)
            return
        with self._lock:
            wanted = call in self._running
            if wanted:
                self._running[call] = generation
        if wanted:
            # Its first events may have come before it was known by its call.
            self._ready.append(call)
            self.deliver()
        else:
            generation.cancel()

    def _cancel(self, call: int) -> None:
        with self._lock:
            generation = self._running.pop(call, None)
        if generation is not None:
            generation.cancel()
        elif vectors := self._embeddings.get(call):
            vectors.cancel()

    def _embed(self, call: int, request: EmbeddingRequest) -> None:
        try:
            vectors = self._engine.embed(request)
        except LocalrunError as error:
            self._fail(call, error)
            return
        self._embeddings[call] = vectors
        vectors.add_done_callback(partial(self._embedded, call))

    def _embedded(self, call: int, vectors: Vectors) -> None:
        self._embeddings.pop(call, None)
        if not vectors.cancelled():
            self._work(call, lambda: fields.vectors_field(vectors.result()))

    def _answer(self, frame: frames.Frame, work: Work) -> None:
        """Off the reading thread: a long text must not delay another request's cancel."""
        self._apart(self._work, frame["call"], partial(work, frame))

    def _work(self, call: int, work: Callable[[], object]) -> None:
        try:
            self._send({"type": "answer", "call": call, "value": work()})
        except LocalrunError as error:
            self._fail(call, error)

    def _tokenize(self, frame: frames.Frame) -> str:
        return fields.ids_field(
            self._engine.tokenize(
                frame["text"],
                add_special=frame["add_special"],
                parse_special=frame["parse_special"],
            )
        )

    def _pieces(self, frame: frames.Frame) -> list[str]:
        return fields.pieces_field(self._engine.pieces(fields.ids_of(frame["tokens"])))

    def _fail(self, call: int, error: LocalrunError) -> None:
        self._send({"type": "failed", "call": call, "error": frames.error_fields(error)})

    def _send(self, frame: frames.Frame) -> None:
        self._outbox.send(frames.pack(frame))

    @staticmethod
    def _apart(work: Callable[..., None], *arguments: object) -> None:
        threading.Thread(target=work, args=arguments, daemon=True).start()
