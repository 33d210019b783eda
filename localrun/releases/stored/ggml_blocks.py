"""Knows no file format: a tensor in the blocks of a ggml type."""

from __future__ import annotations

from typing import Final

import numpy as np

from localrun.ggml.quantize import dequantize, finite
from localrun.releases.stored.numbers import E8M0_NAN
from localrun.releases.stored.plain import Unscaled
from localrun.releases.weights import Bytes, Floats

# Bytes of a block, how many of them are scales and come first, numbers of each scale, which bits of
# a scale make it NaN, and from which on F32 may not hold a number: ``block_mxfp4`` and
# ``block_nvfp4`` of ggml-common.h.
_SCALES: Final = {
    "MXFP4": (17, 1, 32, 0xFF, E8M0_NAN, 253, "E8M0"),
    "NVFP4": (36, 4, 16, 0x7F, 0x7F, 0x7F, "F8_E4M3"),
}


class Blocks(Unscaled):
    """Quantized rows as llama.cpp stores them."""

    def rows(self, start: int, stop: int) -> Floats:
        """As ``Weight.rows``, through libggml.

        Raises:
            UsageError: a type that holds no weights. BackendMissingError: no libggml.
        """
        return self._decoded(self._raw(start, stop), start)

    def blocks(self, type: str, start: int, stop: int) -> Bytes | None:
        """Of its own type alone."""
        if type != self.stored:
            return None
        raw = self._raw(start, stop)
        # To decode them all would take longer than to read them.
        if self._doubtful(raw):
            self._decoded(raw, start)
        return raw.reshape(stop - start, self.part.info.bytes // max(self.part.rows, 1))

    def _doubtful(self, raw: Bytes) -> bool:
        """Whether a scale may stand for no number, or make one too large."""
        if self.stored not in _SCALES:
            return not finite(self.stored, raw)
        block, count, _, mask, _, doubtful, _ = _SCALES[self.stored]
        scales = raw.reshape(-1, block)[:, :count] & np.uint8(mask)
        return int(scales.max(initial=0)) >= doubtful

    def _decoded(self, raw: Bytes, start: int) -> Floats:
        columns = self.part.columns
        if self.stored in _SCALES:
            self._hold_scales(raw, start)
        numbers = dequantize(self.stored, raw, columns)
        held = np.isfinite(numbers)
        if not held.all():
            at = int(np.flatnonzero(~held)[0])
            number = numbers.reshape(-1)[at]
            raise self.part.damaged(start * columns + at, columns, f"is {number}")
        return numbers

    def _hold_scales(self, raw: Bytes, start: int) -> None:
        """ggml takes the codes of NaN for a power of two, of zero or of 240."""
        block, count, group, mask, nan, _, what = _SCALES[self.stored]
        scales = raw.reshape(-1, block)[:, :count]
        odd = np.flatnonzero(scales & np.uint8(mask) == nan)
        if odd.size:
            at, columns = int(odd[0]), self.part.columns
            code = scales.reshape(-1)[at]
            problem = f"has a scale that is nan ({what} code {code:#04x})"
            raise self.part.damaged(start * columns + group * at, columns, problem)
