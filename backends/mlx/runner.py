"""Knows no text and no HTTP: a ModelRunner over one model of mlx-lm."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Final

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from localrun.backends.mlx.caches import arrays, copied, cuts_anywhere
from localrun.backends.mlx.checkpoint import Checkpoint
from localrun.backends.mlx.library import make_cache, metal, version
from localrun.backends.mlx.sequences import Sequences, Timeline
from localrun.backends.texts import Texts
from localrun.engine.rows import NumpyLogits
from localrun.engine.runner import (
    BatchItem,
    Capabilities,
    ForwardAborted,
    Logits,
    RunnerStats,
    SequenceId,
    Vocabulary,
)
from localrun.errors import DiskReadError, EngineError, LocalrunError, OutOfMemoryError
from localrun.plan.plan import Execution

# Live ones and prefixes that are parked; an idle one costs its tokens' cells and nothing more.
_SEQUENCES: Final = 8
# Tokens between two looks at ``abort``: on two cores of a CPU the smallest model takes a second.
_HOST_CHUNK: Final = 16
_DEVICE_CHUNK: Final = 512
# What the library says where an allocation failed (mlx/backend/*/allocator.cpp).
_MEMORY: Final = ("[malloc", "[metal::malloc]", "Insufficient Memory", "bad_alloc")
_FAILURES: Final = (RuntimeError, ValueError, TypeError, IndexError)


class MlxRunner:
    """Implements ``localrun.engine.runner.ModelRunner``; owns the checkpoint's model.

    Items of one forward are computed one after the other. After one that failed or was aborted
    every sequence of it is as it was, or emptied where the caches cannot be cut back.
    """

    def __init__(self, checkpoint: Checkpoint, execution: Execution) -> None:
        self._model: Any | None = checkpoint.model
        self._files = checkpoint.files
        self._interruptible = checkpoint.interruptible
        self._expects = hasattr(checkpoint.model, "expect")
        self._weights = checkpoint.nbytes
        self._tier = "unified" if execution.gpu_layers else "ram"
        self._device = mx.gpu if execution.gpu_layers and metal() else mx.cpu
        self._chunk = _DEVICE_CHUNK if self._device == mx.gpu else _HOST_CHUNK
        if execution.streams:
            # A chunk reads each expert that it chooses once, and looks at ``abort`` in each layer.
            self._chunk = execution.ubatch
        self._asked = checkpoint.asked
        self._running = threading.Lock()
        self._armed = False
        self._text_lock = threading.Lock()
        self._steps = self._tokens = 0
        self._forward_s = 0.0
        parallel = max(1, execution.parallel)
        limit, cells = max(_SEQUENCES, 2 * parallel), execution.n_ctx * parallel
        self._held = Sequences(lambda: make_cache(self._open()), limit=limit, cells=cells)
        tried = make_cache(checkpoint.model)
        self._width, per_token = self._try(tried)
        if self._files is not None:
            self._files.forget()
        self._exact = cuts_anywhere(tried)
        self._texts = Texts.of_directory(checkpoint.directory, checkpoint.config, self._width)
        self.capabilities = Capabilities(
            n_ctx=execution.n_ctx,
            max_sequences=limit,
            max_batch=1,
            max_tokens=execution.ubatch,
            n_cells=cells,
            can_fork=True,
            rollback_depth=None if self._exact else 0,
            state_bytes_per_token=per_token if self._exact else 0,
        )

    def _try(self, caches: list[Any]) -> tuple[int, int]:
        """Two steps: how many logits a row has, and the bytes that a token leaves in caches.

        What modules make for themselves is computed here too: mlx cannot do it on another thread.
        """
        with self._computing():
            for tokens in ([0, 0], [0]):
                logits = self._model_call(tokens, caches)
                mx.eval(logits, *arrays(caches))
        if logits.ndim != 3 or logits.shape[1] != 1:
            raise EngineError(
                f"the model gives {logits.shape} where logits of a token are expected"
            )
        rows = sum(each.nbytes // each.shape[2] for each in arrays(caches) if each.ndim == 4)
        return logits.shape[-1], rows

    def vocabulary(self) -> Vocabulary:
        with self._text_lock:
            self._open()
            return self._texts.vocabulary

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """See ModelRunner. Raises EngineError after ``close``."""
        with self._text_lock:
            self._open()
            return self._texts.tokenize(text, add_special=add_special, parse_special=parse_special)

    def new_sequence(self) -> SequenceId:
        return self._sequences().new()

    def fork(self, sequence: SequenceId) -> SequenceId:
        with self._on_device():
            return self._sequences().fork(sequence)

    def free(self, sequence: SequenceId) -> None:
        self._sequences().free(sequence)

    def truncate(self, sequence: SequenceId, length: int) -> int:
        return self._sequences().truncate(sequence, length)

    def checkpoint(self, sequence: SequenceId) -> None:
        """Marks nothing: a cache that can roll back here can do so to any position."""
        self._sequences().timeline(sequence)

    def rollback(self, sequence: SequenceId, count: int) -> None:
        """Raises EngineError where the caches could not; the sequence is empty then."""
        held = self._sequences()
        wanted = held.timeline(sequence).tokens - count
        if count < 0 or wanted < 0 or held.truncate(sequence, wanted) != wanted:
            raise EngineError(f"{count} tokens of sequence {sequence} cannot be taken back")

    def save(self, sequence: SequenceId) -> bytes:
        with self._on_device():
            return self._sequences().save(sequence)

    def restore(self, state: bytes) -> SequenceId:
        """Raises EngineError when ``state`` is not of this model, or no room is left for it."""
        with self._on_device():
            return self._sequences().restore(state)

    def forward(self, batch: Sequence[BatchItem]) -> Logits:
        """See ModelRunner; takes more items than one, which gains nothing."""
        held = self._sequences()
        timelines = [held.writable(item.sequence) for item in batch]
        self._check(batch, timelines)
        start = time.perf_counter()
        rows: list[mx.array] = []
        several = any(len(item.tokens) > 1 for item in batch)
        with self._step(timelines, keep=several or self._interruptible):
            for item, timeline in zip(batch, timelines, strict=True):
                rows.extend(self._append(timeline, item))
            made = _rows(rows, self._width)
        self._steps += 1
        self._tokens += sum(len(item.tokens) for item in batch)
        self._forward_s += time.perf_counter() - start
        return NumpyLogits(made)

    def _append(self, timeline: Timeline, item: BatchItem) -> Iterator[mx.array]:
        """Compute an item's tokens, piece by piece; gives the logits that are wanted of each.

        Nobody computes the logits of a position that is not asked for: mlx is lazy, and the last
        token of a prompt goes alone.
        """
        pieces = [*_pieces(item, self._chunk), ((), False)]
        for (tokens, wanted), (following, _) in pairwise(pieces):
            if self._asked.is_set():
                raise ForwardAborted
            if self._expects:
                self._open().expect(following)
            logits = self._model_call(tokens, timeline.caches)
            timeline.tokens += len(tokens)
            if wanted:
                chosen = logits[0].astype(mx.float32)
                mx.eval(chosen, *arrays(timeline.caches))
                yield chosen
            else:
                mx.eval(*arrays(timeline.caches))

    def _model_call(self, tokens: Sequence[int], caches: list[Any]) -> mx.array:
        logits: mx.array = self._open()(mx.array([list(tokens)], mx.int32), cache=caches)
        return logits

    @contextmanager
    def _step(self, timelines: Sequence[Timeline], *, keep: bool) -> Iterator[None]:
        """Every sequence stays as it was where what is done inside fails. ``keep``: it may fail
        after a part of it was done."""
        before = [each.tokens for each in timelines]
        # Of caches that cannot be cut a copy is kept, so that what then changes is copied by mlx.
        kept = [copied(each.caches) for each in timelines] if keep and not self._exact else None
        self._arm()
        try:
            with self._computing():
                yield
        except (ForwardAborted, DiskReadError):
            for at, each in enumerate(timelines):
                self._take_back(each, before[at], None if kept is None else kept[at])
            raise
        except LocalrunError:
            for each in timelines:
                self._held.empty(each)
            raise
        finally:
            self._disarm()

    def _take_back(self, timeline: Timeline, length: int, kept: list[Any] | None) -> None:
        """Where a step may end within a layer, some caches are longer than others."""
        if kept is not None:
            timeline.caches, timeline.tokens = kept, length
        elif self._interruptible:
            self._held.even(timeline, length)
        elif timeline.tokens != length and self._exact:
            self._held.cut(timeline, length)
        elif timeline.tokens != length:
            self._held.empty(timeline)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """On the plan's device; what mlx raises is an EngineError."""
        try:
            with self._on_device():
                yield
        except MemoryError as error:
            raise OutOfMemoryError(f"mlx got no memory for a step: {error}") from error
        except _FAILURES as error:
            text = str(error)
            if any(mark in text for mark in _MEMORY):
                raise OutOfMemoryError(f"mlx got no memory for a step: {text}") from error
            raise EngineError(f"mlx could not compute a step: {text}") from error

    def _on_device(self) -> Any:
        return mx.stream(self._device)

    def embed(self, batch: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """Raises EngineError: mlx-lm's models give logits only."""
        raise EngineError("the mlx backend makes no embeddings")

    def identity(self) -> str:
        """See ModelRunner."""
        kind = "float32" if self._device == mx.cpu else "the release's own type"
        return f"{version()}, {kind}"

    def abort(self) -> None:
        """See ModelRunner. Between two pieces of a prompt: a step of one token is short."""
        with self._running:
            if self._armed:
                self._asked.set()

    def _arm(self) -> None:
        with self._running:
            self._armed = True

    def _disarm(self) -> None:
        with self._running:
            self._armed = False
            self._asked.clear()

    def set_threads(self, threads: int) -> None:
        """No effect: mlx takes the threads that it wants."""
        self._open()

    def stats(self) -> RunnerStats:
        """Weights in memory are taken as read once a step, but for experts that are kept singly:
        those by pick."""
        kv, own = self._held.nbytes, int(mx.get_active_memory())
        if self._files is not None:
            own += self._files.table_bytes + self._files.staging_bytes
        total = max(own, self._weights + kv)
        parts = {"weights": self._weights, "kv": kv, "compute": total - self._weights - kv}
        told = RunnerStats(
            memory_bytes={self._tier: total},
            bytes_read={self._tier: self._weights * self._steps},
            tokens=self._tokens,
            memory_parts={self._tier: parts},
            forward_s=self._forward_s,
        )
        if self._files is None:
            return told
        return self._files.measured(told, self._tier, self._steps)

    def close(self) -> None:
        """Give the memory back. Again does nothing; any other call then raises."""
        with self._text_lock:
            if self._model is not None:
                self._model = None
                self._held.clear()
                self._weights = 0
                if self._files is not None:
                    self._files.close()
                mx.clear_cache()

    def _open(self) -> Any:
        if self._model is None:
            raise EngineError("the model is closed")
        return self._model

    def _sequences(self) -> Sequences:
        self._open()
        return self._held

    def _check(self, items: Sequence[BatchItem], timelines: Sequence[Timeline]) -> None:
        """Hold what is asked before anything is computed."""
        room, n_ctx = self.capabilities.max_tokens, self.capabilities.n_ctx
        after: dict[SequenceId, int] = {}
        for item, timeline in zip(items, timelines, strict=True):
            count = len(item.tokens)
            room -= count
            if count == 0 or room < 0:
                raise EngineError(f"a step takes 1 to {self.capabilities.max_tokens} tokens")
            wrong = [token for token in item.tokens if not 0 <= token < self._width]
            if wrong:
                raise EngineError(f"token {wrong[0]}: invalid token, the model has {self._width}")
            length = after.get(item.sequence, timeline.tokens) + count
            if length > n_ctx:
                raise EngineError(f"{length} tokens do not fit a context of {n_ctx}")
            after[item.sequence] = length
        self._held.room(sum(len(item.tokens) for item in items))


def _pieces(item: BatchItem, size: int) -> Iterator[tuple[Sequence[int], bool]]:
    """The tokens of an item in pieces, each with whether its logits are wanted."""
    tokens = item.tokens
    end = len(tokens) - 1 if item.logits == "last" else len(tokens)
    for at in range(0, end, size):
        yield tokens[at : min(at + size, end)], item.logits == "all"
    if item.logits == "last":
        yield tokens[end:], True


def _rows(found: Sequence[mx.array], width: int) -> NDArray[np.float32]:
    """``[rows, vocab]``, of which nobody may write. Memory of a Mac's GPU is the host's: numpy
    looks at it in place."""
    if not found:
        rows = np.empty((0, width), np.float32)
    else:
        joined = found[0] if len(found) == 1 else mx.concatenate(list(found))
        mx.eval(joined)
        rows = np.array(joined, copy=False)
    rows.flags.writeable = False
    return rows
