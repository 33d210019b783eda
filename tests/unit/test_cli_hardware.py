"""``localrun hardware``: this machine or another, its tiers, and measuring it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from localrun.backends.llamacpp import backend as llamacpp
from localrun.backends.torch import backend as torch
from localrun.cli.app import execute
from localrun.cli.machines import key_here, machine_for, probed, store_of
from localrun.config import Settings, settings
from localrun.errors import BackendMissingError, UsageError
from localrun.hardware import calibrate as room
from localrun.hardware import measure_disk as disks
from localrun.hardware import measurements
from localrun.hardware import probe as prober
from localrun.hardware.machine import Compute, Gpu, HostFigures, Machine, Speed
from localrun.hardware.machine_file import EXAMPLE
from localrun.hardware.measure_memory import MemorySpeeds
from localrun.hardware.measurements import DeviceFigures, MeasuredDevice, MeasuredDisk, Measurements
from localrun.hardware.parts import parts

DISK = MeasuredDisk({1: 9e3, 256: 8e4}, {1: 1.2, 4: 1.4})
HOST = HostFigures({"F32": Speed(11.0, "measured")}, {"llama": Speed(0.125, "measured")})


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("LOCALRUN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return settings()


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each measuring answers at once."""

    def speeds(**values: float) -> dict[str, Speed]:
        return {name: Speed(value, "measured") for name, value in values.items()}

    def memory(threads: int, **rest: Any) -> MemorySpeeds:
        table = {1: Speed(20.0, "measured"), 2: Speed(31.0, "measured")}
        return MemorySpeeds(table, {2: Speed(9.0, "measured")})

    def cpu(types: Any, threads: int, *, cores: int, **rest: Any) -> Compute:
        one, prompt = speeds(Q4_K=4.5), speeds(Q4_K=88.0)
        return Compute(cores, gemv=speeds(Q4_K=7.5), core_gemv=one, prefill=prompt)

    monkeypatch.setattr(room, "measure_memory", memory)
    monkeypatch.setattr(room, "measure_cpu", cpu)
    monkeypatch.setattr(room, "measure_disk", lambda place, filesystem, **rest: DISK)
    monkeypatch.setattr(llamacpp, "calibrate", lambda seconds, say: {})
    monkeypatch.setattr(torch, "calibrate_host", lambda seconds, threads, say: HOST)


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert execute(["hardware", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_this_machine_is_shown_with_tiers_and_the_basis_of_each_speed(
    here: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    found = answer(capsys)

    assert found["name"] == "auto"
    assert {tier["name"] for tier in found["tiers"]} >= {"disk"}
    assert all(tier["read"]["basis"] in ("specified", "assumed") for tier in found["tiers"])
    assert found["compute"]["cores"] >= 1
    assert set(found["disk_reads"]) == {"iops", "large"}
    assert found["measurements"] is None


def test_a_machine_by_name_is_shown_in_place_of_this_one(
    here: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "2xrtx-3090+ddr4-3200x8:256+nvme4"

    found = answer(capsys, "--machine", name)
    assert execute(["hardware", "--machine", name]) == 0
    shown = capsys.readouterr().out

    assert [tier["name"] for tier in found["tiers"]] == ["vram:0", "vram:1", "ram", "disk"]
    assert "936 GB/s" in shown
    assert "specified" in shown
    assert "71 TFLOP/s, assumed" in shown


def test_a_machine_may_come_from_a_file_or_the_environment(
    here: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "Box.TOML"
    file.write_text(EXAMPLE, encoding="utf-8")

    assert answer(capsys, "--machine", str(file))["name"] == "workstation"
    monkeypatch.setenv("LOCALRUN_MACHINE", "m4-max-128")
    assert answer(capsys)["name"] == "m4-max-128"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--machine", "rtx-409+ddr5-6000x2:64"], "rtx-4090"),
        (["--machine", "none.toml"], "none.toml"),
        (["--machine", ""], "--machine"),
        (["--machine", "m4-max-128", "--calibrate"], "--calibrate measures this machine"),
    ],
)
def test_what_cannot_be_meant_ends_with_2_and_one_line(
    here: Settings, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert execute(["hardware", *arguments]) == 2
    streams = capsys.readouterr()

    assert said in streams.err
    assert not streams.out


def test_the_list_names_every_part_and_machines_that_are_machines(
    here: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    found = answer(capsys, "--list")
    assert execute(["hardware", "--list"]) == 0
    streams = capsys.readouterr()

    assert [part["slug"] for part in found["parts"]] == list(parts())
    assert all(machine_for(name, here).tiers for name in found["examples"])
    assert [line.split()[0] for line in streams.out.splitlines()] == list(parts())
    assert "[[gpu]]" in streams.err


def test_calibrating_measures_remembers_and_shows(
    here: Settings, measuring: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(["hardware", "--calibrate"]) == 0
    streams = capsys.readouterr()
    found = answer(capsys)

    assert "measuring memory" in streams.err
    assert "31.0 GB/s" in streams.out
    assert "88.0 GFLOP/s" in streams.out
    disk = found["tiers"][-1]
    assert (disk["read"]["value"], disk["read"]["basis"]) == (1.4, "measured")
    assert found["compute"]["gemv"]["Q4_K"]["basis"] == "measured"
    assert found["disk_reads"]["iops"]["256"]["value"] == 8e4
    assert found["measurements"]["ram_read"] == {"1": 20.0, "2": 31.0}
    assert not any("--calibrate" in line for line in found["notes"])


def test_what_cannot_be_measured_is_absent_and_said(
    here: Settings,
    measuring: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def absent(*arguments: Any, **rest: Any) -> Compute:
        raise BackendMissingError("llama-cpp-python is not installed")

    def memory(threads: int, **rest: Any) -> MemorySpeeds:
        return MemorySpeeds()

    def no_disk(place: Path, filesystem: str, **rest: Any) -> MeasuredDisk:
        raise UsageError(f"{place}: the disk's speed cannot be measured here")

    monkeypatch.setattr(room, "measure_memory", memory)
    monkeypatch.setattr(room, "measure_cpu", absent)
    monkeypatch.setattr(room, "measure_disk", no_disk)

    assert execute(["hardware", "--calibrate"]) == 0
    streams = capsys.readouterr()

    assert "memory was not measured" in streams.err
    assert "llama-cpp-python is not installed" in streams.err
    assert "cannot be measured here" in streams.err
    assert "assumed" in streams.out


def test_a_store_that_cannot_be_written_costs_the_memory_not_the_figures(
    here: Settings,
    measuring: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    here.state.parent.mkdir(parents=True, exist_ok=True)
    here.state.write_text("a file where a directory belongs", encoding="utf-8")

    assert execute(["hardware", "--calibrate"]) == 0
    streams = capsys.readouterr()

    assert "not remembered" in streams.err
    assert "31.0 GB/s" in streams.out


def test_a_damaged_store_is_said_and_the_machine_still_shown(
    here: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    store_of(here).parent.mkdir(parents=True)
    store_of(here).write_text("{", encoding="utf-8")

    found = answer(capsys)

    assert any("left out" in line for line in found["notes"])
    assert found["tiers"]


def test_calibrating_again_keeps_the_figures_of_another_disk(
    here: Settings, measuring: None, capsys: pytest.CaptureFixture[str]
) -> None:
    key = key_here(probed(here, here.hub_cache))
    old = Measurements("2026-01-01", disks={"/dev/other ext4": DISK})
    measurements.save(store_of(here), key, old)

    assert execute(["hardware", "--calibrate"]) == 0

    found = measurements.load(store_of(here), key).found
    assert found is not None
    assert found.disks["/dev/other ext4"] == DISK
    assert len(found.disks) == 2


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a GPU that this machine seems to have."""
    gpu = Gpu("NVIDIA GeForce RTX 4090", "cuda", 24 << 30, 23 << 30, "580.65")

    def probe(places: list[Path]) -> Machine:
        return replace(real(places), gpus=(gpu,))

    real = prober.probe
    monkeypatch.setattr(prober, "probe", probe)
    return gpu.name


def test_what_a_backend_measures_of_a_gpu_is_remembered_and_shown(
    here: Settings,
    measuring: None,
    with_gpu: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def calibrated(seconds: float, say: Callable[[str], None]) -> dict[str, DeviceFigures]:
        # By now, a driver that ends the process costs the other figures nothing.
        assert measurements.load(store_of(here), key_here(probed(here, here.hub_cache))).found
        say(f"measuring gpu: {with_gpu} for {seconds:g} s at most")
        speed = {"Q4_K": Speed(812.5, "measured")}
        prompt = {"Q4_K": Speed(143.5, "measured")}
        return {with_gpu: DeviceFigures(speed, prompt, Speed(25.5, "measured"))}

    monkeypatch.setattr(llamacpp, "calibrate", calibrated)

    assert execute(["hardware", "--calibrate"]) == 0
    streams = capsys.readouterr()
    found = answer(capsys)

    assert f"measuring gpu: {with_gpu} for 8 s" in streams.err
    assert "812.5 GB/s" in streams.out
    assert "143.5 TFLOP/s" in streams.out
    card = found["tiers"][0]
    figures = [card[name] for name in ("read", "flops", "link")]
    assert [figure["value"] for figure in figures] == [812.5, 143.5, 25.5]
    assert {figure["basis"] for figure in figures} == {"measured"}
    assert found["measurements"]["devices"][with_gpu]["link"] == 25.5


def test_a_gpu_that_no_backend_measured_is_said_and_what_was_known_of_it_stays(
    here: Settings, measuring: None, with_gpu: str, capsys: pytest.CaptureFixture[str]
) -> None:
    known = {with_gpu: MeasuredDevice({"F16": 900.0})}
    key = key_here(probed(here, here.hub_cache))
    measurements.save(store_of(here), key, Measurements("2026-01-01", devices=known))

    assert execute(["hardware", "--calibrate"]) == 0

    assert f"no installed backend measured {with_gpu}" in capsys.readouterr().err
    assert answer(capsys)["tiers"][0]["read"]["value"] == 900.0


def test_all_that_is_measured_takes_a_minute_at_most() -> None:
    points = len(disks.LARGE_DEPTHS) + len(disks.DEPTHS)
    disk = points * disks.POINT_SECONDS + disks._WRITE_SECONDS

    assert room.MEMORY_SECONDS + room.CPU_SECONDS + disk + room.DEVICES_SECONDS <= 60


def test_the_largest_models_are_offered_to_be_read(
    here: Settings, measuring: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered = list[Path]()

    def disk(
        place: Path, filesystem: str, *, files: list[Path], say: Callable[[str], None]
    ) -> MeasuredDisk:
        offered.extend(files)
        assert place.is_dir()
        return DISK

    snapshot = tmp_path / "hub" / "models--org--repo" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    for name, length in (("small.gguf", 10), ("large.gguf", 1000)):
        (snapshot / name).write_bytes(b"x" * length)
    monkeypatch.setattr(room, "measure_disk", disk)

    assert execute(["hardware", "--calibrate"]) == 0

    assert [path.name for path in offered] == ["large.gguf", "small.gguf"]
