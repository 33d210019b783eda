"""Codes of small floats: the nearest of every number, and packed where readers look for them."""

from __future__ import annotations

import numpy as np
import pytest

from localrun.quantize.outputs import codes
from localrun.quantize.outputs.floats import bf16, decoded
from tests.outputs import normal


def many() -> np.ndarray:
    """Numbers of every size, each border between two codes, and their neighbours in float32."""
    exact = np.concatenate([codes.e4m3_numbers()[:127], codes.e2m1_numbers()[:8]]).astype(
        np.float64
    )
    levels = np.unique(exact)
    borders = (levels[1:] + levels[:-1]) / 2
    points = np.concatenate([levels, borders]).astype(np.float32)
    near = [np.nextafter(points, np.float32(side)) for side in (np.inf, -np.inf)]
    random = normal(20_000) * np.exp2(np.random.default_rng(1).integers(-20, 20, 20_000))
    whole = np.concatenate([points, *near, random.astype(np.float32)])
    return np.concatenate([whole, -whole])


def nearest(numbers: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """The distance of each number, cut to the levels' range, from the nearest of them."""
    inside = np.clip(numbers.astype(np.float64), -levels.max(), levels.max())
    return np.abs(inside[:, None] - np.concatenate([levels, -levels])[None]).min(axis=1)


@pytest.mark.parametrize("kind", ["e4m3", "e2m1", "e2m1 toward zero"])
def test_a_code_is_the_nearest_of_all(kind: str) -> None:
    numbers = many()
    tables = {
        "e4m3": (codes.e4m3_codes(), codes.e4m3_numbers(), 127),
        "e2m1": (codes.e2m1_codes(), codes.e2m1_numbers(), 8),
        "e2m1 toward zero": (codes.e2m1_codes_toward_zero(), codes.e2m1_numbers(), 8),
    }
    table, values, count = tables[kind]

    found = values[codes.coded(numbers, table)].astype(np.float64)

    largest = float(values[count - 1])
    distance = np.abs(np.clip(numbers.astype(np.float64), -largest, largest) - found)
    np.testing.assert_array_equal(distance, nearest(numbers, values[:count].astype(np.float64)))


def test_e4m3_rounds_as_torch_does() -> None:
    torch = pytest.importorskip("torch")
    numbers = np.clip(many(), -448, 448)

    found = codes.coded(numbers, codes.e4m3_codes())

    expected = torch.from_numpy(numbers).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("number", "even", "smaller"),
    [(0.25, 0, 0), (0.75, 2, 1), (1.25, 2, 2), (1.75, 4, 3), (2.5, 4, 4), (3.5, 6, 5), (5, 6, 6)],
)
def test_ties_of_e2m1_go_to_the_even_code_or_to_the_smaller(
    number: float, even: int, smaller: int
) -> None:
    both = np.array([number, -number], np.float32)

    assert codes.coded(both, codes.e2m1_codes()).tolist() == [even, even | 8]
    expected = [smaller, smaller | 8 if smaller else 0]
    assert codes.coded(both, codes.e2m1_codes_toward_zero()).tolist() == expected


def test_pairs_are_packed_with_the_first_in_the_low_half() -> None:
    found = codes.pairs_packed(np.array([[1, 2, 3, 15]], np.uint8))

    assert found.tolist() == [[0x21, 0xF3]]
    assert codes.pairs_unpacked(found).tolist() == [[1, 2, 3, 15]]


def test_mxfp4_of_ggml_keeps_its_numbers_in_the_order_of_releases() -> None:
    pytest.importorskip("llama_cpp")
    from localrun.ggml.quantize import dequantize, quantize

    rows = normal(8, 128)
    blocks = quantize("MXFP4", rows)

    packed, scales = codes.mxfp4_split(blocks)

    numbers = codes.e2m1_numbers()[codes.pairs_unpacked(packed)].reshape(8, 4, 32)
    back = numbers * codes.e8m0_numbers(scales)[..., None]
    np.testing.assert_array_equal(back.reshape(8, 128), dequantize("MXFP4", blocks, 128))


def test_bf16_rounds_as_torch_does() -> None:
    torch = pytest.importorskip("torch")
    numbers = np.concatenate([many(), np.array([3.4e38, 1.40e-45, -0.0], np.float32)])

    expected = torch.from_numpy(numbers).to(torch.bfloat16)

    np.testing.assert_array_equal(bf16(numbers), expected.view(torch.uint16).numpy())
    np.testing.assert_array_equal(decoded("BF16", bf16(numbers).view(np.uint8)), expected.float())
