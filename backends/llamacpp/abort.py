"""Knows no model: a flag that ends a running computation from another thread.

llama.cpp asks its abort callback after every node of the graph, a thousand times a token. A Python
function there would take the interpreter's lock each time, and wait for it whenever another thread
holds it. The C library's ``strlen`` needs no interpreter: over a two-byte buffer it answers 0 while
the first byte is NUL and 1 once it is not, which is the ``bool`` that the caller reads.
"""

from __future__ import annotations

import ctypes
import sys
import threading

from llama_cpp import llama_cpp as llama


class AbortFlag:
    """``ask`` has an effect only between ``arm`` and ``disarm``."""

    def __init__(self) -> None:
        self._bytes = (ctypes.c_uint8 * 2)()
        self._lock = threading.Lock()
        self._armed = False
        c_library = ctypes.CDLL("msvcrt" if sys.platform == "win32" else None)
        self._callback = ctypes.cast(c_library.strlen, llama.ggml_abort_callback)

    def attach(self, context: int) -> None:
        """Let ``context`` ask this flag, which must outlive it."""
        llama.llama_set_abort_callback(
            context, self._callback, ctypes.c_void_p(ctypes.addressof(self._bytes))
        )

    def arm(self) -> None:
        with self._lock:
            self._armed = True

    def disarm(self) -> None:
        with self._lock:
            self._armed = False
            self._bytes[0] = 0

    def ask(self) -> None:
        with self._lock:
            if self._armed:
                self._bytes[0] = 1
