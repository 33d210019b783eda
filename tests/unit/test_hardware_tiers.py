"""Tiers of a probed machine: which part a GPU is, what is guessed, what was measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from localrun.hardware.gpu_names import gpu_part, mac_part
from localrun.hardware.machine import Cpu, Disk, Gpu, Machine, Memory
from localrun.hardware.measurements import MeasuredDevice, MeasuredDisk, Measurements
from localrun.hardware.tiers import disk_key, with_tiers

MIB, GIB = 1 << 20, 1 << 30
PLACE = Path("/home/someone/models")
DISK = Disk(str(PLACE), "/dev/nvme0n1p2", "ext4", 1000 * GIB, 300 * GIB, "nvme")
PC = Machine(
    system="Linux",
    architecture="x86_64",
    cpu=Cpu("AMD Ryzen 9", 16, 32, 32, ("avx2", "avx512_bf16")),
    memory=Memory(64 * GIB, 48 * GIB, 64 * GIB),
    gpus=(),
    disks=(Disk("/other", "/dev/sda1", "ext4", GIB, GIB, "hdd"), DISK),
)
RTX_4090 = Gpu("NVIDIA GeForce RTX 4090", "cuda", 24564 * MIB, 23000 * MIB, "580.65")
MEASURED = Measurements(
    "2026-11-02",
    ram_read={1: 20.0, 8: 61.5, 16: 60.0},
    gemv={"Q4_K": 41.0},
    core_gemv={"Q4_K": 11.0},
    prefill={"Q4_K": 900.0},
    disks={"/dev/nvme0n1p2 ext4": MeasuredDisk({1: 12e3, 64: 4e5}, {1: 5.0, 2: 6.3, 4: 6.2})},
)

NAMES = {
    "NVIDIA GeForce RTX 4090": (24564, "rtx-4090"),
    "NVIDIA GeForce RTX 4090 D": (24564, "rtx-4090d"),
    "NVIDIA GeForce RTX 4090 D ": (49140, "rtx-4090d-48gb"),
    "NVIDIA GeForce RTX 4090 Laptop GPU": (16376, None),
    "NVIDIA GeForce RTX 3080 Ti Laptop GPU": (16384, None),
    "NVIDIA GeForce RTX 2050": (4096, "rtx-2050-laptop"),
    "NVIDIA GeForce RTX 3060": (12288, "rtx-3060-12gb"),
    "NVIDIA GeForce RTX 3060 ": (8192, None),
    "NVIDIA GeForce RTX 3080": (10240, "rtx-3080"),
    "NVIDIA GeForce RTX 3080 ": (12288, None),
    "NVIDIA GeForce RTX 3080  ": (20480, "rtx-3080-20gb"),
    "NVIDIA GeForce RTX 4060 Ti": (16380, "rtx-4060-ti-16gb"),
    "NVIDIA GeForce RTX 4070 Ti SUPER": (16376, "rtx-4070-ti-super"),
    "NVIDIA GeForce RTX 5090": (32607, "rtx-5090"),
    "NVIDIA RTX A6000": (46068, "rtx-a6000"),
    "NVIDIA RTX 6000 Ada Generation": (49140, "rtx-6000-ada"),
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": (97887, "rtx-pro-6000"),
    "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition": (97887, "rtx-pro-6000-max-q"),
    "Tesla T4": (15360, "t4"),
    "NVIDIA L4": (23034, "l4"),
    "NVIDIA L40S": (46068, "l40s"),
    "NVIDIA A100-SXM4-80GB": (81920, "a100-sxm-80gb"),
    "NVIDIA A100-PCIE-40GB": (40960, "a100-pcie-40gb"),
    "Tesla V100-SXM2-32GB": (32768, "v100-sxm2-32gb"),
    "NVIDIA H100 80GB HBM3": (81559, "h100-sxm-80gb"),
    "NVIDIA H100 PCIe": (81559, "h100-pcie-80gb"),
    "NVIDIA H100 80GB HBM3 MIG 1g.10gb": (9856, None),
    "NVIDIA H200": (143771, "h200"),
    "NVIDIA GB10": (0, "gb10"),
    "AMD Radeon RX 7900 XTX": (24560, "rx-7900-xtx"),
    "AMD Instinct MI300X OAM": (196592, "mi300x"),
    "Intel(R) Arc(TM) B580 Graphics": (12216, "arc-b580"),
    "AMD GPU 0x744c": (24560, None),
    "": (0, None),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_gpu_is_the_part_of_its_name_and_memory_or_none(name: str) -> None:
    mib, slug = NAMES[name]

    part = gpu_part(name, mib * MIB)

    assert (part.slug if part else None) == slug


@pytest.mark.parametrize(
    ("chip", "cores", "slug"),
    [
        ("Apple M4 Max", 40, "m4-max-40c"),
        ("Apple M4 Max", 32, "m4-max-32c"),
        ("Apple M1", 8, "m1"),
        ("Apple M3 Ultra", 60, "m3-ultra-60c"),
        ("Apple M3 Max", 0, "m3-max-30c"),
        ("Apple M2 Ultra", 0, "m2-ultra"),
        ("Apple M5 Pro", 20, "m5-pro"),
        ("Apple M9 Max", 40, None),
        ("Intel(R) Core(TM) i9", 0, None),
        ("", 0, None),
    ],
)
def test_a_chip_is_told_from_its_sisters_by_the_gpu_cores(
    chip: str, cores: int, slug: str | None
) -> None:
    part = mac_part(chip, cores)

    assert (part.slug if part else None) == slug


def test_a_machine_without_gpu_has_ram_and_the_disk_where_models_lie() -> None:
    machine = with_tiers(PC, None, model_place=PLACE)

    ram, disk = machine.tiers
    assert (ram.name, ram.kind, ram.capacity_bytes) == ("ram", "ram", 64 * GIB)
    assert (ram.read.value, ram.read.basis) == (76.8, "assumed")
    assert ram.usable_bytes == 47 * GIB
    assert (disk.kind, disk.capacity_bytes, disk.usable_bytes) == ("disk", 1000 * GIB, 300 * GIB)
    assert (disk.read.value, disk.read.basis) == (6.0, "assumed")
    assert machine.compute is not None
    assert machine.compute.cores == 16
    assert not machine.compute.gemv
    assert sum("--calibrate" in note for note in machine.notes) == 2


def test_a_known_gpu_brings_its_vendors_figures_and_its_free_memory() -> None:
    machine = with_tiers(replace(PC, gpus=(RTX_4090, RTX_4090)), None, model_place=PLACE)

    first, second = machine.tiers[:2]
    assert (first.name, second.name) == ("vram:0", "vram:1")
    assert (first.read.value, first.read.basis) == (1008.0, "specified")
    assert (first.capacity_bytes, first.usable_bytes) == (24564 * MIB, (23000 - 256) * MIB)
    assert first.link is not None
    assert first.flops is not None
    assert [tier.kind for tier in machine.tiers] == ["vram", "vram", "ram", "disk"]


def test_an_unknown_gpu_is_guessed_from_its_memory_and_said_to_be() -> None:
    laptop = replace(RTX_4090, name="NVIDIA GeForce RTX 4090 Laptop GPU", total=16 * GIB)

    machine = with_tiers(replace(PC, gpus=(laptop,)), None, model_place=PLACE)

    tier = machine.tiers[0]
    assert (tier.read.value, tier.read.basis, tier.flops) == (448.0, "assumed", None)
    assert tier.link is not None
    assert "guessed" in machine.notes[0]


def test_a_gpu_that_borrows_a_little_memory_is_no_tier() -> None:
    borrowed = Gpu("AMD GPU 0x164e", "rocm", 512 * MIB, 500 * MIB, "amdgpu")

    machine = with_tiers(replace(PC, gpus=(borrowed, RTX_4090)), None, model_place=PLACE)

    assert [tier.name for tier in machine.tiers] == ["vram:0", "ram", "disk"]
    assert machine.tiers[0].device == RTX_4090.name
    assert any("left out" in note for note in machine.notes)


def test_a_known_gpu_whose_driver_hides_its_memory_has_its_parts() -> None:
    silent = replace(RTX_4090, total=0, free=0)

    machine = with_tiers(replace(PC, gpus=(silent,)), None, model_place=PLACE)

    assert machine.tiers[0].capacity_bytes == 24 * GIB


def test_a_control_groups_limit_bounds_the_ram() -> None:
    limited = replace(PC, memory=Memory(64 * GIB, 48 * GIB, 8 * GIB))

    ram = with_tiers(limited, None, model_place=PLACE).tiers[0]

    assert ram.capacity_bytes == 8 * GIB
    assert ram.usable_bytes == 8 * GIB - 512 * MIB


def test_a_mac_has_one_pool_and_its_own_disk() -> None:
    mac = replace(
        PC,
        system="Darwin",
        architecture="arm64",
        cpu=Cpu("Apple M4 Max", 16, 16, 12),
        memory=Memory(128 * GIB, 110 * GIB, 128 * GIB),
        gpus=(Gpu("Apple M4 Max", "metal", 128 * GIB, 110 * GIB, "metal4", True, 40),),
        disks=(replace(DISK, device="/dev/disk3s5", filesystem="apfs", kind="unknown"),),
    )

    machine = with_tiers(mac, replace(MEASURED, disks={}), model_place=PLACE)

    pool, disk = machine.tiers
    assert (pool.name, pool.capacity_bytes, pool.usable_bytes) == ("unified", 128 * GIB, 96 * GIB)
    # What the CPU reads is not what the GPU gets of the same memory.
    assert (pool.read.value, pool.read.basis) == (546.0, "specified")
    assert disk.read.value == 5.5
    assert machine.compute is not None
    assert machine.compute.cores == 12


def test_a_pc_of_one_pool_is_not_held_to_metals_share() -> None:
    spark = replace(PC, gpus=(Gpu("NVIDIA GB10", "cuda", 0, 0, "580", unified=True),))

    pool = with_tiers(spark, None, model_place=PLACE).tiers[0]

    assert (pool.kind, pool.read.value) == ("unified", 273.0)
    assert pool.usable_bytes == 47 * GIB


@pytest.mark.parametrize(
    ("kind", "gbps", "single"), [("hdd", 0.15, 100), ("ssd", 0.5, 8000), ("unknown", 0.5, 8000)]
)
def test_a_disk_is_assumed_by_its_kind(kind: str, gbps: float, single: int) -> None:
    machine = with_tiers(
        replace(PC, disks=(replace(DISK, kind=kind),)), None, model_place=Path("/not/probed")
    )

    assert machine.tiers[-1].read.value == gbps
    assert machine.disk_reads is not None
    assert machine.disk_reads.iops[1].value == single


def test_what_was_measured_replaces_every_guess() -> None:
    machine = with_tiers(PC, MEASURED, model_place=PLACE)

    ram, disk = machine.tiers
    assert (ram.read.value, ram.read.basis) == (61.5, "measured")
    assert (disk.read.value, disk.read.basis) == (6.3, "measured")
    assert "2026-11-02" in ram.read.source
    assert machine.disk_reads is not None
    assert {d: s.value for d, s in machine.disk_reads.iops.items()} == {1: 12e3, 64: 4e5}
    assert machine.compute is not None
    assert machine.compute.gemv["Q4_K"].basis == "measured"
    assert machine.compute.core_gemv["Q4_K"].value == 11.0
    assert machine.compute.prefill["Q4_K"].value == 900.0
    assert not machine.notes


def test_another_disks_measurements_are_not_taken() -> None:
    elsewhere = replace(PC, disks=(replace(DISK, device="/dev/nvme1n1p1"),))

    machine = with_tiers(elsewhere, MEASURED, model_place=PLACE)

    assert machine.tiers[-1].read.basis == "assumed"
    assert disk_key(DISK) in MEASURED.disks


CARD = MeasuredDevice({"Q4_K": 790.0, "F16": 910.0, "Q8_0": 880.0}, {"F16": 150.0}, 25.0)


def measured_devices(**devices: MeasuredDevice) -> Measurements:
    return replace(MEASURED, devices={name.replace("_", " "): it for name, it in devices.items()})


def figures(machine: Machine, at: int = 0) -> list[tuple[float, str] | None]:
    tier = machine.tiers[at]
    speeds = (tier.read, tier.flops, tier.link)
    return [(speed.value, speed.basis) if speed else None for speed in speeds]


def test_a_cards_measured_figures_replace_its_vendors_on_each_card_of_the_name() -> None:
    measured = measured_devices(NVIDIA_GeForce_RTX_4090=CARD, other=MeasuredDevice({"F16": 1.0}))

    machine = with_tiers(replace(PC, gpus=(RTX_4090, RTX_4090)), measured, model_place=PLACE)

    for at in (0, 1):
        assert figures(machine, at) == [
            (880.0, "measured"),
            (150.0, "measured"),
            (25.0, "measured"),
        ]
    assert "2026-11-02" in machine.tiers[0].read.source


def test_what_was_not_measured_of_a_card_stays_its_vendors() -> None:
    measured = measured_devices(NVIDIA_GeForce_RTX_4090=MeasuredDevice({"F16": 910.0}))

    machine = with_tiers(replace(PC, gpus=(RTX_4090,)), measured, model_place=PLACE)

    read, flops, link = figures(machine)
    assert read == (910.0, "measured")
    assert flops is not None
    assert link is not None
    assert "measured" not in (flops[1], link[1])


def test_one_card_that_another_driver_calls_otherwise_is_the_one_that_was_measured() -> None:
    card = Gpu("AMD GPU 0x744c", "rocm", 24 * GIB, 23 * GIB, "amdgpu")
    borrowed = Gpu("AMD GPU 0x164e", "rocm", 512 * MIB, 500 * MIB, "amdgpu")
    measured = measured_devices(AMD_Radeon_RX_7900_XTX=CARD)

    one = with_tiers(replace(PC, gpus=(borrowed, card)), measured, model_place=PLACE)
    two = with_tiers(replace(PC, gpus=(card, RTX_4090)), measured, model_place=PLACE)

    assert figures(one)[0] == (880.0, "measured")
    assert not any("guessed" in note for note in one.notes)
    assert {tier.read.basis for tier in two.tiers[:2]} == {"assumed", "specified"}


def test_a_pools_measured_figures_are_those_of_its_gpu() -> None:
    spark = replace(PC, gpus=(Gpu("NVIDIA GB10", "cuda", 0, 0, "580", unified=True),))

    pool = with_tiers(spark, measured_devices(NVIDIA_GB10=CARD), model_place=PLACE)

    assert figures(pool) == [(880.0, "measured"), (150.0, "measured"), None]
