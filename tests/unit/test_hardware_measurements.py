"""What was measured is found again, by what it holds for; a damaged file costs nothing else."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from localrun.hardware import measurements as room
from localrun.hardware.machine import Cpu, Gpu, Machine, Memory
from localrun.hardware.measurements import (
    Key,
    MeasuredDevice,
    MeasuredDisk,
    Measurements,
    key_of,
    load,
    save,
)

GIB = 1 << 30
KEY = Key("AMD Ryzen 9", 32, 64, ("NVIDIA GeForce RTX 4090",), "580.65", "llama.cpp 0.3.36")
SOME = Measurements(
    "2026-11-02",
    ram_read={1: 20.5, 16: 60.0},
    ram_copy={16: 30.0},
    gemv={"Q4_K": 41.0, "F16": 55.0},
    core_gemv={"Q4_K": 11.0},
    prefill={"Q4_K": 900.0},
    disks={"/dev/nvme0n1p2 ext4": MeasuredDisk({1: 12e3, 256: 4e5}, {1: 5.0, 4: 6.2})},
    devices={
        "NVIDIA GeForce RTX 4090": MeasuredDevice(
            {"Q4_K": 790.0, "F16": 910.0, "Q8_0": 880.0}, {"Q4_K": 170.0, "F16": 150.0}, 25.0
        ),
        "AMD Radeon": MeasuredDevice({"F16": 500.0}),
    },
)


def test_what_was_saved_is_loaded_again(tmp_path: Path) -> None:
    path = tmp_path / "state" / room.FILE_NAME

    save(path, KEY, SOME)

    assert load(path, KEY) == room.Loaded(SOME)
    assert os.listdir(path.parent) == [room.FILE_NAME]
    assert path.stat().st_mode & 0o077 == 0


def test_a_file_from_before_devices_were_measured_still_holds(tmp_path: Path) -> None:
    path = tmp_path / room.FILE_NAME
    save(path, KEY, SOME)
    document = json.loads(path.read_text())
    del document["machines"][0]["measurements"]["devices"]
    path.write_text(json.dumps(document))

    assert load(path, KEY) == room.Loaded(replace(SOME, devices={}))


def test_a_devices_figures_are_its_middle_read_its_slowest_prompt_and_its_link() -> None:
    figures, other = SOME.device("NVIDIA GeForce RTX 4090"), SOME.device("AMD Radeon")

    assert figures is not None
    speeds = (figures.read, figures.flops, figures.link)
    assert [speed and (speed.value, speed.basis) for speed in speeds] == [
        (880.0, "measured"), (150.0, "measured"), (25.0, "measured")
    ]  # fmt: skip
    assert figures.measured() == SOME.devices["NVIDIA GeForce RTX 4090"]
    assert other is not None
    assert other.read is not None
    assert (other.read.value, other.flops, other.link) == (500.0, None, None)
    assert SOME.device("another") is None


@pytest.mark.parametrize(
    "other",
    [
        replace(KEY, library="llama.cpp 0.3.37"),
        replace(KEY, driver="590.1"),
        replace(KEY, memory_gib=128),
        replace(KEY, gpus=()),
        replace(KEY, cores=16),
    ],
)
def test_figures_hold_for_their_machine_driver_and_library(tmp_path: Path, other: Key) -> None:
    path = tmp_path / room.FILE_NAME
    newer = replace(SOME, date="2026-12-24")

    save(path, KEY, SOME)
    assert load(path, other).found is None
    save(path, other, newer)

    assert load(path, KEY).found == SOME
    assert load(path, other).found == newer


def test_a_new_measurement_replaces_the_old_of_its_key(tmp_path: Path) -> None:
    path = tmp_path / room.FILE_NAME

    save(path, KEY, SOME)
    save(path, KEY, replace(SOME, gemv={}))

    assert load(path, KEY).found == replace(SOME, gemv={})
    assert len(json.loads(path.read_text())["machines"]) == 1


def test_without_a_file_nothing_is_found_and_nothing_said(tmp_path: Path) -> None:
    assert load(tmp_path / "none.json", KEY) == room.Loaded(None)


def damaged(**changes: object) -> str:
    """A whole document with one machine, in which one field was changed."""
    entry = {
        "date": "2026-11-02",
        **{name: {} for name in ("ram_read", "ram_copy", "gemv", "core_gemv", "prefill", "disks")},
        **changes,
    }
    key = {"cpu": "c", "cores": 1, "memory_gib": 1, "gpus": [], "driver": "", "library": ""}
    return json.dumps({"version": 1, "machines": [{"key": key, "measurements": entry}]})


DAMAGED = {
    "empty": ("", "Invalid JSON"),
    "cut": ('{"version": 1, "machines": [', "Invalid JSON"),
    "not_text": ("\x00\x01", "Invalid JSON"),
    "a_list": ("[]", "an object"),
    "deep": ("[" * 100_000, "Invalid JSON"),
    "another_version": ('{"version": 2, "machines": []}', "version 2"),
    "a_key_too_much": ('{"version": 1, "machines": [], "x": 1}', "x: "),
    "a_field_missing": ('{"version": 1}', "machines: "),
    "a_word_for_a_speed": (damaged(gemv={"Q4_K": "fast"}), "gemv.Q4_K: "),
    "a_negative_speed": (damaged(gemv={"Q4_K": -1.0}), "Q4_K is -1.0, not a speed"),
    "no_speed": (damaged(ram_read={"4": 0.0}), "4 is 0.0, not a speed"),
    "not_a_number": (damaged(prefill={"F16": float("nan")}), "F16 is nan"),
    "infinite": (damaged(disks={"d": {"iops": {"1": float("inf")}, "large": {}}}), "1 is inf"),
    "a_link_of_nothing": (
        damaged(devices={"d": {"gemv": {}, "prefill": {}, "link": 0.0}}),
        "link is 0.0, not a speed",
    ),
    "a_device_without_types": (damaged(devices={"d": {}}), "devices.d.gemv"),
    "a_depth_that_is_none": (damaged(ram_read={"many": 3.0}), "ram_read.many"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_left_out_with_a_note_and_written_anew(tmp_path: Path, case: str) -> None:
    text, said = DAMAGED[case]
    path = tmp_path / room.FILE_NAME
    path.write_text(text, encoding="utf-8")

    loaded = load(path, KEY)
    save(path, KEY, SOME)

    assert loaded.found is None
    assert str(path) in loaded.note
    assert said in loaded.note
    assert load(path, KEY) == room.Loaded(SOME)


def test_a_file_without_end_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / room.FILE_NAME
    with path.open("wb") as file:
        file.truncate(1 << 40)

    assert "more than" in load(path, KEY).note


def test_a_place_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    assert "directory" in load(tmp_path, KEY).note.lower()


def test_a_failed_save_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / room.FILE_NAME
    save(path, KEY, SOME)

    def fails(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="No space"):
        save(path, KEY, replace(SOME, date="2027-01-01"))

    assert load(path, KEY).found == SOME
    assert os.listdir(tmp_path) == [room.FILE_NAME]


def test_a_key_is_what_the_machine_says_of_itself() -> None:
    machine = Machine(
        system="Linux",
        architecture="x86_64",
        cpu=Cpu("AMD Ryzen 9", 16, 32, 32),
        memory=Memory(64 * GIB - 300_000_000, GIB, GIB),
        gpus=(Gpu("NVIDIA GeForce RTX 4090", "cuda", 24 * GIB, 0, "580.65"),),
        disks=(),
    )

    assert key_of(machine, "llama.cpp 0.3.36") == KEY
