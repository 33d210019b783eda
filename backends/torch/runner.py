"""Knows no text and no HTTP: a ModelRunner over one model computed by torch."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from localrun.backends.torch.batches import Laid, laid
from localrun.backends.torch.caches.cache import Cache
from localrun.backends.torch.caches.formats import row_bytes
from localrun.backends.torch.caches.ring import Ring
from localrun.backends.torch.caches.rows import Rows
from localrun.backends.torch.held import Held
from localrun.backends.torch.library import failures, version
from localrun.backends.torch.loading import Loaded
from localrun.backends.torch.logits import handle
from localrun.backends.torch.sequences import Sequences, Timeline
from localrun.backends.torch.threads import share_threads
from localrun.backends.torch.times import Tiers, Times
from localrun.engine.runner import (
    BatchItem,
    Capabilities,
    Logits,
    RunnerStats,
    SequenceId,
    Vocabulary,
)
from localrun.errors import EngineError, SourceError
from localrun.hardware.memory import resident
from localrun.plan.plan import Plan

# Live ones and prefixes that are parked: in the host's memory an idle one takes what its tokens
# wrote, a card gives each of them its whole context.
_SEQUENCES: Final = 8


class TorchRunner:
    """Implements ``localrun.engine.runner.ModelRunner``; owns what was loaded.

    After a step that failed or was aborted every sequence of it is as it was. ``check_numbers``
    looks at what every layer gives, and names the first one that gives what is no number.
    """

    def __init__(self, loaded: Loaded, plan: Plan, *, check_numbers: bool = False) -> None:
        execution = plan.execution
        self._loaded: Loaded | None = loaded
        self._device = loaded.setup.device
        self._numerics = loaded.setup.numerics.name
        self._kv = execution.kv_type
        self._check_numbers = check_numbers
        self._interrupt = loaded.interrupt
        tiers = Tiers.of(execution, len(loaded.model.layer_bytes))
        self._weights = Held.of(loaded, execution, tiers)
        self._times = Times(tiers, self._device)
        self._before = resident()
        self._text_lock = threading.Lock()
        self._steps = self._tokens = 0
        self._forward_s = 0.0
        parallel = max(1, execution.parallel)
        limit = parallel if self._device.type == "cuda" else max(_SEQUENCES, 2 * parallel)
        cells = execution.n_ctx * parallel
        self._held = Sequences(self._new_cache, limit=limit, n_ctx=execution.n_ctx, cells=cells)
        with self._computing("a sequence"):
            depth, per_token = _keeps(self._new_cache())
        self._depth = depth
        self.capabilities = Capabilities(
            n_ctx=execution.n_ctx,
            max_sequences=limit,
            max_batch=limit,
            max_tokens=execution.ubatch,
            n_cells=cells,
            can_fork=True,
            rollback_depth=depth,
            state_bytes_per_token=per_token,
        )
        self.set_threads(execution.threads)

    def vocabulary(self) -> Vocabulary:
        with self._text_lock:
            return self._open().texts.vocabulary

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """See ModelRunner. Raises EngineError after ``close``."""
        with self._text_lock:
            texts = self._open().texts
            return texts.tokenize(text, add_special=add_special, parse_special=parse_special)

    def new_sequence(self) -> SequenceId:
        with self._computing("a sequence"):
            return self._sequences().new()

    def fork(self, sequence: SequenceId) -> SequenceId:
        with self._computing("a fork"):
            return self._sequences().fork(sequence)

    def free(self, sequence: SequenceId) -> None:
        self._sequences().free(sequence)

    def truncate(self, sequence: SequenceId, length: int) -> int:
        with self._computing("a cut"):
            return self._sequences().truncate(sequence, length)

    def checkpoint(self, sequence: SequenceId) -> None:
        """See ModelRunner. Steps of at most ``rollback_depth`` tokens keep the mark."""
        timeline = self._sequences().timeline(sequence)
        timeline.cache.begin()
        timeline.marked = True

    def rollback(self, sequence: SequenceId, count: int) -> None:
        """Raises EngineError where that many cannot be taken back; nothing is changed then."""
        cache = self._sequences().timeline(sequence).cache
        wanted = cache.tokens - count
        if count < 0 or wanted < 0 or not cache.can_cut(wanted):
            raise EngineError(f"{count} tokens of sequence {sequence} cannot be taken back")
        if count:
            with self._computing("a rollback"):
                cache.revert(wanted)

    def save(self, sequence: SequenceId) -> bytes:
        with self._computing("a state"):
            return self._sequences().save(sequence)

    def restore(self, state: bytes) -> SequenceId:
        """Raises EngineError when ``state`` is not of this model, or no room is left for it."""
        with self._computing("a state"):
            return self._sequences().restore(state)

    def forward(self, batch: Sequence[BatchItem]) -> Logits:
        """See ModelRunner; two items of one sequence follow each other in it."""
        held = self._sequences()
        timelines = [held.timeline(item.sequence) for item in batch]
        self._check(batch, timelines)
        start = time.perf_counter()
        step = laid(batch, timelines)
        with self._step(step):
            loaded = self._open()
            if self._device.type == "cpu":
                share_threads(step.count, loaded.setup.numerics, loaded.kernels.threads)
            self._times.begin()
            rows = loaded.model.forward(step.step(self._device, self._watch, self._times.mark))
            self._times.end()
            self._hold_to_numbers(rows, step)
        self._steps += 1
        self._tokens += step.count
        self._forward_s += time.perf_counter() - start
        return handle(rows)

    @contextmanager
    def _step(self, step: Laid) -> Iterator[None]:
        """Caches take their tokens where what is done inside succeeds, and else are as before."""
        for part in step.parts:
            _begin(part.timeline, len(part.tokens), self._depth)
        self._interrupt.arm(True)
        try:
            with self._computing("a step"):
                yield
        except BaseException:
            for part in step.parts:
                before = part.cache.tokens
                part.cache.revert(before, before + len(part.tokens))
            raise
        finally:
            self._interrupt.arm(False)
        for part in step.parts:
            part.cache.tokens += len(part.tokens)

    @contextmanager
    def _computing(self, what: str) -> Iterator[None]:
        """What is read of a file in between, rows of a table, may be damaged or gone by then."""
        try:
            with torch.no_grad(), failures(self._device, what):
                yield
        except SourceError as error:
            raise EngineError(error.message, hint=error.hint) from error

    def _watch(self, layer: int, x: Tensor) -> None:
        self._times.passed(layer)
        self._interrupt()
        if self._check_numbers and not bool(x.isfinite().all()):
            where = "the embedding" if layer < 0 else f"layer {layer}"
            raise EngineError(
                f"{where} is the first to give what are no numbers",
                hint="the weights or this computation are at fault; try --numerics float32",
            )

    def _hold_to_numbers(self, rows: Tensor, step: Laid) -> None:
        whole = rows.isfinite().all(-1)
        if not bool(whole.all()):
            row = int((~whole).nonzero()[0])
            told = "LOCALRUN_DEBUG_NAN=1 says which layer is the first"
            if self._check_numbers:
                told = "every layer gave numbers: the head, or the norm before it, is at fault"
            raise EngineError(
                f"logits of token {step.position(row)} are not numbers",
                hint=f"{told}; try --numerics float32",
            )

    def embed(self, batch: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """Raises EngineError: models here give logits only."""
        raise EngineError("the torch backend makes no embeddings")

    def identity(self) -> str:
        """See ModelRunner. What a shortened prompt leaves is not what a whole one does."""
        prompts = "prompts shortened" if self._open().setup.approximate_prefill else "prompts whole"
        return f"torch {version()}, {self._device.type}, {self._numerics}, {self._kv}, {prompts}"

    def abort(self) -> None:
        """See ModelRunner. Between two layers, or while a disk is waited for."""
        self._interrupt.ask()

    def set_threads(self, threads: int) -> None:
        """Of torch's own products, for the whole process, and of libggml's."""
        loaded = self._open()
        if self._device.type == "cpu":
            torch.set_num_threads(max(1, threads))
            loaded.kernels.set_threads(max(1, threads))

    def stats(self) -> RunnerStats:
        """Weights are taken as read once a step, of experts those that were picked. On a card
        ``compute`` is the most that steps took, in the host's memory what the process has grown by
        since the load beyond its caches, of rows and of experts, and what these are read into."""
        held, kv = self._weights, self._held.nbytes
        stored = held.stored()
        kept = kv + stored.filled + stored.staging_bytes
        parts = held.memory(kv, self._compute_bytes(kept), stored) if self._loaded else {}
        read = held.bytes_read(self._steps, stored)
        waited = held.model.table_use.seconds
        return RunnerStats(
            memory_bytes={tier: sum(part.values()) for tier, part in parts.items()},
            bytes_read=held.by_tier(read),
            tokens=self._tokens,
            memory_parts=parts,
            forward_s=self._forward_s,
            numerics=self._numerics,
            terms_s=self._times.terms(stored.experts, waited),
            terms_bytes=read,
            experts=stored.experts,
            picks=stored.picks,
            read_ahead=stored.guessed,
            needed=stored.right,
            notes=stored.notes,
        )

    def _compute_bytes(self, kept: int) -> int:
        if self._loaded is None:
            return 0
        if self._device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self._device)
            return max(0, peak - self._weights.on_card - kept)
        return max(0, resident() - self._before - kept)

    def close(self) -> None:
        """Give the memory back. Again does nothing; any other call then raises."""
        with self._text_lock:
            if self._loaded is not None:
                self._held.clear()
                self._loaded.close()
                self._loaded = None

    def _new_cache(self) -> Cache:
        return self._open().model.new_cache()

    def _open(self) -> Loaded:
        if self._loaded is None:
            raise EngineError("the model is closed")
        return self._loaded

    def _sequences(self) -> Sequences:
        self._open()
        return self._held

    def _check(self, items: Sequence[BatchItem], timelines: Sequence[Timeline]) -> None:
        """Hold what is asked before anything is computed."""
        room, n_ctx = self.capabilities.max_tokens, self.capabilities.n_ctx
        width = self._open().model.vocabulary
        after: dict[SequenceId, int] = {}
        for item, timeline in zip(items, timelines, strict=True):
            count = len(item.tokens)
            room -= count
            if count == 0 or room < 0:
                raise EngineError(f"a step takes 1 to {self.capabilities.max_tokens} tokens")
            wrong = [token for token in item.tokens if not 0 <= token < width]
            if wrong:
                raise EngineError(f"token {wrong[0]}: invalid token, the model has {width}")
            length = after.get(item.sequence, timeline.tokens) + count
            if length > n_ctx:
                raise EngineError(f"{length} tokens do not fit a context of {n_ctx}")
            after[item.sequence] = length
        self._held.room(sum(len(item.tokens) for item in items))


def _begin(timeline: Timeline, count: int, depth: int | None) -> None:
    """Mark where a step can be taken back to; a mark that ``rollback`` counts from stays, as long
    as what comes behind it can be taken back."""
    cache = timeline.cache
    if timeline.marked and depth is not None and cache.tokens + count - cache.marked <= depth:
        return
    timeline.marked = False
    cache.begin()


def _keeps(cache: Cache) -> tuple[int | None, int]:
    """How many tokens can be taken back, and what each leaves in a saved state, about."""
    depths: list[int] = []
    per_token = 0.0
    for part in cache.parts.values():
        if isinstance(part, Ring):
            depths.append(part.depth)
        elif isinstance(part, Rows):
            per_token += row_bytes(part.format) / part.ratio
        else:
            depths.append(0)
    return min(depths, default=None), int(per_token)
