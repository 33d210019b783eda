"""Knows no context: llama.cpp's batch structure over arrays that are allocated once."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence

import numpy as np
from llama_cpp import llama_cpp as llama

from localrun.engine.runner import BatchItem, SequenceId

_INTEGERS = ctypes.POINTER(ctypes.c_int32)


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
        self.struct = llama.llama_batch(
            n_tokens=0,
            token=self._tokens.ctypes.data_as(_INTEGERS),
            embd=None,
            pos=self._positions.ctypes.data_as(_INTEGERS),
            n_seq_id=self._one_each.ctypes.data_as(_INTEGERS),
            seq_id=self._sequence_pointers.ctypes.data_as(ctypes.POINTER(_INTEGERS)),
            logits=self._wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def fill(self, items: Sequence[BatchItem], lengths: Mapping[SequenceId, int]) -> None:
        """Put in ``items``, which the caller has made sure there is room for, in their order.

        ``lengths`` are those of the sequences, to which the tokens are appended.

        Raises:
            OverflowError: a token id is no 32-bit integer.
        """
        self.struct.n_tokens = self.rows = 0
        if all(len(item.tokens) == 1 for item in items):
            self._fill_with_one_each(items, lengths)
            return
        starts = dict(lengths)
        at = 0
        for item in items:
            count, start = len(item.tokens), starts[item.sequence]
            end = at + count
            self._tokens[at:end] = item.tokens
            self._positions[at:end] = np.arange(start, start + count)
            self._sequences[at:end] = item.sequence
            self._wanted[at:end] = item.logits == "all"
            if item.logits != "none":
                self._wanted[end - 1] = 1
                self.rows += count if item.logits == "all" else 1
            starts[item.sequence] = start + count
            at = end
        self.struct.n_tokens = at

    def _fill_with_one_each(
        self, items: Sequence[BatchItem], lengths: Mapping[SequenceId, int]
    ) -> None:
        rows = 0
        for at, item in enumerate(items):
            wanted = item.logits != "none"
            self._tokens[at] = item.tokens[0]
            self._positions[at] = lengths[item.sequence]
            self._sequences[at] = item.sequence
            self._wanted[at] = wanted
            rows += wanted
        self.rows = rows
        self.struct.n_tokens = len(items)


class SharedToken:
    """A batch of one token that belongs to two sequences."""

    def __init__(self, position: int, first: SequenceId, second: SequenceId) -> None:
        self._token, self._position, self._count = (ctypes.c_int32(n) for n in (0, position, 2))
        self._sequences = (ctypes.c_int32 * 2)(first, second)
        self._pointers = (_INTEGERS * 1)(ctypes.cast(self._sequences, _INTEGERS))
        self._wanted = ctypes.c_int8(0)
        self.struct = llama.llama_batch(
            n_tokens=1,
            token=ctypes.pointer(self._token),
            embd=None,
            pos=ctypes.pointer(self._position),
            n_seq_id=ctypes.pointer(self._count),
            seq_id=self._pointers,
            logits=ctypes.pointer(self._wanted),
        )
