"""Knows no text and no HTTP: a ModelRunner over one llama.cpp model and context."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Final

import numpy as np
from llama_cpp import llama_cpp as llama
from numpy.typing import NDArray

from localrun.backends.llamacpp.abort import AbortFlag
from localrun.backends.llamacpp.batch import Batch
from localrun.backends.llamacpp.buffers import Buffers
from localrun.backends.llamacpp.library import (
    embeddings_address,
    forget_problem,
    logits_address,
    problem,
    version,
)
from localrun.backends.llamacpp.native import floats, metadata, pooling, present
from localrun.backends.llamacpp.passes import Gathered, passes
from localrun.backends.llamacpp.sequences import NO_ROOM, Sequences
from localrun.backends.llamacpp.threadpool import ThreadPool
from localrun.backends.llamacpp.vocabulary import read_vocabulary, tokenize
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
from localrun.errors import EngineError
from localrun.plan.plan import Execution

# Attention of a lone token is another kernel's than that of two (ggml-cpu's llamafile_sgemm).
_LEAST_CHUNK: Final = 2
_ABORTED = 2  # llama_decode's answer when the abort callback said so (llama.h)
# Tokens of a text that are computed at once: each brings a row of logits that nobody reads.
_EMBEDDED: Final = 32


class LlamaCppRunner:
    """Implements ``localrun.engine.runner.ModelRunner``; owns ``model`` and ``context``.

    After a failed or aborted forward every sequence of the batch is cut back to what it held, or
    emptied where the memory cannot be cut (``Sequences``).
    """

    def __init__(self, model: int, context: int, buffers: Buffers, execution: Execution) -> None:
        self._model: int | None = model
        self._context: int | None = context
        self._buffers = buffers
        self._vocab = present(llama.llama_model_get_vocab(model))
        self._vocab_size = llama.llama_vocab_n_tokens(self._vocab)
        self._streams = execution.parallel > 1
        self._apart = self._streams and not execution.flash_attention
        self._held = Sequences(model, context, streams=self._streams)
        self._width: int = llama.llama_model_n_embd_out(model)
        self._batch = Batch(llama.llama_n_batch(context))
        self._abort = AbortFlag()
        self._abort.attach(context)
        self._threads = ThreadPool(context, execution.threads_max)
        # Tokenizing comes from other threads and must not meet a model that is being freed.
        self._text_lock = threading.Lock()
        architecture = metadata(model, "general.architecture")
        self._dense = not metadata(model, f"{architecture}.expert_count")
        self._steps = self._tokens = 0
        self._forward_s = 0.0
        self._view: tuple[tuple[int, int], NDArray[np.float32]] | None = None
        exact = not (llama.llama_model_is_recurrent(model) or llama.llama_model_is_hybrid(model))
        sequences = self._held.limit
        kept = sum(terms.get("kv", 0) for terms in buffers.parts.values())
        self._numerics = f"{version()}, {execution.kv_type}, flash {execution.flash_attention}"
        self.capabilities = Capabilities(
            n_ctx=execution.n_ctx,
            max_sequences=sequences,
            max_batch=sequences,
            max_tokens=self._batch.capacity,
            n_cells=execution.n_ctx * execution.parallel,
            can_fork=True,
            rollback_depth=None if exact else 0,
            least_chunk=_LEAST_CHUNK,
            # Attention on a CPU looks at the mask of each cell up to the last that is used.
            idle_costs=not self._streams and execution.gpu_layers == 0 and exact,
            state_bytes_per_token=kept // llama.llama_n_ctx(context) if exact else 0,
            embeddings=True,
            pooling=pooling(model, architecture),
        )

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return read_vocabulary(self._vocab)

    def vocabulary(self) -> Vocabulary:
        with self._text_lock:
            self._open()
            return self._vocabulary

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """See ModelRunner. Raises EngineError after ``close``."""
        with self._text_lock:
            self._open()
            return tokenize(self._vocab, text, add_special=add_special, parse_special=parse_special)

    def new_sequence(self) -> SequenceId:
        return self._sequences().new()

    def fork(self, sequence: SequenceId) -> SequenceId:
        return self._sequences().fork(sequence)

    def free(self, sequence: SequenceId) -> None:
        self._sequences().free(sequence)

    def truncate(self, sequence: SequenceId, length: int) -> int:
        return self._sequences().truncate(sequence, length)

    def checkpoint(self, sequence: SequenceId) -> None:
        """Marks nothing: a cache that can roll back here can do so to any position."""
        self._sequences().length(sequence)

    def rollback(self, sequence: SequenceId, count: int) -> None:
        """Raises EngineError when the cache could not; the sequence is empty then."""
        held = self._sequences()
        wanted = held.length(sequence) - count
        if count < 0 or wanted < 0 or held.truncate(sequence, wanted) != wanted:
            raise EngineError(f"{count} tokens of sequence {sequence} cannot be taken back")

    def save(self, sequence: SequenceId) -> bytes:
        return self._sequences().save(sequence)

    def restore(self, state: bytes) -> SequenceId:
        """Raises EngineError when ``state`` is not of this model, or no room is left for it."""
        return self._sequences().restore(state)

    def forward(self, batch: Sequence[BatchItem]) -> Logits:
        context = self._open()
        start = time.perf_counter()
        together = passes(batch, streams=self._streams, apart=self._apart)
        with self._step(batch) as lengths:
            if together is None:
                self._decode(context, batch, lengths)
                rows = self._rows(context)
            else:
                gathered = Gathered(batch, self._vocab_size)
                for chosen in together:
                    self._decode(context, [batch[at] for at in chosen], lengths)
                    gathered.add(chosen, self._rows(context))
                rows = gathered.rows
        if not len(rows):
            # Only logits are waited for: a card would still compute, and the next step seem slow.
            llama.llama_synchronize(context)
        self._forward_s += time.perf_counter() - start
        return NumpyLogits(rows)

    def _decode(
        self, context: int, items: Sequence[BatchItem], lengths: dict[SequenceId, int]
    ) -> None:
        """One call of the library; ``lengths`` are brought up to date."""
        try:
            self._batch.fill(items, lengths)
        except OverflowError as error:
            raise EngineError(f"a token id is out of range: {error}") from error
        forget_problem()
        code = llama.llama_decode(context, self._batch.struct)
        if code == _ABORTED:
            raise ForwardAborted
        if code != 0:
            reason = "no room is left in the context" if code == NO_ROOM else problem()
            raise EngineError(f"llama.cpp could not compute a step: {reason}")
        for item in items:
            lengths[item.sequence] += len(item.tokens)
        self._steps += 1
        self._tokens += self._batch.struct.n_tokens

    def embed(self, batch: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """See ModelRunner."""
        context = self._open()
        if sum(map(len, batch)) > self._batch.capacity or not all(map(len, batch)):
            raise EngineError(f"embeddings are made of 1 to {self._batch.capacity} tokens at once")
        llama.llama_set_embeddings(context, True)
        try:
            return [self._embedded(context, text) for text in batch]
        finally:
            llama.llama_set_embeddings(context, False)

    def _embedded(self, context: int, text: Sequence[int]) -> NDArray[np.float32]:
        states = np.empty((len(text), self._width), np.float32)
        sequence = self.new_sequence()
        try:
            for at in range(0, len(text), _EMBEDDED):
                part = text[at : at + _EMBEDDED]
                items = [BatchItem(sequence, part, "all")]
                with self._step(items) as lengths:
                    self._decode(context, items, lengths)
                states[at : at + len(part)] = floats(
                    embeddings_address(context), len(part), self._width
                )
        finally:
            self.free(sequence)
        return states

    def identity(self) -> str:
        """See ModelRunner. Which layers are on which device is left out: it changes no state's
        meaning."""
        return self._numerics

    def abort(self) -> None:
        """See ModelRunner. On the CPU within one operation of the graph, elsewhere one batch."""
        self._abort.ask()

    def set_threads(self, threads: int) -> None:
        llama.llama_set_n_threads(self._open(), threads, threads)

    def stats(self) -> RunnerStats:
        """A dense model reads its weights once a step; which experts were read is not known."""
        weights = self._buffers.weights if self._dense else {}
        return RunnerStats(
            memory_bytes=dict(self._buffers.held),
            bytes_read={tier: size * self._steps for tier, size in weights.items()},
            tokens=self._tokens,
            memory_parts={tier: dict(terms) for tier, terms in self._buffers.parts.items()},
            forward_s=self._forward_s,
        )

    def close(self) -> None:
        """Free the context and the model. Again does nothing; any other call then raises."""
        with self._text_lock:
            context, self._context = self._context, None
            model, self._model = self._model, None
            self._view = None
            if context is not None and model is not None:
                llama.llama_free(context)
                self._threads.close()
                llama.llama_model_free(model)

    def _open(self) -> int:
        if self._context is None:
            raise EngineError("the model is closed")
        return self._context

    def _sequences(self) -> Sequences:
        self._open()
        return self._held

    def _check(self, items: Sequence[BatchItem], before: Mapping[SequenceId, int]) -> None:
        room = self._batch.capacity
        after = dict(before)
        for item in items:
            count = len(item.tokens)
            room -= count
            if count == 0 or room < 0:
                raise EngineError(f"a step takes 1 to {self._batch.capacity} tokens")
            after[item.sequence] += count
            if after[item.sequence] > self.capabilities.n_ctx:
                raise EngineError(
                    f"{after[item.sequence]} tokens do not fit a context of "
                    f"{self.capabilities.n_ctx}"
                )

    def _step(self, batch: Sequence[BatchItem]) -> _Step:
        before = self._held.lengths([item.sequence for item in batch])
        self._check(batch, before)
        return _Step(self._held, self._abort, before)

    def _rows(self, context: int) -> NDArray[np.float32]:
        """The library's own logits ``[rows, vocab]``; it keeps them in the batch's order."""
        rows = self._batch.rows
        if rows == 0:
            return np.empty((0, self._vocab_size), np.float32)
        key = (logits_address(context), rows)
        if self._view is None or self._view[0] != key:
            self._view = key, floats(key[0], rows, self._vocab_size)
        return self._view[1]


class _Step:
    """Every sequence stays as it was where what is done inside fails; gives their lengths.

    A class, as a generator that does the same takes a dozen calls more in each step.
    """

    __slots__ = ("_abort", "_after", "_before", "_held")

    def __init__(self, held: Sequences, abort: AbortFlag, before: dict[SequenceId, int]) -> None:
        self._held, self._abort, self._before = held, abort, before
        self._after = dict(before)

    def __enter__(self) -> dict[SequenceId, int]:
        self._abort.arm()
        return self._after

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._abort.disarm()
        if kind is None:
            self._held.lengthen(self._after)
        elif issubclass(kind, (EngineError, ForwardAborted)):
            self._held.restore_lengths(self._before)
