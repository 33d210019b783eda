"""Measuring a device: the CPU stands for a GPU, on weights small enough for a test."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("llama_cpp")

from localrun.backends.llamacpp import backend, buffer_types
from localrun.backends.llamacpp import calibrate as room
from localrun.backends.registry import backend as named
from localrun.errors import BackendMissingError, EngineError
from localrun.ggml.device import Device, Matrices, devices

KIB = 1 << 10


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> Device:
    monkeypatch.setattr(room, "_MATRIX_BYTES", 512 * KIB)
    monkeypatch.setattr(room, "_SMALLEST", 512 * KIB)
    monkeypatch.setattr(room, "_PROMPT", 4)
    monkeypatch.setattr(room, "_MATRICES", 4)
    monkeypatch.setattr(room, "_PROMPT_MATRICES", 2)
    return next(device for device in devices() if device.name == "CPU")


def test_a_device_has_every_types_figures_and_its_link(cpu: Device) -> None:
    found = room.measure_device(cpu, seconds=0.5)

    assert set(found.gemv) <= set(room.TYPES)
    assert set(found.prefill) <= set(room.PROMPT_TYPES)
    assert found.read is not None
    assert found.flops is not None
    assert found.link is not None
    for speed in (*found.gemv.values(), *found.prefill.values(), found.link):
        assert 0 < speed.value < 1e6
        assert speed.basis == "measured"
    assert found.link.source == "ggml, copies from ordinary memory"


def test_figures_are_in_the_units_they_say(cpu: Device) -> None:
    """With a clock that ticks a second a look, all work of a run is done in a second."""
    ticks = iter(range(1_000_000))

    found = room.measure_device(cpu, seconds=60, clock=lambda: float(next(ticks)))

    rows = 512 * KIB // 8192
    assert found.gemv["F16"].value == pytest.approx(4 * 512 * KIB / 1e9)
    assert found.prefill["F16"].value == pytest.approx(2 * 4 * 2 * rows * 4096 / 1e12)
    assert found.link is not None
    assert found.link.value == pytest.approx(512 * KIB // 2304 // 64 * 64 * 2304 / 1e9)


def test_time_that_is_over_ends_the_measuring_before_the_next_type(cpu: Device) -> None:
    ticks = iter(range(1_000_000))

    found = room.measure_device(cpu, seconds=12, clock=lambda: float(next(ticks)))

    assert 0 < len(found.gemv) < len(room.TYPES)


def test_devices_of_one_name_are_measured_once(cpu: Device) -> None:
    said = list[str]()

    found = room.measure([cpu, replace(cpu)], 0.2, said.append)

    assert list(found) == [cpu.description]
    assert said == [f"measuring gpu: {cpu.description}"]


def test_a_device_without_free_memory_is_absent_and_said(cpu: Device) -> None:
    said = list[str]()
    full = replace(cpu, free=16 * KIB, description="a full card")

    found = room.measure([full, cpu], 0.4, said.append)

    assert list(found) == [cpu.description]
    assert "note: a full card was not measured: 0 MiB of its memory are free" in said


@pytest.mark.parametrize("failing", ["Q4_K", "all"])
def test_a_type_that_a_device_fails_on_costs_the_others_nothing(
    cpu: Device, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def refuses(stream: object, type: str, *rest: object) -> Matrices:
        if failing in (type, "all"):
            raise EngineError("no memory for the tensors of a product")
        return Matrices(stream, type, *rest)  # type: ignore[arg-type]  # as they came

    monkeypatch.setattr(room, "Matrices", refuses)
    said = list[str]()

    found = room.measure([cpu], 0.5, said.append)

    if failing == "all":
        assert not found
        assert "no memory for the tensors" in said[-1]
    else:
        figures = found[cpu.description]
        assert figures.gemv
        assert "Q4_K" not in figures.gemv
        assert figures.link is not None


def test_only_gpus_are_measured(monkeypatch: pytest.MonkeyPatch, cpu: Device) -> None:
    monkeypatch.setattr(buffer_types, "gpus", lambda: ())
    assert named("llama.cpp").calibrate(1.0, print) == {}

    here = buffer_types.devices()
    at = [each.name for each in here].index("CPU")
    monkeypatch.setattr(buffer_types, "gpus", lambda: ((at, here[at]),))
    assert list(backend.calibrate(0.2, lambda line: None)) == [cpu.description]


def test_without_the_library_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "find_spec", lambda name: None)

    with pytest.raises(BackendMissingError, match="is not installed"):
        backend.calibrate(1.0, print)
