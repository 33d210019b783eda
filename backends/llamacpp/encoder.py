"""Knows no scheduling: a ModelRunner over an encoder of llama.cpp's, which makes embeddings only.

An encoder looks at a text from both ends and keeps nothing of it: each text is computed whole, and
whatever speaks of sequences, caches and logits is refused.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from functools import cached_property
from typing import Final, NoReturn

import numpy as np
from llama_cpp import llama_cpp as llama
from numpy.typing import NDArray

from localrun.backends.llamacpp.abort import AbortFlag
from localrun.backends.llamacpp.batch import Batch
from localrun.backends.llamacpp.buffers import Buffers
from localrun.backends.llamacpp.library import (
    embeddings_address,
    forget_problem,
    problem,
    version,
)
from localrun.backends.llamacpp.native import floats, metadata, pooling, present
from localrun.backends.llamacpp.threadpool import ThreadPool
from localrun.backends.llamacpp.vocabulary import read_vocabulary, tokenize
from localrun.backends.llamacpp.wordpiece import Texts
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

_ABORTED = 2  # llama_encode's answer when the abort callback said so
_TEXT: Final = SequenceId(0)


class EncoderRunner:
    """Implements ``localrun.engine.runner.ModelRunner``; owns ``model`` and ``context``.

    Raises:
        EngineError: the plan's context is longer than the model has positions; both are freed.
    """

    def __init__(self, model: int, context: int, buffers: Buffers, execution: Execution) -> None:
        self._model: int | None = model
        self._context: int | None = context
        self._buffers = buffers
        self._vocab = present(llama.llama_model_get_vocab(model))
        self._width: int = llama.llama_model_n_embd_out(model)
        self._batch = Batch(llama.llama_n_batch(context))
        self._abort = AbortFlag()
        self._abort.attach(context)
        self._threads = ThreadPool(context, execution.threads_max)
        # Tokenizing comes from other threads and must not meet a model that is being freed.
        self._text_lock = threading.Lock()
        self._steps = self._tokens = 0
        self._forward_s = 0.0
        self._numerics = f"{version()}, encoder, flash {execution.flash_attention}"
        architecture = metadata(model, "general.architecture")
        self.capabilities = Capabilities(
            n_ctx=execution.n_ctx,
            max_sequences=1,
            max_batch=1,
            max_tokens=self._batch.capacity,
            n_cells=execution.n_ctx,
            can_fork=False,
            rollback_depth=0,
            embeddings=True,
            generates=False,
            pooling=pooling(model, architecture),
        )
        positions: int = llama.llama_model_n_ctx_train(model)
        if execution.n_ctx > positions:
            # The library would end the process at the first text that is longer.
            self.close()
            raise EngineError(
                f"the plan wants texts of {execution.n_ctx} tokens, the model has {positions} "
                "positions",
                hint="make the plan again with `localrun plan REF`",
            )

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return read_vocabulary(self._vocab)

    @cached_property
    def _texts(self) -> Texts | None:
        """How texts are written for a WordPiece vocabulary; None for another kind."""
        if llama.llama_vocab_type(self._vocab) != llama.LLAMA_VOCAB_TYPE_WPM:
            return None
        assert self._model is not None
        names = frozenset(self._vocabulary.names.values())
        return Texts.of(lambda key: metadata(self._model or 0, key), names)

    def vocabulary(self) -> Vocabulary:
        with self._text_lock:
            self._open()
            return self._vocabulary

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """See ModelRunner. Raises EngineError after ``close``."""
        with self._text_lock:
            self._open()
            if self._texts is not None:
                text = self._texts.written(text, parse_special=parse_special)
            return tokenize(self._vocab, text, add_special=add_special, parse_special=parse_special)

    def embed(self, batch: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """See ModelRunner."""
        context = self._open()
        if sum(map(len, batch)) > self._batch.capacity or not all(map(len, batch)):
            raise EngineError(f"embeddings are made of 1 to {self._batch.capacity} tokens at once")
        start = time.perf_counter()
        try:
            return [self._embedded(context, text) for text in batch]
        finally:
            self._forward_s += time.perf_counter() - start

    def _embedded(self, context: int, text: Sequence[int]) -> NDArray[np.float32]:
        try:
            self._batch.fill([BatchItem(_TEXT, text, "all")], {_TEXT: 0})
        except OverflowError as error:
            raise EngineError(f"a token id is out of range: {error}") from error
        forget_problem()
        self._abort.arm()
        try:
            code = llama.llama_encode(context, self._batch.struct)
        finally:
            self._abort.disarm()
        if code == _ABORTED:
            raise ForwardAborted
        if code != 0:
            raise EngineError(f"llama.cpp could not compute a text: {problem()}")
        self._steps += 1
        self._tokens += len(text)
        return floats(embeddings_address(context), len(text), self._width).copy()

    def identity(self) -> str:
        return self._numerics

    def abort(self) -> None:
        """See ModelRunner."""
        self._abort.ask()

    def set_threads(self, threads: int) -> None:
        llama.llama_set_n_threads(self._open(), threads, threads)

    def stats(self) -> RunnerStats:
        """Every text reads all weights."""
        return RunnerStats(
            memory_bytes=dict(self._buffers.held),
            bytes_read={tier: size * self._steps for tier, size in self._buffers.weights.items()},
            tokens=self._tokens,
            memory_parts={tier: dict(terms) for tier, terms in self._buffers.parts.items()},
            forward_s=self._forward_s,
        )

    def close(self) -> None:
        """Free the context and the model. Again does nothing; any other call then raises."""
        with self._text_lock:
            context, self._context = self._context, None
            model, self._model = self._model, None
            if context is not None and model is not None:
                llama.llama_free(context)
                self._threads.close()
                llama.llama_model_free(model)

    def _open(self) -> int:
        if self._context is None:
            raise EngineError("the model is closed")
        return self._context

    # What an encoder has not.

    def new_sequence(self) -> SequenceId:
        _refuse()

    def fork(self, sequence: SequenceId) -> SequenceId:
        _refuse()

    def free(self, sequence: SequenceId) -> None:
        _refuse()

    def truncate(self, sequence: SequenceId, length: int) -> int:
        _refuse()

    def checkpoint(self, sequence: SequenceId) -> None:
        _refuse()

    def rollback(self, sequence: SequenceId, count: int) -> None:
        _refuse()

    def save(self, sequence: SequenceId) -> bytes:
        _refuse()

    def restore(self, state: bytes) -> SequenceId:
        _refuse()

    def forward(self, batch: Sequence[BatchItem]) -> Logits:
        _refuse()


def _refuse() -> NoReturn:
    raise EngineError(
        "this model makes embeddings only, no text", hint="choose a model that generates"
    )
