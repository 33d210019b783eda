"""Knows no file format: a tensor in the blocks of a ggml type."""

from __future__ import annotations

from typing import Final

import numpy as np

from localrun.ggml.quantize import dequantize
from localrun.quantize.stored.numbers import E8M0_NAN
from localrun.quantize.stored.plain import Unscaled
from localrun.quantize.weights import Bytes, Floats

_MXFP4_BYTES: Final = 17


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
        self._decoded(raw, start)
        return raw.reshape(stop - start, -1)

    def _decoded(self, raw: Bytes, start: int) -> Floats:
        columns = self.part.columns
        if self.stored == "MXFP4":
            # ggml takes this code for a power of two; it is NaN.
            odd = np.flatnonzero(raw[::_MXFP4_BYTES] == E8M0_NAN)
            if odd.size:
                index = start * columns + 32 * int(odd[0])
                raise self.part.damaged(index, columns, "has a scale that is nan (E8M0 code 0xff)")
        numbers = dequantize(self.stored, raw, columns)
        finite = np.isfinite(numbers)
        if not finite.all():
            at = int(np.flatnonzero(~finite)[0])
            number = numbers.reshape(-1)[at]
            raise self.part.damaged(start * columns + at, columns, f"is {number}")
        return numbers
