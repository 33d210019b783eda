"""Products of stored weights, held against numpy's of the same weights dequantized."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing

import numpy as np
import pytest

pytest.importorskip("llama_cpp")

from localrun.errors import EngineError, UsageError
from localrun.ggml.matmul import Product, Threads, mul_mat, mul_mat_id
from localrun.ggml.quantize import dequantize
from localrun.ggml.types import WEIGHT_TYPES, row_size
from localrun.ggml.weights import Weights

COLUMNS, ROWS, EXPERTS = 512, 24, 5
# Half-precision scales of these bytes are ordinary numbers, wherever a type keeps its own.
ORDINARY = np.array([*range(0x20, 0x3C), *range(0xA0, 0xBC)], np.uint8)


def tolerance(kind: str) -> float:
    """Relative to the spread of the products: what rounding the activations costs.

    Quantized weights meet activations of 8 bits, which err by 2^-8 of a block's largest number at
    most: 0.5 to 0.8 % of their spread. BF16 and F16 keep 8 and 11 bits, F32 all.
    """
    return {"F32": 1e-6, "F16": 2**-11, "BF16": 2**-8}.get(kind, 0.012)


def blocks(kind: str, rows: int) -> np.ndarray:
    return np.random.default_rng(3).choice(ORDINARY, (rows, row_size(kind, COLUMNS)))


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(5).standard_normal(shape).astype(np.float32)


def error(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape
    return float(np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)))


@pytest.fixture(scope="module")
def two() -> Iterator[Threads]:
    with closing(Threads(2)) as threads:
        yield threads


@pytest.fixture
def matrix() -> Iterator[Weights]:
    with closing(Weights("Q8_0", ROWS, COLUMNS, blocks("Q8_0", ROWS))) as weights:
        yield weights


@pytest.fixture
def experts() -> Iterator[Weights]:
    data = blocks("Q8_0", EXPERTS * ROWS)
    with closing(Weights("Q8_0", ROWS, COLUMNS, data, experts=EXPERTS)) as weights:
        yield weights


@pytest.mark.parametrize("repack", [False, True], ids=["plain", "repacked"])
@pytest.mark.parametrize("kind", WEIGHT_TYPES)
def test_a_product_is_that_of_the_dequantized_weights(
    kind: str, repack: bool, two: Threads
) -> None:
    data, activations = blocks(kind, ROWS), normal(7, COLUMNS)
    expected = activations.astype(np.float64) @ dequantize(kind, data, COLUMNS).astype(float).T

    with closing(Weights(kind, ROWS, COLUMNS, data, repack=repack)) as weights:
        many = mul_mat(weights, two, activations)
        single = mul_mat(weights, two, activations[:1])

    assert error(many, expected) < tolerance(kind)
    assert error(single, expected[:1]) < 1.5 * tolerance(kind)


@pytest.mark.parametrize("repack", [False, True], ids=["plain", "repacked"])
@pytest.mark.parametrize("kind", WEIGHT_TYPES)
def test_each_token_meets_the_experts_it_chose(kind: str, repack: bool, two: Threads) -> None:
    data = blocks(kind, EXPERTS * ROWS)
    shared, own = normal(6, COLUMNS), normal(6, 2, COLUMNS)
    chosen = np.array([[0, 4], [4, 0], [1, 2], [3, 1], [2, 0], [0, 1]])
    stacked = dequantize(kind, data, COLUMNS).astype(float).reshape(EXPERTS, ROWS, COLUMNS)[chosen]

    stack = Weights(kind, ROWS, COLUMNS, data, experts=EXPERTS, repack=repack)
    with closing(stack) as weights:
        from_shared = mul_mat_id(weights, two, shared, chosen)
        from_own = mul_mat_id(weights, two, own, chosen)

    allowed = 1.2 * tolerance(kind)
    assert error(from_shared, np.einsum("tk,tcrk->tcr", shared, stacked)) < allowed
    assert error(from_own, np.einsum("tck,tcrk->tcr", own, stacked)) < allowed


def test_how_many_threads_compute_does_not_change_a_bit(matrix: Weights) -> None:
    activations = normal(9, COLUMNS)
    outcomes = []
    for count in (1, 2, 3):
        with closing(Threads(count)) as threads:
            outcomes.append(mul_mat(matrix, threads, activations))

    np.testing.assert_array_equal(outcomes[0], outcomes[1])
    np.testing.assert_array_equal(outcomes[0], outcomes[2])


def test_a_product_is_run_again_with_other_activations(matrix: Weights, two: Threads) -> None:
    with closing(Product(matrix, two, 1)) as product:
        product.run()
        assert not product.outputs.any()
        product.activations[:] = normal(1, COLUMNS)
        product.run()

    np.testing.assert_array_equal(product.outputs, mul_mat(matrix, two, normal(1, COLUMNS)))


def test_products_asked_for_at_once_on_the_same_threads_are_right(
    matrix: Weights, two: Threads
) -> None:
    inputs = [normal(3, COLUMNS) * scale for scale in range(1, 9)]
    outcomes: dict[int, np.ndarray] = {}

    def ask(at: int) -> None:
        outcomes[at] = mul_mat(matrix, two, inputs[at])

    asking = [threading.Thread(target=ask, args=(at,)) for at in range(len(inputs))]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()

    for at, activations in enumerate(inputs):
        np.testing.assert_array_equal(outcomes[at], mul_mat(matrix, two, activations))


def test_weights_are_copied(two: Threads) -> None:
    data = blocks("Q4_0", ROWS)
    with closing(Weights("Q4_0", ROWS, COLUMNS, data)) as weights:
        before = mul_mat(weights, two, normal(1, COLUMNS))
        data[:] = 0x20

        np.testing.assert_array_equal(mul_mat(weights, two, normal(1, COLUMNS)), before)


def test_only_weights_that_were_asked_to_be_repacked_say_so(matrix: Weights) -> None:
    assert matrix.layout == "CPU"
    with closing(Weights("F32", ROWS, COLUMNS, blocks("F32", ROWS), repack=True)) as weights:
        assert weights.layout == "CPU"  # no build has an order of its own for them


REFUSED: dict[str, Callable[[Weights, Weights, Threads], object]] = {
    "no threads": lambda matrix, experts, two: Threads(0),
    "more threads than the library has room for": lambda matrix, experts, two: Threads(513),
    "too few bytes": lambda matrix, experts, two: Weights(
        "Q8_0", ROWS, COLUMNS, blocks("Q8_0", ROWS - 1)
    ),
    "no rows": lambda matrix, experts, two: Weights("Q8_0", 0, COLUMNS, blocks("Q8_0", 0)),
    "a negative stack": lambda matrix, experts, two: Weights(
        "Q8_0", ROWS, COLUMNS, blocks("Q8_0", ROWS), experts=-1
    ),
    "no tokens": lambda matrix, experts, two: Product(matrix, two, 0),
    "a choice among one matrix": lambda matrix, experts, two: Product(matrix, two, 1, choices=1),
    "no choice among experts": lambda matrix, experts, two: Product(experts, two, 1),
    "more choices than experts": lambda matrix, experts, two: Product(experts, two, 1, choices=6),
    "other columns": lambda matrix, experts, two: mul_mat(matrix, two, normal(1, 256)),
    "other tokens": lambda matrix, experts, two: mul_mat_id(
        experts, two, normal(2, COLUMNS), np.zeros((1, 1), int)
    ),
    "an expert beyond the last": lambda matrix, experts, two: mul_mat_id(
        experts, two, normal(1, COLUMNS), np.array([[0, 5]])
    ),
    "an expert before the first": lambda matrix, experts, two: mul_mat_id(
        experts, two, normal(1, COLUMNS), np.array([[-1, 0]])
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_end_the_process_is_refused(
    case: str, matrix: Weights, experts: Weights, two: Threads
) -> None:
    with pytest.raises(UsageError):
        REFUSED[case](matrix, experts, two)


def test_what_was_closed_is_not_computed_with() -> None:
    threads = Threads(2)
    weights = Weights("Q8_0", ROWS, COLUMNS, blocks("Q8_0", ROWS))
    product = Product(weights, threads, 1)
    threads.close()
    threads.close()
    with pytest.raises(EngineError, match="threads have been closed"):
        product.run()

    weights.close()
    weights.close()
    with pytest.raises(EngineError, match="product, or its weights, have been closed"):
        product.run()

    product.close()
    product.close()
    with pytest.raises(EngineError, match="product, or its weights, have been closed"):
        product.run()
    assert product.outputs.shape == (1, ROWS)  # numpy's memory, still readable
