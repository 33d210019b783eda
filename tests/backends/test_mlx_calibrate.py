"""Measuring a device with mlx: the CPU stands for a GPU, on matrices small enough for a test."""

from __future__ import annotations

import sys

import pytest

mx = pytest.importorskip("mlx.core", reason="mlx is not installed")


def test_a_device_is_measured_by_type() -> None:
    from localrun.backends.mlx.calibrate import TYPES, measure_device

    figures = measure_device(mx.cpu, 0.6, rows=128, columns=128)

    assert tuple(figures.gemv) == TYPES
    assert all(speed.basis == "measured" and speed.value > 0 for speed in figures.gemv.values())
    assert set(figures.prefill) == {"U32", "BF16"}
    assert figures.read is not None
    assert figures.flops is not None


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac has Metal")
def test_without_metal_nothing_is_measured() -> None:
    from localrun.backends.registry import backend

    said: list[str] = []
    assert backend("mlx").calibrate(1.0, said.append) == {}
    assert said == []
