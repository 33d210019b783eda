"""Knows no scheduling: what the runners here read out of the library's memory."""

from __future__ import annotations

import ctypes
from typing import Any, Final

import numpy as np
from llama_cpp import llama_cpp as llama
from numpy.typing import NDArray

from localrun.engine.runner import Pooling
from localrun.errors import EngineError

# enum llama_pooling_type (llama.h); 0 is none and 4 a score, which is no embedding
_POOLING: Final[dict[str, Pooling]] = {"1": "mean", "2": "cls", "3": "last"}


def floats(address: int, rows: int, width: int) -> NDArray[np.float32]:
    """The library's own ``[rows, width]`` there, not copied."""
    array: Any = (ctypes.c_float * (rows * width)).from_address(address)
    shaped: NDArray[np.float32] = np.frombuffer(array, np.float32).reshape(rows, width)
    shaped.flags.writeable = False
    return shaped


def present(pointer: int | None) -> int:
    """Raises EngineError where there is none."""
    if pointer is None:
        raise EngineError("this model has no tokens to generate with")
    return pointer


def metadata(model: int, key: str) -> str:
    """A value of the model's metadata as text, empty where there is none."""
    buffer = ctypes.create_string_buffer(128)
    llama.llama_model_meta_val_str(model, key.encode(), buffer, len(buffer))
    return buffer.value.decode("utf-8", "replace")


def pooling(model: int, architecture: str) -> Pooling | None:
    """How the model was trained to make one embedding of a text's."""
    return _POOLING.get(metadata(model, f"{architecture}.pooling_type"))
