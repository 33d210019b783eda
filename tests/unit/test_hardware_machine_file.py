"""A machine in a TOML file: what it may hold, and what is refused by file and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from localrun.errors import UsageError
from localrun.hardware.machine import Machine
from localrun.hardware.machine_file import EXAMPLE, read_machine
from localrun.hardware.profiles import named

GIB = 1 << 30
RAM = '[ram]\ngb = 64\nddr = "ddr5-6000x2"\n'
CPU = "[cpu]\ncores = 16\n"


def machine(folder: Path, text: str) -> Machine:
    path = folder / "box.toml"
    path.write_text(text, encoding="utf-8")
    return read_machine(path)


def test_the_example_that_is_printed_is_a_machine(tmp_path: Path) -> None:
    found = machine(tmp_path, EXAMPLE)

    assert found.name == "workstation"
    assert [tier.name for tier in found.tiers] == ["vram:0", "vram:1", "vram:2", "ram", "disk"]
    assert found.cpu.cores == 16
    odd, ram, disk = found.tiers[2:]
    assert (odd.capacity_bytes, odd.read.value, odd.read.basis) == (48 * GIB, 1008.0, "specified")
    assert odd.flops is not None
    assert odd.link is not None
    assert (odd.flops.value, odd.link.value) == (147.0, 13.0)
    assert (ram.capacity_bytes, ram.read.value) == (128 * GIB, 96.0)
    assert (disk.capacity_bytes, disk.read.value) == (2 * 10**12, 6.4)
    assert found.disk_reads is not None
    assert [found.disk_reads.iops[d].value for d in (1, 64, 256)] == [16e3, 5e5, 5e5]
    assert not found.notes


def test_slugs_in_a_file_give_the_tiers_of_the_machine_by_that_name(tmp_path: Path) -> None:
    text = '[[gpu]]\nslug = "rtx-3090"\ncount = 2\n' + RAM + CPU

    assert machine(tmp_path, text).tiers == named("2xrtx-3090+cpu:16+ddr5-6000x2:64").tiers


def test_a_mac_in_a_file_is_that_mac(tmp_path: Path) -> None:
    text = '[mac]\nslug = "m4-max-40c"\nmemory_gb = 64\n'

    found = machine(tmp_path, text)

    assert found.tiers == named("m4-max-40c-64").tiers
    assert found.name == "box"
    assert machine(tmp_path, '[mac]\nslug = "m1"').memory.total == 16 * GIB


def test_a_figure_beside_a_slug_replaces_the_slugs(tmp_path: Path) -> None:
    text = '[[gpu]]\nslug = "rtx-4090"\nmemory_gb = 48\nbandwidth_gbps = 900\n' + RAM

    tier = machine(tmp_path, text).tiers[0]

    assert (tier.capacity_bytes, tier.read.value, tier.read.source) == (48 * GIB, 900.0, "box.toml")
    assert tier.flops is not None
    assert tier.flops.value == 165.0


def test_what_is_left_out_is_assumed_with_a_note(tmp_path: Path) -> None:
    found = machine(tmp_path, '[[gpu]]\nslug = "rtx-4090"\n' + RAM)

    assert found.cpu.cores == 8
    assert len(found.notes) == 2
    assert found.tiers[-1].read.basis == "assumed"


BAD = {
    "no_ram": (CPU, "ram: missing"),
    "no_cpu_and_no_gpu": (RAM, "cpu: missing"),
    "nothing": ("", "ram: missing"),
    "unknown_key": ("speed = 3\n" + RAM + CPU, "speed: unknown key"),
    "unknown_key_inside": (RAM + CPU + "sockets = 2\n", "cpu.sockets: unknown key"),
    "unknown_section": (RAM + CPU + "[npu]\ntops = 40\n", "npu: unknown key"),
    "missing_key": ("[ram]\nddr = 'ddr5-6000x2'\n" + CPU, "ram.gb: missing"),
    "missing_cores": (RAM + "[cpu]\n", "cpu.cores: missing"),
    "missing_disk_speed": (RAM + CPU + "[disk]\niops = 5\n", "disk.read_gbps: missing"),
    "text_for_a_number": ("[ram]\ngb = '64'\nddr = 'ddr5-6000x2'\n" + CPU, "ram.gb: "),
    "truth_for_a_number": ("[ram]\ngb = true\nddr = 'ddr5-6000x2'\n" + CPU, "ram.gb: "),
    "date_for_a_number": ("[ram]\ngb = 1979-05-27\nddr = 'ddr5-6000x2'\n" + CPU, "ram.gb: "),
    "a_number_for_a_section": ("gpu = 1\n" + RAM, "gpu: "),
    "a_section_for_a_list": ("[gpu]\nslug = 'rtx-4090'\n" + RAM, "gpu: "),
    "a_fraction_of_a_core": (RAM + "[cpu]\ncores = 1.5\n", "cpu.cores: "),
    "negative": ("[ram]\ngb = -64\nddr = 'ddr5-6000x2'\n" + CPU, "ram.gb: -64"),
    "zero": (RAM + "[cpu]\ncores = 0\n", "cpu.cores: 0"),
    "not_a_number": ("[ram]\ngb = nan\nddr = 'ddr5-6000x2'\n" + CPU, "ram.gb: nan"),
    "infinite": (RAM + CPU + "[disk]\nread_gbps = inf\n", "disk.read_gbps: inf"),
    "absurd": ("[ram]\ngb = 1000000000\nddr = 'ddr5-6000x2'\n" + CPU, "ram.gb: 1e+09"),
    "two_speeds": (RAM + "bandwidth_gbps = 96\n" + CPU, "ram: needs bandwidth_gbps or ddr"),
    "no_speed": ("[ram]\ngb = 64\n" + CPU, "ram: needs bandwidth_gbps or ddr"),
    "no_such_ddr": ("[ram]\ngb = 64\nddr = 'fast'\n" + CPU, "ram.ddr: 'fast'"),
    "no_such_gpu": ("[[gpu]]\nslug = 'rtx-409'\n" + RAM, "gpu[0].slug: no part is called"),
    "a_mac_as_gpu": ("[[gpu]]\nslug = 'm4'\n" + RAM, "gpu[0].slug: no part is called"),
    "a_gpu_of_nothing": ("[[gpu]]\n" + RAM, "gpu[0].memory_gb: missing"),
    "a_gpu_without_speed": (
        "[[gpu]]\nslug = 'rtx-4090'\n[[gpu]]\nmemory_gb = 8\n" + RAM,
        "gpu[1].bandwidth_gbps: missing",
    ),
    "no_gpus": ("[[gpu]]\nslug = 'rtx-4090'\ncount = 0\n" + RAM, "gpu[0].count: 0"),
    "too_many": (("[[gpu]]\nslug = 'rtx-4090'\ncount = 9\n" * 2) + RAM, "gpu: 18 cards"),
    "a_mac_with_ram": ("[mac]\nslug = 'm4'\n" + RAM, "ram: a mac has its own"),
    "a_mac_with_gpu": (
        "[mac]\nslug = 'm4'\n[[gpu]]\nslug = 'rtx-4090'\n",
        "gpu: a mac has its own",
    ),
    "no_such_mac": ("[mac]\nslug = 'm9'\n", "mac.slug: no part is called"),
    "a_mac_never_sold": ("[mac]\nslug = 'm4'\nmemory_gb = 512\n", "mac.memory_gb: 512"),
    "not_toml": ("gb == 3", "not TOML"),
    "not_text": ("\x00", "not TOML"),
    "twice": (RAM + RAM, "not TOML"),
    "deep_keys": (".".join("a" * 3000) + " = 1\n" + RAM + CPU, "not TOML"),
    "endless_digits": (f"[ram]\ngb = {'9' * 5000}\n" + CPU, "not TOML"),
    "no_speed_to_speak_of": (
        "[ram]\ngb = 64\nbandwidth_gbps = 1e-300\n" + CPU,
        "ram.bandwidth_gbps: 1e-300",
    ),
    "a_disk_that_stands": (RAM + CPU + "[disk]\nread_gbps = 1e-300\n", "disk.read_gbps: 1e-300"),
    "endless": ("#" * (1 << 21), "more than"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_describes_no_machine_is_refused_naming_file_and_key(
    tmp_path: Path, case: str
) -> None:
    text, said = BAD[case]

    with pytest.raises(UsageError) as refused:
        machine(tmp_path, text)

    assert refused.value.message.startswith(f"{tmp_path / 'box.toml'}: {said}")
    assert refused.value.hint


def test_a_file_that_is_not_there_or_no_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(UsageError, match="directory") as refused:
            read_machine(path)

        assert str(path) in refused.value.message


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "box.toml"
    path.write_bytes(b"\xff\xfe")

    with pytest.raises(UsageError, match="not TOML"):
        read_machine(path)
