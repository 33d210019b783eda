"""Knows no context: llama.cpp's batch structure over arrays that are allocated once."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
from llama_cpp import llama_cpp as llama

from localrun.engine.runner import LogitsWanted


class Batch:
    """Up to ``capacity`` tokens, each of one sequence. ``struct`` is for ``llama_decode``."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.rows = 0
        self._tokens = np.zeros(capacity, np.int32)
        self._positions = np.zeros(capacity, np.int32)
        self._sequences = np.zeros(capacity, np.int32)
        self._wanted = np.zeros(capacity, np.int8)
        self._one_each = np.ones(capacity, np.int32)
        # Token i belongs to the one sequence named at sequences[i]; the library wants its address.
        self._sequence_pointers = self._sequences.ctypes.data + 4 * np.arange(
            capacity, dtype=np.uintp
        )
        integers = ctypes.POINTER(ctypes.c_int32)
        self.struct = llama.llama_batch(
            n_tokens=0,
            token=self._tokens.ctypes.data_as(integers),
            embd=None,
            pos=self._positions.ctypes.data_as(integers),
            n_seq_id=self._one_each.ctypes.data_as(integers),
            seq_id=self._sequence_pointers.ctypes.data_as(ctypes.POINTER(integers)),
            logits=self._wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def clear(self) -> None:
        self.struct.n_tokens = 0
        self.rows = 0

    def add(self, sequence: int, start: int, tokens: Sequence[int], wanted: LogitsWanted) -> None:
        """Append ``tokens`` of ``sequence`` at positions from ``start``. The caller has made room.

        Raises:
            OverflowError: a token id is no 32-bit integer.
        """
        at = self.struct.n_tokens
        end = at + len(tokens)
        if end - at == 1:
            self._tokens[at] = tokens[0]
            self._positions[at] = start
        else:
            self._tokens[at:end] = tokens
            self._positions[at:end] = np.arange(start, start + len(tokens))
        self._sequences[at:end] = sequence
        self._wanted[at:end] = wanted == "all"
        if wanted != "none":
            self._wanted[end - 1] = 1
            self.rows += end - at if wanted == "all" else 1
        self.struct.n_tokens = end
