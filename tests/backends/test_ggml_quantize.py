"""Blocks of every type: their sizes, what quantizing loses, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

pytest.importorskip("llama_cpp")

from localrun.errors import BackendMissingError, EngineError, SourceError, UsageError
from localrun.ggml import library, types
from localrun.ggml.quantize import dequantize, quantize

COLUMNS = 1024
# Relative error on N(0, 0.02), measured on whole tensors with llama.cpp's own quantizer.
LOST = {
    "Q8_0": 0.00534, "Q6_K": 0.01774, "Q5_K": 0.03609, "Q4_K": 0.07131, "IQ4_XS": 0.0766,
    "IQ4_NL": 0.0760, "Q4_0": 0.08578, "MXFP4": 0.11429, "NVFP4": 0.10315, "IQ3_S": 0.166,
    "Q3_K": 0.151, "IQ3_XXS": 0.182, "Q2_K": 0.297, "IQ2_XXS": 0.343,
}  # fmt: skip
# Their tables take seconds to build before the first row.
SLOW = {"IQ2_S": 0.249, "IQ1_M": 0.451}
FLAT_IMATRIX = {"IQ3_XXS", "IQ2_XXS", "IQ2_S", "IQ1_M"}


def normal(rows: int, columns: int = COLUMNS) -> np.ndarray:
    return (np.random.default_rng(7).standard_normal((rows, columns)) * 0.02).astype(np.float32)


def lost(kind: str, rows: np.ndarray, imatrix: np.ndarray | None) -> float:
    back = dequantize(kind, quantize(kind, rows, imatrix), rows.shape[1])
    return float(np.sqrt(np.mean((back - rows) ** 2) / np.mean(rows**2)))


@pytest.mark.parametrize("kind", types.WEIGHT_TYPES)
def test_the_library_lays_out_rows_as_gguf_files_do(kind: str) -> None:
    size = types.row_size(kind, COLUMNS)

    assert size == COLUMNS * types.tensor_type(kind).bits_per_weight / 8


@pytest.mark.parametrize(
    ("kind", "error"),
    [*LOST.items(), *(pytest.param(*row, marks=pytest.mark.long) for row in SLOW.items())],
)
def test_quantizing_loses_what_llama_cpp_loses(kind: str, error: float) -> None:
    imatrix = np.ones(COLUMNS, np.float32) if kind in FLAT_IMATRIX else None

    assert lost(kind, normal(64), imatrix) == pytest.approx(error, rel=0.02)


def test_plain_floats_come_back_as_near_as_their_format_holds() -> None:
    rows = normal(3)

    np.testing.assert_array_equal(dequantize("F32", quantize("F32", rows), COLUMNS), rows)
    np.testing.assert_array_equal(
        dequantize("F16", quantize("F16", rows), COLUMNS), rows.astype(np.float16)
    )
    assert lost("BF16", rows, None) < 2**-8


def test_an_imatrix_moves_the_error_to_the_columns_that_matter_less() -> None:
    rows = normal(32)
    importance = np.ones(COLUMNS, np.float32)
    importance[::2] = 1000

    back = dequantize("Q4_K", quantize("Q4_K", rows, importance), COLUMNS)
    error = ((back - rows) ** 2).mean(axis=0)

    assert error[::2].mean() < error[1::2].mean()


def test_rows_quantized_apart_are_the_rows_quantized_together() -> None:
    rows = normal(6)

    together = quantize("Q4_K", rows)
    apart = np.concatenate([quantize("Q4_K", rows[:2]), quantize("Q4_K", rows[2:])])

    np.testing.assert_array_equal(together, apart)
    assert quantize("Q4_K", rows[:0]).shape == (0, 576)
    assert dequantize("Q4_K", together[:0], COLUMNS).shape == (0, COLUMNS)


def poisoned(value: float) -> np.ndarray:
    rows = normal(3)
    rows[1, 5] = value
    return rows


REFUSED: dict[str, tuple[type[Exception], str, Callable[[], object]]] = {
    "no such type": (UsageError, "'Q9_K' is not a type", lambda: quantize("Q9_K", normal(1))),
    "an index type": (UsageError, "'I32' is not a type", lambda: quantize("I32", normal(1))),
    "activations": (UsageError, "'Q8_K' is not a type", lambda: types.needs_imatrix("Q8_K")),
    "part of a block": (UsageError, "blocks of 256", lambda: quantize("Q4_K", normal(1, 128))),
    "an empty row": (UsageError, "blocks of 1", lambda: quantize("F32", normal(2, 0))),
    "a NaN": (SourceError, "row 1 of", lambda: quantize("Q4_K", poisoned(np.nan))),
    "an infinity": (SourceError, "row 1 of", lambda: quantize("IQ4_NL", poisoned(-np.inf))),
    "no imatrix": (UsageError, "importance matrix", lambda: quantize("IQ2_XXS", normal(1))),
    "a short imatrix": (
        UsageError, "imatrix has shape",
        lambda: quantize("Q4_K", normal(1), np.ones(1, np.float32)),
    ),
    "a NaN in the imatrix": (
        UsageError, "negative or not finite",
        lambda: quantize("Q4_K", normal(1), np.full(COLUMNS, np.nan, np.float32)),
    ),
    "a negative importance": (
        UsageError, "negative or not finite",
        lambda: quantize("Q4_K", normal(1), np.full(COLUMNS, -1, np.float32)),
    ),
    "part of a row": (
        UsageError, "are not whole rows", lambda: dequantize("Q4_K", np.zeros(577, np.uint8), 1024),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_end_the_process_is_refused(case: str) -> None:
    error, message, call = REFUSED[case]

    with pytest.raises(error, match=message):
        call()


def test_a_library_of_another_layout_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(types, "function", lambda *_: lambda number, elements: 17)
    types.row_size.cache_clear()

    with pytest.raises(EngineError, match=r"stores 256 elements of Q4_K in 17 bytes, .* in 144"):
        types.row_size("Q4_K", 256)


def test_a_function_that_a_build_lacks_is_named() -> None:
    with pytest.raises(BackendMissingError, match="has no ggml_of_another_time"):
        library.function("ggml", "ggml_of_another_time", None)


def test_a_build_names_its_version_and_its_kernels() -> None:
    assert library.build().startswith("llama-cpp-python ")
    assert " = 1" in library.build()
