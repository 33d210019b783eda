"""Knows no quantization: what a model multiplies its weights with while it reads a text.

For every matrix it gathers the sum of the squares of each column of the vectors that came, as
llama-imatrix does (``collect_imatrix`` in
https://github.com/ggml-org/llama.cpp/blob/master/tools/imatrix/imatrix.cpp): matrices of blocks
where 16 vectors come at once, experts always, each by its own vectors. Sums are kept in double
precision, theirs in single.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from llama_cpp import llama_cpp as llama
from numpy.typing import NDArray

from localrun.backends.llamacpp import graph
from localrun.backends.llamacpp.backend import opened, require_library
from localrun.backends.llamacpp.batch import Batch
from localrun.backends.llamacpp.library import forget_problem, problem
from localrun.backends.llamacpp.parameters import parameters
from localrun.backends.llamacpp.vocabulary import tokenize
from localrun.engine.runner import BatchItem, SequenceId
from localrun.errors import EngineError, LocalrunError, UsageError
from localrun.plan.plan import Execution

_LEAST_VECTORS: Final = 16
_UBATCH: Final = 512
# Of vectors that are squared at once: a small part of what the model itself needs for them.
_ROWS: Final = 64
_SEQUENCE: Final = SequenceId(0)


@dataclass(slots=True)
class Sums:
    """Of one tensor: ``squares`` ``[matrices, columns]``, ``counts`` ``[matrices]``."""

    squares: NDArray[np.float64]
    counts: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Collected:
    """``sums`` by tensor, over ``chunks`` of ``chunk_tokens`` tokens."""

    sums: dict[str, Sums]
    chunks: int
    chunk_tokens: int

    @property
    def pairs(self) -> dict[str, tuple[NDArray[np.float64], NDArray[np.int64]]]:
        """Squares and counts by tensor."""
        return {name: (each.squares, each.counts) for name, each in self.sums.items()}


def collect(
    files: Sequence[Path],
    text: str,
    *,
    threads: int,
    n_ctx: int = 512,
    chunks: int | None = None,
    gpu_layers: int = 0,
    output: bool = False,
    advance: Callable[[int, int], None] = lambda _done, _all: None,
) -> Collected:
    """Run the GGUF model in ``files`` over ``text`` in chunks of ``n_ctx`` tokens.

    Each chunk begins with the model's BOS token where it has one, in the place of the chunk's own
    first. ``chunks`` bounds how many are read, ``output`` takes output.weight in too, ``advance``
    is told (chunks done, all).

    Raises:
        UsageError: the text has fewer tokens than two chunks, or ``n_ctx`` is less than 16.
        BackendMissingError: the library is absent. OutOfMemoryError, EngineError: it fails.
    """
    if n_ctx < _LEAST_VECTORS or (chunks is not None and chunks < 1):
        raise UsageError(
            f"chunks of {n_ctx} tokens, {chunks} of them: at least {_LEAST_VECTORS} and 1"
        )
    require_library()
    graph.require_layout()
    execution = Execution(
        n_ctx, min(_UBATCH, n_ctx), "f16", threads, threads, True, gpu_layers=gpu_layers,
        flash_attention=True, parallel=1,
    )  # fmt: skip
    model_parameters, context_parameters = parameters(execution)
    context_parameters.n_batch = n_ctx
    watcher = _Watcher(output)
    callback = llama.ggml_backend_sched_eval_callback(watcher)
    context_parameters.cb_eval = callback
    model, context, _ = opened([str(each) for each in files], model_parameters, context_parameters)
    try:
        vocabulary = llama.llama_model_get_vocab(model)
        tokens = tokenize(vocabulary, text, add_special=True, parse_special=False)
        wanted = _chunks(tokens, n_ctx, chunks)
        bos = llama.llama_vocab_bos(vocabulary) if llama.llama_vocab_get_add_bos(vocabulary) else -1
        for number, chunk in enumerate(wanted):
            _decode(context, [bos, *chunk[1:]] if bos >= 0 else chunk, watcher)
            advance(number + 1, len(wanted))
    finally:
        llama.llama_free(context)
        llama.llama_model_free(model)
    return Collected(watcher.sums, len(wanted), n_ctx)


def _chunks(tokens: Sequence[int], n_ctx: int, most: int | None) -> list[Sequence[int]]:
    if len(tokens) < 2 * n_ctx:
        raise UsageError(
            f"--collect-imatrix: the text has {len(tokens)} tokens; two chunks of {n_ctx} are the"
            " least",
            hint="give a longer text: some 100 chunks are usual",
        )
    count = min(len(tokens) // n_ctx, most or len(tokens))
    return [tokens[at * n_ctx : (at + 1) * n_ctx] for at in range(count)]


def _decode(context: int, tokens: Sequence[int], watcher: _Watcher) -> None:
    llama.llama_memory_clear(llama.llama_get_memory(context), True)
    batch = Batch(len(tokens))
    # Without an output of every position, the last layers would see the last one alone.
    batch.fill([BatchItem(_SEQUENCE, tuple(tokens), "all")], {_SEQUENCE: 0})
    forget_problem()
    status = llama.llama_decode(context, batch.struct)
    llama.llama_synchronize(context)
    if watcher.error is not None:
        raise watcher.error
    if status:
        raise EngineError(f"the text could not be read by the model: {problem()}")


@dataclass
class _Watcher:
    """The callback of a graph's scheduler: asked of every node, then given those it wants."""

    output: bool
    sums: dict[str, Sums] = field(default_factory=dict)
    error: BaseException | None = None

    def __call__(self, address: int, ask: bool, _data: int | None) -> bool:
        # An exception cannot cross the library's frames: it is raised when they have returned.
        if self.error is not None:
            return not ask
        try:
            node = graph.node(address)
            if ask:
                return self._wants(node)
            self._take(node)
        except (LocalrunError, MemoryError, KeyboardInterrupt) as error:
            self.error = error
        return True

    def _wants(self, node: graph.Node) -> bool:
        kind = graph.operation(node.op)
        if kind == "MUL_MAT_ID":
            return True
        if kind != "MUL_MAT":
            return False
        vectors = graph.source(node, 1)
        if vectors.ne[1] < _LEAST_VECTORS or vectors.type != graph.F32:
            return False
        name = graph.weight_name(graph.source(node, 0))
        return name.startswith("blk.") or (self.output and name == "output.weight")

    def _take(self, node: graph.Node) -> None:
        weight, vectors = graph.source(node, 0), graph.source(node, 1)
        name = graph.weight_name(weight)
        numbers = graph.values(vectors)
        if graph.operation(node.op) == "MUL_MAT_ID":
            sums = self._sums(name, weight.ne[2], weight.ne[2], vectors.ne[0])
            _add_experts(sums, numbers[0], graph.values(graph.source(node, 2))[0, 0])
        else:
            sums = self._sums(name, weight.ne[2] * weight.ne[3], 1, vectors.ne[0])
            _add_dense(sums, numbers, (weight.ne[3], weight.ne[2]))
        if not np.isfinite(sums.squares).all():
            raise EngineError(
                f"{name}: the model multiplies it with numbers that are not finite",
                hint="its weights are damaged, or its numbers do not fit 16 bits",
            )

    def _sums(self, name: str, matrices: int, counts: int, columns: int) -> Sums:
        found = self.sums.get(name)
        if found is None:
            empty = np.zeros((matrices, columns), np.float64)
            found = self.sums[name] = Sums(empty, np.zeros(counts, np.int64))
        if found.squares.shape != (matrices, columns):
            raise EngineError(f"{name} is multiplied as matrices of two shapes")
        return found


def _add_dense(sums: Sums, numbers: NDArray[Any], matrices: tuple[int, int]) -> None:
    """``numbers`` ``[batches, matrices, vectors, columns]``: more of them than the weight has are
    shared out among its own."""
    outer, inner = matrices
    for third in range(numbers.shape[0]):
        for second in range(numbers.shape[1]):
            matrix = third % outer * inner + second % inner
            sums.squares[matrix] += _squares(numbers[third, second])
    sums.counts += numbers.shape[0] * numbers.shape[1] * numbers.shape[2] // len(sums.squares)


def _add_experts(sums: Sums, numbers: NDArray[Any], chosen: NDArray[Any]) -> None:
    """``numbers`` ``[tokens, 1 or used, columns]`` by ``chosen`` ``[tokens, used]``."""
    for expert in np.unique(chosen):
        token, place = np.nonzero(chosen == expert)
        sums.squares[expert] += _squares(numbers[token, place % numbers.shape[1]])
        sums.counts[expert] += len(token)


def _squares(vectors: NDArray[Any]) -> NDArray[np.float64]:
    """The sum of the squares of every column of ``[vectors, columns]``."""
    total = np.zeros(vectors.shape[-1], np.float64)
    for at in range(0, len(vectors), _ROWS):
        total += np.square(vectors[at : at + _ROWS], dtype=np.float64).sum(axis=0)
    return total
