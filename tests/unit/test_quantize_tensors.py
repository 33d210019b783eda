"""Numbers of a checkpoint as blocks of a GGUF type, a few rows at a time."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from localrun.errors import HeaderError, SourceError
from localrun.formats.header import TensorInfo
from localrun.formats.reader import BytesSource
from localrun.formats.types import GGUF_TYPES, SAFETENSORS_TYPES
from localrun.quantize import tensors
from localrun.quantize.gguf_writer import Written

TYPES = {kind.name: kind for kind in GGUF_TYPES.values()}
ROWS, COLUMNS = 6, 32


def stored(numbers: NDArray[np.float32], kind: str) -> bytes:
    if kind == "BF16":
        return (numbers.view(np.uint32) >> 16).astype("<u2").tobytes()
    return numbers.astype({"F64": "<f8", "F32": "<f4", "F16": "<f2"}[kind]).tobytes()


def converted(data: bytes, source: str, target: str, *shape: int) -> bytes:
    shape = shape or (ROWS, COLUMNS)
    info = TensorInfo("it.weight", SAFETENSORS_TYPES[source], shape, 8, len(data))
    made = Written("it.weight", TYPES[target], shape)
    read: list[int] = []
    parts = tensors.blocks(BytesSource(bytes(8) + data), info, made, read.append)
    whole = b"".join(map(bytes, parts))
    assert sum(read) == len(data)
    assert len(whole) == made.bytes
    return whole


@pytest.fixture
def numbers() -> NDArray[np.float32]:
    drawn = np.random.default_rng(0).normal(0, 1, (ROWS, COLUMNS)).astype(np.float32)
    # Whole numbers of the narrowest type, so that every way there and back is exact.
    return (drawn.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


@pytest.mark.parametrize("source", ["F64", "F32", "F16", "BF16"])
def test_every_float_is_read(numbers: NDArray[np.float32], source: str) -> None:
    if source == "F16":
        numbers = numbers.astype(np.float16).astype(np.float32)
    assert converted(stored(numbers, source), source, "F32") == numbers.astype("<f4").tobytes()


def test_a_number_is_rounded_to_the_nearest() -> None:
    numbers = np.linspace(-3, 3, ROWS * COLUMNS, dtype=np.float32).reshape(ROWS, COLUMNS)
    halves = np.frombuffer(converted(stored(numbers, "F32"), "F32", "F16"), "<f2")
    brains = np.frombuffer(converted(stored(numbers, "F32"), "F32", "BF16"), "<u2")
    widened = (brains.astype(np.uint32) << 16).view(np.float32)

    assert np.array_equal(halves, numbers.astype("<f2").reshape(-1))
    assert np.abs(widened - numbers.reshape(-1)).max() <= 2**-8 * 3
    # Ties go to the even one: 1 + 2^-8 lies between 1 and 1 + 2^-7.
    ties = np.array([[1 + 2**-8, 1 + 3 * 2**-8] * 16], np.float32)
    rounded = np.frombuffer(converted(stored(ties, "F32"), "F32", "BF16", 1, 32), "<u2")
    assert set(rounded.tolist()) == {0x3F80, 0x3F82}


def test_a_vector_is_one_row() -> None:
    numbers = np.arange(7, dtype=np.float32)
    assert converted(stored(numbers, "F32"), "F32", "F32", 7) == numbers.astype("<f4").tobytes()


@pytest.mark.parametrize("slab", [1, 200, 384, 10**6])
def test_rows_come_alike_in_whatever_slabs(
    numbers: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch, slab: int
) -> None:
    monkeypatch.setattr(tensors, "_SLAB_BYTES", slab)
    assert converted(stored(numbers, "F32"), "F32", "F16") == numbers.astype("<f2").tobytes()


@pytest.mark.parametrize("index", [0, ROWS * COLUMNS // 2, ROWS * COLUMNS - 1])
@pytest.mark.parametrize("planted", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("source", ["F64", "F32", "F16", "BF16"])
def test_a_number_that_is_not_finite_is_named(
    numbers: NDArray[np.float32],
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    planted: float,
    index: int,
) -> None:
    monkeypatch.setattr(tensors, "_SLAB_BYTES", 2 * COLUMNS * 4)
    numbers.reshape(-1)[index] = planted
    row, column = divmod(index, COLUMNS)
    said = rf"it\.weight: element {index} \(row {row}, column {column}\) is {planted}"
    with pytest.raises(SourceError, match=said):
        converted(stored(numbers, source), source, "F32")


@pytest.mark.parametrize(
    ("source", "value", "target"),
    [("F32", 65_520, "F16"), ("F64", 70_000, "F16"), ("F32", 3.4e38, "BF16")],
)
def test_a_number_too_large_for_its_type_is_named(source: str, value: float, target: str) -> None:
    with pytest.raises(
        SourceError, match=rf"it\.weight: element 34 .* is too large for {target}"
    ) as refused:
        converted(with_one(source, value), source, target)

    assert "wider --type" in refused.value.hint


@pytest.mark.parametrize("target", ["F32", "F16", "BF16", "Q8_0"])
def test_a_number_too_large_for_32_bits_is_too_large_for_every_type(target: str) -> None:
    with pytest.raises(
        SourceError, match=r"it\.weight: element 34 .* is too large for F32"
    ) as refused:
        converted(with_one("F64", 3.5e38), "F64", target)

    assert "--type" not in refused.value.hint


def with_one(source: str, value: float) -> bytes:
    numbers = np.zeros((ROWS, COLUMNS), np.float64)
    numbers[1, 2] = value
    return numbers.astype({"F64": "<f8", "F32": "<f4"}[source]).tobytes()


def test_a_file_that_became_shorter_is_noticed(numbers: NDArray[np.float32]) -> None:
    data = stored(numbers, "F32")
    info = TensorInfo("it", SAFETENSORS_TYPES["F32"], (ROWS, COLUMNS), 8, len(data))
    made = Written("it", TYPES["F32"], (ROWS, COLUMNS))
    with pytest.raises(HeaderError, match="bytes expected"):
        list(tensors.blocks(BytesSource(data), info, made, lambda _: None))
