"""Knows no file and no recipe: rows of numbers to blocks of a type, and back.

The functions run without the interpreter's lock and may run on several threads at once. Bytes are
those of llama.cpp's own quantizer for the same build, rows and importance matrix.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any, Final

from localrun.errors import EngineError, SourceError, UsageError
from localrun.ggml.library import function
from localrun.ggml.types import needs_imatrix, row_size, tensor_type, type_number

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_TO_FLOAT: Final = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


class _Traits(ctypes.Structure):
    """struct ggml_type_traits (ggml.h), as far as it is read here."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("block_elements", ctypes.c_int64),
        ("interleave", ctypes.c_int64),
        ("block_bytes", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.c_void_p),
    )


def quantize(
    type: str, rows: NDArray[np.float32], imatrix: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """Rows ``[n, k]`` as blocks ``[n, bytes of a row]``.

    ``imatrix`` ``[k]`` holds the importance of each column; types without a use for it ignore it.

    Raises:
        UsageError: no such type, a row is not a whole number of its blocks, or it needs an imatrix
            and none is given or it is not of k finite numbers, none below zero.
        SourceError: a row holds an infinity or a NaN, which the library would end the process on.
    """
    import numpy as np

    n, k = rows.shape
    size = row_size(type, k)
    source = np.ascontiguousarray(rows, np.float32)
    _require_finite(source)
    weights = None if imatrix is None else _importance(imatrix, k)
    if weights is None and needs_imatrix(type):
        raise UsageError(
            f"{type} cannot be quantized to without an importance matrix",
            hint="give one with --imatrix, or choose a type of at least 3 bits",
        )
    blocks: NDArray[np.uint8] = np.empty((n, size), np.uint8)
    if n == 0:
        return blocks
    chunk = function(
        "ggml-base", "ggml_quantize_chunk", ctypes.c_size_t, ctypes.c_int,
        ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p,
    )  # fmt: skip
    importance = None if weights is None else weights.ctypes.data
    chunk(type_number(type), source.ctypes.data, blocks.ctypes.data, 0, n, k, importance)
    return blocks


def first_bad_row(type: str, blocks: NDArray[np.uint8]) -> int | None:
    """The first of the rows ``[n, bytes of a row]`` with a block whose scale stands for an
    infinity or a NaN; None where all are finite.

    Raises:
        UsageError: no such type.
    """
    import numpy as np

    source = np.ascontiguousarray(blocks, np.uint8)
    if finite(type, source):
        return None
    return next((at for at, row in enumerate(source) if not finite(type, row)), None)


def finite(type: str, blocks: NDArray[np.uint8]) -> bool:
    """Whether every scale of contiguous ``blocks`` stands for a number. The library names on
    standard error the first that does not.

    Raises:
        UsageError: no such type.
    """
    check = function(
        "ggml-base", "ggml_validate_row_data", ctypes.c_bool, ctypes.c_int, ctypes.c_void_p,
        ctypes.c_size_t,
    )  # fmt: skip
    return bool(check(type_number(type), blocks.ctypes.data, blocks.nbytes))


def dequantize(type: str, blocks: NDArray[np.uint8], columns: int) -> NDArray[np.float32]:
    """Blocks of whole rows, of any shape, as ``[n, columns]``.

    Raises:
        UsageError: no such type, or the bytes are not whole rows of it.
        EngineError: the installed library cannot read the type.
    """
    import numpy as np

    size = row_size(type, columns)
    source = np.ascontiguousarray(blocks, np.uint8).reshape(-1)
    if source.size % size:
        raise UsageError(
            f"{source.size} bytes are not whole rows of {columns} {type} elements: {size} each"
        )
    n = source.size // size
    if type == "F32":
        return source.view(np.float32).reshape(n, columns).copy()
    numbers: NDArray[np.float32] = np.empty((n, columns), np.float32)
    if n:
        _to_float(type)(source.ctypes.data, numbers.ctypes.data, n * columns)
    return numbers


def _require_finite(rows: NDArray[np.float32]) -> None:
    import numpy as np

    with np.errstate(over="ignore", invalid="ignore"):
        # No sum with a number that is not finite is finite. The quick one may overflow without.
        if np.isfinite(rows.sum()) or np.isfinite(rows.sum(dtype=np.float64)):
            return
    row = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
    raise SourceError(f"row {row} of the weights holds a number that is not finite")


def _to_float(type: str) -> Any:
    traits = function(
        "ggml-base", "ggml_get_type_traits", ctypes.POINTER(_Traits), ctypes.c_int
    )(type_number(type)).contents  # fmt: skip
    kind = tensor_type(type)
    expected = (type.upper(), kind.block_elements, kind.block_bytes)
    found = (traits.type_name.decode().upper(), traits.block_elements, traits.block_bytes)
    if found != expected or not traits.to_float:
        raise EngineError(f"libggml cannot turn {type} into floats: its traits are {found}")
    return _TO_FLOAT(traits.to_float)


def _importance(imatrix: NDArray[np.float32], columns: int) -> NDArray[np.float32]:
    import numpy as np

    weights = np.ascontiguousarray(imatrix, np.float32)
    if weights.shape != (columns,):
        raise UsageError(f"imatrix has shape {weights.shape}, the rows have {columns} columns")
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise UsageError("imatrix holds a number that is negative or not finite")
    return weights
