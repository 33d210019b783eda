"""What torch takes on the CPU, measured in small: every figure is there, and of use to a plan."""

from __future__ import annotations

from itertools import count

import pytest

from localrun.backends.torch import calibrate_host
from localrun.backends.torch.small_models import SMALL_MODELS


def test_every_small_model_every_type_and_both_sizes_of_experts_are_measured() -> None:
    said: list[str] = []

    found = calibrate_host.measure_host(0.01, 1, said.append)

    assert set(found.launches) == {name for names, _ in SMALL_MODELS for name in names}
    assert set(found.gemv) == {"F8_E4M3", "F32"}
    small, large = sorted(found.misses)
    assert large == 16 * small  # four times as wide and as high
    speeds = (*found.launches.values(), *found.gemv.values(), *found.misses.values())
    assert all(speed.value > 0 and speed.basis == "measured" for speed in speeds)
    assert all(line.startswith("measuring cpu with torch: ") for line in said)


def test_what_fetching_takes_is_the_difference_by_the_experts_that_were_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a clock that goes on by 1 s, then by 3, at every token: 2 s for 20 experts."""
    ticks = count()
    steps = (0.0, 0.0, 1.0, 4.0)  # before the loop, a token, another that fetched
    monkeypatch.setattr(calibrate_host, "_PAIRS", 5)

    def clock() -> float:
        turn, at = divmod(next(ticks), 4)
        return 10 * turn + steps[at]

    config = calibrate_host._STREAMED[0]
    nbytes, took = calibrate_host._miss(config, 0.0, 1, clock)

    layers = config["text_config"]["num_hidden_layers"]  # type: ignore[index]
    assert nbytes > 0
    most = 1e3 * 2 / (layers * calibrate_host._FORGOTTEN)
    assert 0.9 * most < took < most  # without what it really waited for reads
