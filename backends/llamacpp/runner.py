"""Knows no text and no HTTP: a ModelRunner over one llama.cpp model and context."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Sequence
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
from localrun.backends.llamacpp.threadpool import ThreadPool
from localrun.backends.llamacpp.vocabulary import read_vocabulary, tokenize
from localrun.engine.rows import NumpyLogits
from localrun.engine.runner import (
    BatchItem,
    Capabilities,
    ForwardAborted,
    Logits,
    Pooling,
    RunnerStats,
    SequenceId,
    Vocabulary,
)
from localrun.errors import EngineError
from localrun.plan.plan import Execution

_ABORTED = 2  # llama_decode's answer when the abort callback said so (llama.h)
_NO_ROOM = 1
# enum llama_pooling_type (llama.h); 0 is none and 4 a score, which is no embedding
_POOLING: Final[dict[str, Pooling]] = {"1": "mean", "2": "cls", "3": "last"}
# Tokens of a text that are computed at once: each brings a row of logits that nobody reads.
_EMBEDDED: Final = 32


class LlamaCppRunner:
    """Implements ``localrun.engine.runner.ModelRunner``; owns ``model`` and ``context``.

    After a failed or aborted forward every sequence of the batch is cut back to what it held. A
    recurrent state cannot be cut: such a sequence is emptied and takes no further token before
    ``truncate`` was asked what is left of it.
    """

    def __init__(self, model: int, context: int, buffers: Buffers, execution: Execution) -> None:
        self._model: int | None = model
        self._context: int | None = context
        self._buffers = buffers
        self._vocab = _present(llama.llama_model_get_vocab(model))
        self._vocab_size = llama.llama_vocab_n_tokens(self._vocab)
        self._memory = _present(llama.llama_get_memory(context))
        self._window: int = llama.llama_model_n_swa(model)
        self._width: int = llama.llama_model_n_embd_out(model)
        self._lengths: dict[SequenceId, int] = {}
        self._emptied: set[SequenceId] = set()
        self._batch = Batch(llama.llama_n_batch(context))
        self._abort = AbortFlag()
        self._abort.attach(context)
        self._threads = ThreadPool(context, execution.threads_max)
        # Tokenizing comes from other threads and must not meet a model that is being freed.
        self._text_lock = threading.Lock()
        architecture = _metadata(model, "general.architecture")
        self._dense = not _metadata(model, f"{architecture}.expert_count")
        self._steps = self._tokens = 0
        self._forward_s = 0.0
        self._view: tuple[tuple[int, int], NDArray[np.float32]] | None = None
        exact = not (llama.llama_model_is_recurrent(model) or llama.llama_model_is_hybrid(model))
        sequences = llama.llama_n_seq_max(context)
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
            state_bytes_per_token=kept // llama.llama_n_ctx(context) if exact else 0,
            embeddings=True,
            pooling=_POOLING.get(_metadata(model, f"{architecture}.pooling_type")),
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
        self._open()
        for at in range(self.capabilities.max_sequences):
            sequence = SequenceId(at)
            if sequence not in self._lengths:
                self._lengths[sequence] = 0
                return sequence
        raise EngineError(f"all {self.capabilities.max_sequences} sequences are in use")

    def fork(self, sequence: SequenceId) -> SequenceId:
        length = self._length(sequence)
        copy = self.new_sequence()
        llama.llama_memory_seq_cp(self._memory, sequence, copy, -1, -1)
        self._lengths[copy] = length
        return copy

    def free(self, sequence: SequenceId) -> None:
        self._length(sequence)
        llama.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        del self._lengths[sequence]
        self._emptied.discard(sequence)

    def truncate(self, sequence: SequenceId, length: int) -> int:
        if length < self._length(sequence):
            self._lengths[sequence] = self._cut(sequence, max(0, length))
        self._emptied.discard(sequence)
        return self._lengths[sequence]

    def checkpoint(self, sequence: SequenceId) -> None:
        """Marks nothing: a cache that can roll back here can do so to any position."""
        self._length(sequence)

    def rollback(self, sequence: SequenceId, count: int) -> None:
        """Raises EngineError when the cache could not; the sequence is empty then."""
        wanted = self._length(sequence) - count
        if count < 0 or wanted < 0 or self.truncate(sequence, wanted) != wanted:
            raise EngineError(f"{count} tokens of sequence {sequence} cannot be taken back")

    def save(self, sequence: SequenceId) -> bytes:
        self._length(sequence)
        size = llama.llama_state_seq_get_size(self._open(), sequence)
        buffer = (ctypes.c_uint8 * size)()
        written = llama.llama_state_seq_get_data(self._open(), buffer, size, sequence)
        if written == 0:
            raise EngineError(f"the state of sequence {sequence} could not be copied")
        return bytes(memoryview(buffer)[:written])

    def restore(self, state: bytes) -> SequenceId:
        """Raises EngineError when ``state`` is not of this model, or no room is left for it."""
        sequence = self.new_sequence()
        source = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
        forget_problem()
        read = llama.llama_state_seq_set_data(self._open(), source, len(state), sequence)
        if read == 0:
            self.free(sequence)
            raise EngineError(f"a saved sequence could not be restored: {problem()}")
        self._lengths[sequence] = llama.llama_memory_seq_pos_max(self._memory, sequence) + 1
        return sequence

    def forward(self, batch: Sequence[BatchItem]) -> Logits:
        context = self._open()
        start = self._decode(context, batch)
        rows = self._rows(context)
        self._forward_s += time.perf_counter() - start
        return NumpyLogits(rows)

    def _decode(self, context: int, batch: Sequence[BatchItem]) -> float:
        """Run one step, or leave every sequence as it was; returns when it began."""
        before = {item.sequence: self._length(item.sequence) for item in batch}
        after = self._fill(batch, before)
        forget_problem()
        self._abort.arm()
        start = time.perf_counter()
        try:
            code = llama.llama_decode(context, self._batch.struct)
        finally:
            self._abort.disarm()
        if code != 0:
            self._undo(before)
            if code == _ABORTED:
                raise ForwardAborted
            reason = "no room is left in the context" if code == _NO_ROOM else problem()
            raise EngineError(f"llama.cpp could not compute a step: {reason}")
        self._lengths.update(after)
        self._steps += 1
        self._tokens += self._batch.struct.n_tokens
        return start

    def embed(self, batch: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """See ModelRunner."""
        context = self._open()
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
                self._decode(context, [BatchItem(sequence, part, "all")])
                array = (ctypes.c_float * (len(part) * self._width)).from_address(
                    embeddings_address(context)
                )
                states[at : at + len(part)] = np.frombuffer(array, np.float32).reshape(
                    len(part), self._width
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

    def _length(self, sequence: SequenceId) -> int:
        self._open()
        try:
            return self._lengths[sequence]
        except KeyError:
            raise EngineError(f"sequence {sequence} does not exist") from None

    def _fill(
        self, batch: Sequence[BatchItem], before: dict[SequenceId, int]
    ) -> dict[SequenceId, int]:
        """Write the batch; returns the lengths it leads to."""
        self._batch.clear()
        room = self._batch.capacity
        after = dict(before)
        for item in batch:
            if item.sequence in self._emptied:
                raise EngineError(f"sequence {item.sequence} lost its tokens in a failed step")
            count, start = len(item.tokens), after[item.sequence]
            room -= count
            if count == 0 or room < 0:
                raise EngineError(f"a step takes 1 to {self._batch.capacity} tokens")
            if start + count > self.capabilities.n_ctx:
                raise EngineError(
                    f"{start + count} tokens do not fit a context of {self.capabilities.n_ctx}"
                )
            try:
                self._batch.add(item.sequence, start, item.tokens, item.logits)
            except OverflowError as error:
                raise EngineError(f"a token id is out of range: {error}") from error
            after[item.sequence] = start + count
        return after

    def _rows(self, context: int) -> NDArray[np.float32]:
        """The library's own logits ``[rows, vocab]``; it keeps them in the batch's order."""
        rows = self._batch.rows
        if rows == 0:
            return np.empty((0, self._vocab_size), np.float32)
        key = (logits_address(context), rows)
        if self._view is None or self._view[0] != key:
            array = (ctypes.c_float * (rows * self._vocab_size)).from_address(key[0])
            shaped = np.frombuffer(array, np.float32).reshape(rows, self._vocab_size)
            shaped.flags.writeable = False
            self._view = key, shaped
        return self._view[1]

    def _undo(self, before: dict[SequenceId, int]) -> None:
        for sequence, length in before.items():
            self._lengths[sequence] = self._cut(sequence, length)
            if self._lengths[sequence] < length:
                self._emptied.add(sequence)

    def _cut(self, sequence: SequenceId, length: int) -> int:
        """Drop what lies from ``length`` on; returns what is left, which may be nothing."""
        if llama.llama_memory_seq_rm(self._memory, sequence, length or -1, -1) and (
            length == 0 or self._window_reaches(sequence, length)
        ):
            return length
        llama.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        return 0

    def _window_reaches(self, sequence: SequenceId, length: int) -> bool:
        """Whether a sliding window before ``length`` is still whole."""
        if self._window == 0:
            return True
        oldest: int = llama.llama_memory_seq_pos_min(self._memory, sequence)
        return 0 <= oldest <= max(0, length - self._window)


def _present(pointer: int | None) -> int:
    if pointer is None:
        raise EngineError("this model has no tokens or no memory to generate with")
    return pointer


def _metadata(model: int, key: str) -> str:
    """A value of the model's metadata as text, empty where there is none."""
    buffer = ctypes.create_string_buffer(128)
    llama.llama_model_meta_val_str(model, key.encode(), buffer, len(buffer))
    return buffer.value.decode("utf-8", "replace")
