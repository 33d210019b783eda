"""Real kernels under the measuring of a CPU, on weights small enough for a test."""

from __future__ import annotations

import pytest

pytest.importorskip("llama_cpp")

from localrun.errors import UsageError
from localrun.hardware import measure_cpu as cpu


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "streamed_bytes", lambda threads, available: 4 << 20)
    monkeypatch.setattr(cpu, "_PROMPT", 4)


@pytest.mark.parametrize("threads", [1, 2])
def test_every_type_of_a_calibration_has_its_three_speeds(threads: int) -> None:
    found = cpu.measure_cpu(cpu.TYPES, threads, seconds=1, cores=2, available=1 << 30)

    assert found.cores == 2
    for speeds in (found.gemv, found.core_gemv, found.prefill):
        assert set(speeds) <= set(cpu.TYPES)
        assert cpu.TYPES[0] in speeds
        assert all(0 < speed.value < 1e6 for speed in speeds.values())


def test_the_layout_that_was_timed_is_named() -> None:
    plain = cpu.measure_cpu(["Q4_0"], 1, seconds=0.1, cores=1, available=1 << 30, repack=False)

    assert plain.gemv["Q4_0"].source == "ggml, CPU"


def test_a_type_that_no_kernel_knows_is_refused() -> None:
    with pytest.raises(UsageError, match="'Q9_K'"):
        cpu.measure_cpu(["Q9_K"], 1, seconds=0.1, cores=1, available=1 << 30)
