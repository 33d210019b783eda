"""How long a plan takes, by what a thread encodes in a second."""

from __future__ import annotations

import pytest

from localrun.ggml.types import WEIGHT_TYPES
from localrun.quantize.types.rates import measured, rate, seconds


def test_every_type_of_weights_has_a_rate_with_and_without_a_matrix() -> None:
    for type in WEIGHT_TYPES:
        assert rate(type, weighted=True) > 1e6
        # Where there is no way without a matrix, the rate is that with one.
        assert rate(type) >= 1e6


def test_threads_share_the_work_and_unknown_types_count_too() -> None:
    work = [("Q4_K", 15_000_000, False), ("Q4_K", 8_800_000, True)]

    assert seconds(work, 1) == pytest.approx(2.0)
    assert seconds(work, 4) == pytest.approx(0.5)
    assert seconds([("fp8-block", 150_000_000, False)], 1) == pytest.approx(1.0)
    assert seconds([], 0) == 0


def test_this_machines_own_rates_can_be_used() -> None:
    pytest.importorskip("llama_cpp")
    fast, slow = measured("Q8_0"), measured("IQ3_XXS", weighted=True)

    assert fast > 5 * slow > 0
    work = [("IQ3_XXS", int(slow), True)]
    assert seconds(work, 1, rates=measured) == pytest.approx(1.0, rel=1e-6)
    assert measured("w4a16") == rate("w4a16")
