"""Knows no model: products of stored weights and float activations with ggml's CPU kernels.

A kernel first turns the activations into the type its weights are multiplied with (Q8_0 or Q8_K
for quantized ones), so a product differs from that of the dequantized weights by about 1 % of its
spread. Structures: ggml.h and ggml-cpu.h.
"""

from __future__ import annotations

import ctypes
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Final

from localrun.errors import EngineError, UsageError
from localrun.ggml.library import function, openmp
from localrun.ggml.weights import F32, I32, Tensors, Weights, aligned, base, product_node

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_THREADS: Final = 512  # GGML_MAX_N_THREADS
_POINTER: Final = ctypes.c_void_p


class _PoolParameters(ctypes.Structure):
    """struct ggml_threadpool_params"""

    _fields_ = (
        ("cpumask", ctypes.c_bool * MAX_THREADS),
        ("n_threads", ctypes.c_int),
        ("prio", ctypes.c_int),
        ("poll", ctypes.c_uint32),
        ("strict_cpu", ctypes.c_bool),
        ("paused", ctypes.c_bool),
    )


class Threads:
    """``count`` threads that compute one graph at a time, the caller's among them.

    They live until ``close``: starting them for every product costs more than a small one takes.
    """

    def __init__(self, count: int) -> None:
        if not 1 <= count <= MAX_THREADS:
            raise UsageError(f"{count} threads: from 1 to {MAX_THREADS} can compute")
        self.count = count
        self._one_at_a_time = threading.Lock()
        self._pool: int | None = None
        self._backend: int | None = function("ggml-cpu", "ggml_backend_cpu_init", _POINTER)()
        if self._backend is None:
            raise EngineError("libggml has no memory for a CPU backend")
        set_threads = function(
            "ggml-cpu", "ggml_backend_cpu_set_n_threads", None, _POINTER, ctypes.c_int
        )
        set_threads(self._backend, count)
        if count > 1 and not openmp():
            self._start_pool()

    def _start_pool(self) -> None:
        parameters = base("ggml_threadpool_params_default", _PoolParameters, ctypes.c_int)(
            self.count
        )
        if parameters.n_threads != self.count:
            return  # another layout than this build's header: each product starts its threads
        new = function("ggml-cpu", "ggml_threadpool_new", _POINTER, ctypes.POINTER(_PoolParameters))
        self._pool = new(ctypes.byref(parameters))
        use = function("ggml-cpu", "ggml_backend_cpu_set_threadpool", None, *[_POINTER] * 2)
        use(self._backend, self._pool)

    def compute(self, graph: int) -> None:
        """Compute a graph; other Python threads run meanwhile.

        Raises:
            EngineError: the library could not.
        """
        run = base("ggml_backend_graph_compute", ctypes.c_int, *[_POINTER] * 2)
        with self._one_at_a_time:
            if self._backend is None:
                raise EngineError("these compute threads have been closed")
            status = run(self._backend, graph)
        if status != 0:
            raise EngineError(f"libggml could not compute a product: status {status}")

    def close(self) -> None:
        """Join the threads. Again does nothing."""
        with self._one_at_a_time:
            backend, self._backend = self._backend, None
            pool, self._pool = self._pool, None
            if backend is not None:
                base("ggml_backend_free", None, _POINTER)(backend)
            if pool is not None:
                function("ggml-cpu", "ggml_threadpool_free", None, _POINTER)(pool)


class Product:
    """A product of ``tokens`` rows of activations, made once and run as often as wanted.

    Write ``activations`` (float32), and ``chosen`` (int32) where weights are experts, then ``run``;
    ``outputs`` (float32) hold the result until the next run. One matrix: activations
    ``[tokens, columns]``, outputs ``[tokens, rows]``. Experts, ``choices`` a token: chosen
    ``[tokens, choices]``, outputs ``[tokens, choices, rows]``, and activations
    ``[tokens, 1, columns]``, or ``[tokens, choices, columns]`` with ``own_activations``.

    Close it before its weights.
    """

    def __init__(
        self,
        weights: Weights,
        threads: Threads,
        tokens: int,
        *,
        choices: int = 0,
        own_activations: bool = False,
    ) -> None:
        if tokens < 1 or (choices > 0) != (weights.experts > 0) or choices > weights.experts:
            raise UsageError(
                f"a product of {tokens} tokens and {choices} choices by {weights.experts} experts"
            )
        self._weights, self._threads = weights, threads
        self._tensors = Tensors(graph_nodes=4)
        middle = (choices if own_activations else 1,) if choices else ()
        inputs, self.activations = self._floats(tokens, *middle, weights.columns)
        self.chosen: NDArray[np.int32] | None = None
        ids = None
        if choices:
            ids, self.chosen = self._indices(tokens, choices)
        node = product_node(self._tensors, weights, inputs, ids)
        self.outputs = self._result(node, tokens, *((choices,) if choices else ()), weights.rows)
        new = base("ggml_new_graph_custom", _POINTER, _POINTER, ctypes.c_size_t, ctypes.c_bool)
        self._graph = new(self._tensors.context, 4, False)
        base("ggml_build_forward_expand", None, *[_POINTER] * 2)(self._graph, node)

    def _floats(self, *shape: int) -> tuple[int, NDArray[np.float32]]:
        tensor = self._tensors.new(F32, *reversed(shape))
        return tensor, self._result(tensor, *shape)

    def _result(self, tensor: int, *shape: int) -> NDArray[np.float32]:
        import numpy as np

        return self._memory(tensor, *shape).view(np.float32).reshape(shape)

    def _indices(self, *shape: int) -> tuple[int, NDArray[np.int32]]:
        import numpy as np

        tensor = self._tensors.new(I32, *reversed(shape))
        return tensor, self._memory(tensor, *shape).view(np.int32).reshape(shape)

    def _memory(self, tensor: int, *shape: int) -> NDArray[np.uint8]:
        """Four bytes an element, all zero."""
        nbytes = 4
        for dimension in shape:
            nbytes *= dimension
        memory = aligned(nbytes)
        memory.fill(0)
        self._tensors.lay(tensor, memory)
        return memory

    def run(self) -> None:
        """Compute ``outputs``.

        Raises:
            UsageError: ``chosen`` names an expert that is not there.
            EngineError: closed, or the library could not.
        """
        if self._tensors.context is None or self._weights.closed:
            raise EngineError("this product, or its weights, have been closed")
        chosen = self.chosen
        # As a number without sign, what is below 0 is a large one.
        if chosen is not None and chosen.view("u4").max() >= self._weights.experts:
            raise UsageError(
                f"experts {chosen.min()} to {chosen.max()} of {self._weights.experts} were chosen"
            )
        self._threads.compute(self._graph)

    def close(self) -> None:
        """``outputs`` stay readable. Again does nothing."""
        self._tensors.close()


def mul_mat(
    weights: Weights, threads: Threads, activations: NDArray[np.float32]
) -> NDArray[np.float32]:
    """``[tokens, columns]`` by a matrix: ``[tokens, rows]``.

    Raises:
        UsageError: the shapes do not fit.
    """
    tokens, columns = activations.shape
    if columns != weights.columns:
        raise UsageError(f"activations of {columns} columns by weights of {weights.columns}")
    with closing(Product(weights, threads, tokens)) as product:
        product.activations[:] = activations
        product.run()
        return product.outputs


def mul_mat_id(
    weights: Weights,
    threads: Threads,
    activations: NDArray[np.float32],
    chosen: NDArray[np.integer],
) -> NDArray[np.float32]:
    """Each token by its chosen experts, ``[tokens, choices]``: ``[tokens, choices, rows]``.

    Activations are ``[tokens, columns]``, or ``[tokens, choices, columns]`` where every expert has
    its own.

    Raises:
        UsageError: the shapes do not fit, or an expert is not there.
    """
    tokens, choices = chosen.shape
    own = activations.ndim == 3
    expected = (tokens, choices, weights.columns) if own else (tokens, weights.columns)
    if activations.shape != expected:
        raise UsageError(f"activations of shape {activations.shape}, the product needs {expected}")
    product = Product(weights, threads, tokens, choices=choices, own_activations=own)
    with closing(product):
        assert product.chosen is not None
        product.chosen[:] = chosen
        product.activations[:] = activations if own else activations[:, None, :]
        product.run()
        return product.outputs
