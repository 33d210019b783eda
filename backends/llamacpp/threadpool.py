"""Knows no model: compute threads that live as long as a context, not as long as one step.

Without one, ggml starts and joins its threads in every ``llama_decode``, which on small models
costs more than the interpreter around it (bench/decode.py shows both). Structures: ggml.h and
ggml-cpu.h of llama.cpp.
"""

from __future__ import annotations

import ctypes
from typing import Final

from localrun.backends.llamacpp import library

_MAX_THREADS: Final = 512  # GGML_MAX_N_THREADS


class _Parameters(ctypes.Structure):
    """struct ggml_threadpool_params"""

    _fields_ = (
        ("cpumask", ctypes.c_bool * _MAX_THREADS),
        ("n_threads", ctypes.c_int),
        ("prio", ctypes.c_int),
        ("poll", ctypes.c_uint32),
        ("strict_cpu", ctypes.c_bool),
        ("paused", ctypes.c_bool),
    )


class ThreadPool:
    """``threads`` at most; fewer are used as ``llama_set_n_threads`` says.

    Free the context before ``close``.
    """

    def __init__(self, context: int, threads: int) -> None:
        self._pool: int | None = None
        if threads < 2 or library.openmp():
            return  # nothing to keep, or OpenMP keeps its own
        parameters = library.function(
            "ggml-base", "ggml_threadpool_params_default", _Parameters, ctypes.c_int
        )(threads)
        if parameters.n_threads != threads:
            return  # another layout than this build's header: the steps start their threads
        new = library.function(
            "ggml-cpu", "ggml_threadpool_new", ctypes.c_void_p, ctypes.POINTER(_Parameters)
        )
        self._pool = new(ctypes.byref(parameters))
        attach = library.function("llama", "llama_attach_threadpool", None, *[ctypes.c_void_p] * 3)
        attach(context, self._pool, self._pool)

    def close(self) -> None:
        """Join the threads. Again does nothing."""
        pool, self._pool = self._pool, None
        if pool is not None:
            library.function("ggml-cpu", "ggml_threadpool_free", None, ctypes.c_void_p)(pool)
