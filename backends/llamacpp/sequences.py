"""Knows no logits: the sequences of one llama.cpp context, and what its memory holds of each.

One stream: all sequences share the cells, and a copy is a second name for them. Several streams:
each sequence has cells of its own, and a copy moves them.
"""

from __future__ import annotations

import ctypes

from llama_cpp import llama_cpp as llama

from localrun.backends.llamacpp.batch import SharedToken
from localrun.backends.llamacpp.library import forget_problem, problem
from localrun.engine.runner import SequenceId
from localrun.errors import EngineError

# llama_decode's answer where the memory has no place for a batch (llama.h)
NO_ROOM = 1

_new_bytes = ctypes.pythonapi.PyBytes_FromStringAndSize
_new_bytes.restype = ctypes.py_object
_new_bytes.argtypes = (ctypes.c_char_p, ctypes.c_ssize_t)


class Sequences:
    """Up to ``limit`` of them, each with its length in tokens.

    A recurrent state cannot be cut: its sequence is emptied instead. One that was emptied by
    ``restore_lengths`` takes no further token before ``truncate`` was asked what is left of it.
    """

    def __init__(self, model: int, context: int, *, streams: bool) -> None:
        memory = llama.llama_get_memory(context)
        if memory is None:
            raise EngineError("this model has no memory to generate with")
        self._context = context
        self._memory = memory
        self._streams = streams
        self._window: int = llama.llama_model_n_swa(model)
        self.limit: int = llama.llama_n_seq_max(context)
        self._lengths: dict[SequenceId, int] = {}
        self._emptied: set[SequenceId] = set()

    def length(self, sequence: SequenceId) -> int:
        try:
            return self._lengths[sequence]
        except KeyError:
            raise EngineError(f"sequence {sequence} does not exist") from None

    def lengths(self, sequences: list[SequenceId]) -> dict[SequenceId, int]:
        """Those of sequences that are about to take tokens."""
        for sequence in self._emptied.intersection(sequences):
            raise EngineError(f"sequence {sequence} lost its tokens in a failed step")
        return {sequence: self.length(sequence) for sequence in sequences}

    def lengthen(self, lengths: dict[SequenceId, int]) -> None:
        """After a step that led to ``lengths``."""
        self._lengths.update(lengths)

    def restore_lengths(self, lengths: dict[SequenceId, int]) -> None:
        """After a step that failed: cut each back to what it held before."""
        for sequence, length in lengths.items():
            self._lengths[sequence] = self._cut(sequence, length)
            if self._lengths[sequence] < length:
                self._emptied.add(sequence)

    def new(self) -> SequenceId:
        """The lowest that is free: a step over neighbours is one pass over the weights."""
        for at in range(self.limit):
            sequence = SequenceId(at)
            if sequence not in self._lengths:
                self._lengths[sequence] = 0
                return sequence
        raise EngineError(f"all {self.limit} sequences are in use")

    def fork(self, sequence: SequenceId) -> SequenceId:
        length = self.length(sequence)
        copy = self.new()
        if length:
            llama.llama_memory_seq_cp(self._memory, sequence, copy, -1, -1)
            if self._streams:
                self._move_cells(sequence, copy, length)
        self._lengths[copy] = length
        return copy

    def free(self, sequence: SequenceId) -> None:
        self.length(sequence)
        llama.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        del self._lengths[sequence]
        self._emptied.discard(sequence)

    def truncate(self, sequence: SequenceId, length: int) -> int:
        if length < self.length(sequence):
            self._lengths[sequence] = self._cut(sequence, max(0, length))
        self._emptied.discard(sequence)
        return self._lengths[sequence]

    def save(self, sequence: SequenceId) -> bytes:
        self.length(sequence)
        size = llama.llama_state_seq_get_size(self._context, sequence)
        # Written in place, as the C API has it: a large state is copied once.
        state: bytes = _new_bytes(None, size)
        target = ctypes.cast(ctypes.c_char_p(state), ctypes.POINTER(ctypes.c_uint8))
        written = llama.llama_state_seq_get_data(self._context, target, size, sequence)
        if written == 0:
            raise EngineError(f"the state of sequence {sequence} could not be copied")
        return state[:written]

    def restore(self, state: bytes) -> SequenceId:
        """Raises EngineError when ``state`` is not of this model, or no room is left for it."""
        sequence = self.new()
        source = ctypes.cast(ctypes.c_char_p(state), ctypes.POINTER(ctypes.c_uint8))
        forget_problem()
        read = llama.llama_state_seq_set_data(self._context, source, len(state), sequence)
        if read == 0:
            self.free(sequence)
            raise EngineError(f"a saved sequence could not be restored: {problem()}")
        self._lengths[sequence] = llama.llama_memory_seq_pos_max(self._memory, sequence) + 1
        return sequence

    def _move_cells(self, sequence: SequenceId, copy: SequenceId, length: int) -> None:
        """Do what ``llama_memory_seq_cp`` has only noted down.

        The library moves cells when the next batch comes, whatever became of both sequences by
        then; until that a state saved of the copy is what lay there before. So a batch comes at
        once: one token of both, which streams refuse after the cells have moved and before
        anything is computed (``split_equal`` in src/llama-batch.cpp).
        """
        forget_problem()
        code = llama.llama_decode(self._context, SharedToken(length, sequence, copy).struct)
        if code != NO_ROOM:
            self.restore_lengths({sequence: length})
            self.free(copy)
            raise EngineError(f"sequence {sequence} could not be copied: {problem()}")

    def _cut(self, sequence: SequenceId, length: int) -> int:
        """Drop what lies from ``length`` on; returns what is left, which may be nothing."""
        if llama.llama_memory_seq_rm(self._memory, sequence, length or -1, -1) and (
            length == 0 or self._window_reaches(sequence, length)
        ):
            return length
        llama.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        return 0

    def _window_reaches(self, sequence: SequenceId, length: int) -> bool:
        """Whether a sliding window before ``length`` is still whole."""
        if self._window == 0:
            return True
        oldest: int = llama.llama_memory_seq_pos_min(self._memory, sequence)
        return 0 <= oldest <= max(0, length - self._window)
