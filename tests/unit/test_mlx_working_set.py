"""What Metal recommends is kept to; the sets are those that real Macs told."""

from __future__ import annotations

from typing import Any

import pytest

from localrun.backends.mlx.working_set import MIB, Limits, limits
from localrun.errors import OutOfMemoryError

GIB = 1 << 30
# (memory, recommended working set) as logs of ggml's Metal backend and of ds4 tell them.
RECORDED = {
    # github.com/h2oai/h2ogpt/issues/1359
    "M1, 8 GB": (8 * GIB, 5_726_630_000),
    # github.com/ise-uiuc/magicoder/issues/19: 10922.67 MiB
    "M1, 16 GB": (16 * GIB, round(10922.67 * MIB)),
    # github.com/ggml-org/llama.cpp/pull/2011: 21845.34 MiB
    "M1 Max, 32 GB": (32 * GIB, round(21845.34 * MIB)),
    # github.com/ggml-org/llama.cpp/issues/1870
    "M1 Max, 64 GB": (64 * GIB, 49152 * MIB),
    # github.com/ggml-org/llama.cpp/issues/3213
    "M2 Max, 96 GB": (96 * GIB, 73728 * MIB),
    # github.com/antirez/ds4/pull/893, then with iogpu.wired_limit_mb = 114688
    "M5 Max, 128 GB": (128 * GIB, round(107.52 * GIB)),
    "M5 Max, 128 GB, raised": (128 * GIB, 114688 * MIB),
}


def facts(memory: int, recommended: int) -> dict[str, Any]:
    """As ``mx.device_info()`` has them where Metal is."""
    return {
        "architecture": "applegpu_g13s",
        "max_buffer_length": recommended // 2,
        "max_recommended_working_set_size": recommended,
        "memory_size": memory,
        "resource_limit": 499000,
    }


@pytest.mark.parametrize(("memory", "recommended"), RECORDED.values(), ids=RECORDED.keys())
def test_what_is_planned_is_wired_and_no_more_than_recommended_is_taken(
    memory: int, recommended: int
) -> None:
    planned = recommended * 9 // 10

    told = limits(facts(memory, recommended), planned, 300 * MIB)

    assert told == Limits(wired=planned, memory=recommended, kept=300 * MIB)


@pytest.mark.parametrize(("memory", "recommended"), RECORDED.values(), ids=RECORDED.keys())
def test_a_plan_beyond_the_working_set_is_refused_with_the_command_that_raises_it(
    memory: int, recommended: int
) -> None:
    planned = recommended + 1

    with pytest.raises(OutOfMemoryError, match="recommends a working set") as caught:
        limits(facts(memory, recommended), planned, 0)

    assert (caught.value.tier, caught.value.needed_bytes) == ("unified", planned)
    assert f"iogpu.wired_limit_mb={-(-planned // MIB)}" in caught.value.hint


def test_freed_buffers_are_kept_for_small_steps_too() -> None:
    told = limits(facts(16 * GIB, 11 * GIB), GIB, 0)

    assert told is not None
    assert told.kept == 64 * MIB


def test_a_cpu_has_no_working_set() -> None:
    assert limits({"architecture": "x86_64", "device_name": "a CPU"}, GIB, 0) is None
    assert limits({}, GIB, 0) is None
