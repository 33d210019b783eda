"""Knows no data: the names of tensor types beside the library's numbers for them."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Final

from localrun.errors import EngineError, UsageError
from localrun.formats.header import TensorType
from localrun.formats.types import GGUF_TYPES
from localrun.ggml.library import function

# Integers index, and the Q8 forms with sums hold activations: neither is ever a weight's type.
_NOT_WEIGHTS: Final = frozenset({"I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K"})
WEIGHT_TYPES: Final[dict[str, int]] = {
    kind.name: number for number, kind in GGUF_TYPES.items() if kind.name not in _NOT_WEIGHTS
}
"""What weights can be stored, quantized to and multiplied as, with ``enum ggml_type``."""


def type_number(name: str) -> int:
    """``enum ggml_type`` of a weight type.

    Raises:
        UsageError: there is no such type.
    """
    number = WEIGHT_TYPES.get(name)
    if number is None:
        raise UsageError(
            f"{name!r} is not a type of weights", hint=f"one of {', '.join(WEIGHT_TYPES)}"
        )
    return number


def tensor_type(name: str) -> TensorType:
    """Elements and bytes of a block of a weight type.

    Raises:
        UsageError: there is no such type.
    """
    return GGUF_TYPES[type_number(name)]


@cache
def row_size(name: str, elements: int) -> int:
    """Bytes of a row, as the library lays it out.

    Raises:
        UsageError: there is no such type, or a row is not a whole number of its blocks.
        EngineError: the installed library lays the type out in another way than the files do.
    """
    kind = tensor_type(name)
    if elements <= 0 or elements % kind.block_elements:
        raise UsageError(
            f"a row of {elements} elements is not a whole number of {name} blocks"
            f" of {kind.block_elements}"
        )
    ours = elements // kind.block_elements * kind.block_bytes
    size = function("ggml-base", "ggml_row_size", ctypes.c_size_t, ctypes.c_int, ctypes.c_int64)
    theirs = int(size(type_number(name), elements))
    if theirs != ours:
        raise EngineError(
            f"libggml stores {elements} elements of {name} in {theirs} bytes, GGUF files in {ours}"
        )
    return ours


def needs_imatrix(name: str) -> bool:
    """Whether the type cannot be quantized to without an importance matrix."""
    needs = function("ggml-base", "ggml_quantize_requires_imatrix", ctypes.c_bool, ctypes.c_int)
    return bool(needs(type_number(name)))
