"""Knows no model: a node of a graph that ggml computes, as its callback is given it.

``struct ggml_tensor`` is that of ggml.h in
https://github.com/ggml-org/llama.cpp/tree/master/ggml/include, for the version that is pinned.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from localrun.backends.llamacpp import library
from localrun.errors import EngineError

F32: Final = 0
I32: Final = 26
_DIMENSIONS: Final = 4
_NAME_BYTES: Final = 64


class Node(ctypes.Structure):
    """struct ggml_tensor. Dimensions are innermost first, strides are in bytes."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * _DIMENSIONS),
        ("nb", ctypes.c_size_t * _DIMENSIONS),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * _NAME_BYTES),
        ("extra", ctypes.c_void_p),
        ("padding", ctypes.c_char * 8),
    )


def node(address: int) -> Node:
    """The node there; it lives no longer than the callback that was given it."""
    return Node.from_address(address)


def source(of: Node, number: int) -> Node:
    """What it is computed from."""
    address = of.src[number]
    if address is None:
        raise EngineError(f"a node of the graph has no source {number}")
    return node(address)


def weight_name(of: Node) -> str:
    """Its name without what the scheduler wraps around a copy: ``CUDA0#blk.0.attn_k.weight#0``."""
    name = bytes(of.name).decode("utf-8", "replace")
    parts = name.split("#")
    return parts[1] if len(parts) > 1 else name


@cache
def operation(number: int) -> str:
    """The name of an ``enum ggml_op`` that a node has."""
    find = library.function("ggml-base", "ggml_op_name", ctypes.c_char_p, ctypes.c_int)
    return str(find(number).decode())


def require_layout() -> None:
    """Hold that the installed library lays a node out as this module does.

    Raises:
        EngineError: it does not; reading one would read something else.
    """
    overhead = library.function("ggml-base", "ggml_tensor_overhead", ctypes.c_size_t)()
    # An object's header of 32 bytes comes before each (struct ggml_object).
    if overhead != ctypes.sizeof(Node) + 32:
        raise EngineError(
            "the installed llama.cpp lays tensors out in another way: activations cannot be read",
            hint="`localrun doctor` prints the command that installs the version known here",
        )


def values(of: Node) -> NDArray[Any]:
    """Its numbers, outermost dimension first: a view of the library's memory, or a copy of a
    device's. Of type F32 or I32, strides and all."""
    kind = np.dtype(np.float32 if of.type == F32 else np.int32)
    size = _bytes(of)
    if _host(of):
        held: Any = (ctypes.c_uint8 * size).from_address(of.data)
        memory = np.frombuffer(held, np.uint8)
    else:
        memory = np.empty(size, np.uint8)
        get = library.function(
            "ggml-base", "ggml_backend_tensor_get", None,
            *[ctypes.c_void_p] * 2, *[ctypes.c_size_t] * 2,
        )  # fmt: skip
        get(ctypes.addressof(of), memory.ctypes.data, 0, size)
    shape, strides = tuple(of.ne)[::-1], tuple(of.nb)[::-1]
    return np.ndarray(shape, kind, memory.data, 0, strides)


def _bytes(of: Node) -> int:
    count = library.function("ggml-base", "ggml_nbytes", ctypes.c_size_t, ctypes.c_void_p)
    return int(count(ctypes.addressof(of)))


def _host(of: Node) -> bool:
    ask = library.function(
        "ggml-base", "ggml_backend_buffer_is_host", ctypes.c_bool, ctypes.c_void_p
    )
    return of.buffer is not None and bool(ask(of.buffer))
