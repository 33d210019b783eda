"""Knows no file: how many weights a thread encodes in a second.

``measured`` finds the rate of a type on this machine in a few hundredths of a second. The table is
what it found with llama-cpp-python 0.3.36 on one thread of a Xeon with AVX-512: types differ two
hundredfold among each other, machines far less.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cache
from typing import Final

import numpy as np

from localrun.errors import BackendMissingError

# Million weights a second, without and with an importance matrix; 0 where there is no without.
_TABLE: Final[Mapping[str, tuple[float, float]]] = {
    "F32": (3200, 3200), "F16": (540, 540), "BF16": (1800, 1800),
    "Q8_0": (290, 290), "Q4_0": (810, 39), "Q4_1": (860, 9.1), "Q5_0": (500, 39),
    "Q5_1": (550, 9.1), "Q2_K": (18, 7.9), "Q3_K": (84, 28), "Q4_K": (15, 8.8),
    "Q5_K": (18, 8.6), "Q6_K": (35, 34), "IQ1_S": (0, 6.5), "IQ1_M": (6.8, 6.4),
    "IQ2_XXS": (0, 2.5), "IQ2_XS": (0, 1.3), "IQ2_S": (4.0, 3.0), "IQ3_XXS": (2.1, 2.1),
    "IQ3_S": (2.9, 3.0), "IQ4_NL": (5.7, 5.7), "IQ4_XS": (4.8, 5.5), "TQ1_0": (330, 330),
    "TQ2_0": (310, 310), "MXFP4": (210, 210), "NVFP4": (39, 39), "Q1_0": (185, 185),
    "Q2_0": (290, 290),
}  # fmt: skip
# What numpy encodes or moves: near the slowest of the plain types.
_OTHERS: Final = (150.0, 150.0)
_MEGA: Final = 1e6
_COLUMNS: Final = 4096
_ROWS_MAX: Final = 64
_SHORT_S: Final = 0.01


def rate(type: str, weighted: bool = False) -> float:
    """Weights a second on one thread, by the table."""
    plain, with_matrix = _TABLE.get(type, _OTHERS)
    return _MEGA * ((with_matrix if weighted else plain) or with_matrix)


def measured(type: str, weighted: bool = False) -> float:
    """Weights a second on one thread of this machine that has a core to itself; by the table where
    the library is absent or does not make the type."""
    return _measured(type, weighted)


@cache
def _measured(type: str, weighted: bool) -> float:
    from localrun.ggml.quantize import quantize
    from localrun.ggml.types import needs_imatrix

    if type not in _TABLE:
        return rate(type, weighted)
    random = np.random.default_rng(0)
    numbers = random.standard_normal((_ROWS_MAX, _COLUMNS), np.float32) * np.float32(0.02)
    importance = random.random(_COLUMNS, np.float32) + np.float32(0.1)
    try:
        matrix = importance if weighted or needs_imatrix(type) else None
        quantize(type, numbers[:1], matrix)  # tables are made once
        rows = 1
        while True:
            # Of this thread alone: other programs' work is not the type's.
            start = time.thread_time()
            quantize(type, numbers[:rows], matrix)
            took = time.thread_time() - start
            if took > _SHORT_S or rows == _ROWS_MAX:
                return rows * _COLUMNS / max(took, 1e-9)
            rows *= 4
    except BackendMissingError:
        return rate(type, weighted)
