"""What a thread encodes in a second."""

from __future__ import annotations

import pytest

from localrun.ggml.types import WEIGHT_TYPES
from localrun.quantize.types.rates import measured, rate


def test_every_type_of_weights_has_a_rate_with_and_without_a_matrix() -> None:
    for type in WEIGHT_TYPES:
        assert rate(type, weighted=True) > 1e6
        # Where there is no way without a matrix, the rate is that with one.
        assert rate(type) >= 1e6


def test_types_that_no_library_makes_count_too() -> None:
    assert rate("Q4_K", weighted=True) < rate("Q4_K")
    assert rate("fp8-block") == 150e6


def test_this_machines_own_rates_can_be_used() -> None:
    pytest.importorskip("llama_cpp")
    fast, slow = measured("Q8_0"), measured("IQ3_XXS", weighted=True)

    assert fast > 5 * slow > 0
    assert measured("w4a16") == rate("w4a16")
