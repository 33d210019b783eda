"""Knows token ids; not where they come from: one model, one thread that owns it, a queue.

The thread started here makes every call to the runner, but for ``abort`` and ``tokenize``, which
runners allow from others, and closes it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import TYPE_CHECKING

from localrun.engine.cache.prefix import PrefixCache
from localrun.engine.costs import StepCosts
from localrun.engine.generation import Generation
from localrun.engine.limits import MAX_WAITING, check
from localrun.engine.queue import Queue
from localrun.engine.request import EmbeddingRequest, FinishReason, GenerationRequest
from localrun.engine.runner import (
    Capabilities,
    ForwardAborted,
    ModelRunner,
    RunnerStats,
    Vocabulary,
)
from localrun.engine.scheduler import Scheduler
from localrun.engine.sequence import Clock, Sequence
from localrun.engine.threads import ThreadRange, ThreadTuner
from localrun.errors import BusyError, EngineError, LocalrunError, RequestError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from localrun.engine.cache.states import StateStore
    from localrun.engine.drafting.speculation import Drafting
    from localrun.engine.embeddings import EmbeddingJob
    from localrun.engine.grammar.compiler import GrammarCompiler, Matcher
    from localrun.engine.request import Grammar

# How long an abort may have missed the forward it was meant for before it is repeated.
_ABORT_AGAIN_S = 0.05


class Engine:
    """Generates for all requests at once, as far as the runner can, and fairly.

    ``threads`` None leaves the runner's thread count alone. ``drafting`` guesses what comes next
    (``drafting/``), ``states`` keeps what was computed across unload and restart; the engine
    closes both. ``on_step`` is called on the engine's thread after each step's events; it must not
    block. Every method is safe to call from any thread. Every generation gets its last event, also
    when the engine is closed under it.
    """

    def __init__(
        self,
        runner: ModelRunner,
        *,
        threads: ThreadRange | None = None,
        drafting: Drafting | None = None,
        states: Callable[[ModelRunner], StateStore] | None = None,
        on_step: Callable[[], None] | None = None,
        clock: Clock = time.perf_counter,
    ) -> None:
        """Take the runner over.

        Raises:
            EngineError: the runner does not tell its vocabulary; it is closed.
            UsageError: ``drafting`` cannot guess for this model; both are closed.
        """
        self._runner = runner
        self._clock = clock
        self._drafting = drafting
        self._states = states
        self._on_step = on_step or _nothing
        self._changed = threading.Condition()
        self._waiting = Queue()
        self._jobs: deque[tuple[EmbeddingJob, Future[NDArray[np.float32]]]] = deque()
        self._embedding = False
        self._embedding_waits = False
        self._grammars: GrammarCompiler | None = None
        self._compiling = threading.Lock()
        self._closing = self._started = False
        self._error: str | None = None
        # Tokenizing must not race with the freeing of what it reads.
        self._tokenizing = threading.Lock()
        self._n_ctx = runner.capabilities.n_ctx
        self._tuner = None if threads is None else ThreadTuner(threads)
        ready: Future[Vocabulary] = Future()
        # A daemon, so that a caller who forgot to close can still end; close() joins it.
        self._thread = threading.Thread(target=self._run, args=(ready,), name="engine", daemon=True)
        self._thread.start()
        try:
            self._vocabulary = ready.result()
        except LocalrunError:
            self._thread.join()
            raise

    @property
    def vocabulary(self) -> Vocabulary:
        return self._vocabulary

    @property
    def n_ctx(self) -> int:
        return self._n_ctx

    @property
    def capabilities(self) -> Capabilities:
        return self._runner.capabilities

    def stats(self) -> RunnerStats:
        """The runner's counters when the last generation began its answer, or ended."""
        return self._scheduler.stats

    def tokenize(
        self, text: str, *, add_special: bool = False, parse_special: bool = True
    ) -> list[int]:
        """Token ids of ``text``. Does not wait for a generation.

        Raises:
            EngineError: the engine is closed.
        """
        with self._tokenizing:
            self._check_open()
            return self._runner.tokenize(text, add_special=add_special, parse_special=parse_special)

    def pieces(self, tokens: Iterable[int]) -> list[bytes]:
        """The bytes that each token stands for; of control tokens their names.

        Raises:
            RequestError: one is no token of this model's.
        """
        texts, names = self._vocabulary.tokens, self._vocabulary.names
        pieces = []
        for token in tokens:
            if not 0 <= token < len(texts):
                raise RequestError(f"tokens: ids are 0 to {len(texts) - 1}", field="tokens")
            name = names.get(token)
            pieces.append(texts[token] if name is None else name.encode())
        return pieces

    def submit(
        self, request: GenerationRequest, *, on_ready: Callable[[], None] | None = None
    ) -> Generation:
        """Queue a request. ``on_ready``: see ``Generation``. Blocks only while a grammar is
        compiled, at most for its deadline.

        Raises:
            RequestError: a field out of its range, named; or the model makes embeddings only.
            GrammarError: the grammar cannot be compiled, or not in time.
            ContextLengthError: the prompt leaves no room for one token.
            BusyError: too many requests wait.
            EngineError: the engine is closed.
        """
        if not self._runner.capabilities.generates:
            raise RequestError(
                "this model makes embeddings only, no text",
                hint="choose a model that generates; this one serves /v1/embeddings",
                field="model",
            )
        check(request, n_ctx=self._n_ctx, vocabulary_size=len(self._vocabulary.tokens))
        matcher = None if request.grammar is None else self._compile(request.grammar)
        generation = Generation(request, lambda: self._cancel(sequence), on_ready)
        sequence = Sequence(
            request, generation, self._vocabulary, self._n_ctx, self._clock, matcher
        )
        with self._changed:
            self._check_open()
            self._waiting.put(sequence)
            self._changed.notify()
        return generation

    def embed(self, request: EmbeddingRequest) -> Future[NDArray[np.float32]]:
        """Vectors ``[texts, dimensions]``. Cancelling the future ends the work after its running
        step.

        Raises:
            RequestError, ContextLengthError, EngineError: see ``EmbeddingJob``.
            BusyError: too many requests wait.
            EngineError: the engine is closed.
        """
        from localrun.engine.embeddings import EmbeddingJob

        size = len(self._vocabulary.tokens)
        job = EmbeddingJob(request, self._runner.capabilities, vocabulary_size=size)
        future: Future[NDArray[np.float32]] = Future()
        with self._changed:
            self._check_open()
            if len(self._jobs) >= MAX_WAITING:
                raise BusyError(f"{MAX_WAITING} requests for embeddings are waiting already")
            self._jobs.append((job, future))
            self._changed.notify()
        return future

    def close(self) -> None:
        """End every generation, close the runner, join the thread. A second call is nothing."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        while self._thread.is_alive():
            self._scheduler.abort()
            if self._embedding:
                self._runner.abort()
            self._thread.join(_ABORT_AGAIN_S)
        with self._compiling:
            grammars = self._grammars
        if grammars is not None:
            grammars.close()

    def _compile(self, grammar: Grammar) -> Matcher:
        with self._compiling:
            # One that is made after close() would never be closed.
            self._check_open()
            if self._grammars is None:
                # The library takes a while to load, and few ever need it.
                from localrun.engine.grammar.compiler import GrammarCompiler

                self._grammars = GrammarCompiler(self._vocabulary, self._tokenize_plain)
        return self._grammars.compile(grammar)

    def _tokenize_plain(self, text: str) -> list[int]:
        return self.tokenize(text, add_special=False, parse_special=False)

    def _check_open(self) -> None:
        if self._closing:
            raise EngineError(self._error or "the engine is closed", hint="load the model again")

    def _cancel(self, sequence: Sequence) -> None:
        with self._changed:
            # One that had begun is ended on the engine's thread, which owns what it holds.
            if sequence.began is None and self._waiting.remove(sequence):
                sequence.end(FinishReason.CANCELLED)
                return
        self._scheduler.interrupt(sequence)

    def _run(self, ready: Future[Vocabulary]) -> None:
        defect = True
        try:
            if self._start(ready):
                while self._admit():
                    if self._scheduler.active:
                        self._scheduler.step()
                    if self._jobs:
                        self._embed_some()
                    self._on_step()
            defect = False
        finally:
            # An error that no runner may raise shows on this thread, but no reader waits for it.
            self._end(ready, "the engine ended unexpectedly" if defect else None)

    def _start(self, ready: Future[Vocabulary]) -> bool:
        try:
            vocabulary = self._runner.vocabulary()
            if self._drafting is not None:
                self._drafting.start(vocabulary)
            store = None if self._states is None else self._states(self._runner)
            costs = StepCosts()
            self._cache = PrefixCache(
                self._runner,
                turn_ends=vocabulary.end,
                store=store,
                per_token=lambda: costs.per_token,
            )
            self._scheduler = Scheduler(
                self._runner,
                self._cache,
                costs,
                self._tuner,
                self._drafting,
                self._clock,
                self._put_back,
            )
            self._scheduler.start()
        except LocalrunError as error:
            ready.set_exception(error)
            return False
        self._started = True
        ready.set_result(vocabulary)
        return True

    def _admit(self) -> bool:
        """Wait for something to do and take it up; False when the engine closes."""
        scheduler = self._scheduler
        with self._changed:
            while not (self._closing or self._waiting or self._jobs or scheduler.active):
                self._changed.wait()
            if self._closing:
                return False
            while self._waiting:
                sequence = self._waiting.next(scheduler.active, self._is_ready)
                if sequence is None:
                    break
                scheduler.admit(sequence)
            return True

    def _is_ready(self, sequence: Sequence) -> bool:
        # A text has no place in the queue: it gets the next room there is, for one slice.
        if self._embedding_waits and not sequence.cancelled:
            return False
        return self._scheduler.ready(sequence)

    def _put_back(self, sequence: Sequence) -> None:
        with self._changed:
            self._waiting.put_back(sequence)

    def _embed_some(self) -> None:
        """One forward's worth of the oldest job: streams go on between."""
        job, future = self._jobs[0]
        error: LocalrunError | None = None
        try:
            self._embedding = True
            self._embedding_waits = False
            done = future.cancelled() or (self._has_seat(job) and job.step(self._runner))
        except ForwardAborted:
            done = False
        except LocalrunError as raised:
            done, error = True, raised
        finally:
            self._embedding = False
        if not done:
            return
        self._jobs.popleft()
        if future.set_running_or_notify_cancel():
            if error is None:
                future.set_result(job.vectors)
            else:
                future.set_exception(error)

    def _has_seat(self, job: EmbeddingJob) -> bool:
        """Whether the runner has a sequence left, and cells for a text; what is parked gives way.

        Raises:
            EngineError: nothing runs that could give one back.
        """
        free = self._cache.seat(job.cells)
        if not free and not self._scheduler.active:
            raise EngineError("the runner has no sequence left")
        self._embedding_waits = not free
        return free

    def _end(self, ready: Future[Vocabulary], error: str | None) -> None:
        """The thread's last act: events first, so that no reader waits for a slow close."""
        reason = FinishReason.ERROR if error else FinishReason.CANCELLED
        failure = EngineError(error) if error else None
        with self._changed:
            self._closing, self._error = True, error
            waiting = self._waiting.clear()
        if not ready.done():
            ready.set_exception(EngineError(error or "the engine is closed"))
        if self._started:
            if error is None:
                self._scheduler.keep()
            self._scheduler.end_all(reason, failure)
        for sequence in waiting:
            sequence.end(reason, failure)
        for _, future in self._jobs:
            if future.set_running_or_notify_cancel():
                future.set_exception(EngineError(error or "the engine is closed"))
        # An engine's process ends by a defect, too: that is told better by its parent, who counts
        # such ends and lets restarts wait.
        if error is None:
            self._on_step()
        if self._started and error is None:
            self._cache.close()
        if self._drafting is not None:
            self._drafting.close()
        with self._tokenizing:
            self._runner.close()


def _nothing() -> None:
    """Where nobody asked to be told."""
