"""CPUs, memory, GPUs and disks of Linux machines, read from trees of files that we lay out."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from localrun.hardware import gpus as gpus_module
from localrun.hardware.cgroup import CgroupLimits, cgroup_limits
from localrun.hardware.cpus import cpu, usable_cpus
from localrun.hardware.disks import disk, disk_kind
from localrun.hardware.gpus import gpus, nvidia_gpus
from localrun.hardware.machine import Gpu, Memory
from localrun.hardware.memory import limited, memory
from localrun.hardware.probe import probe

GIB = 1024**3
V1_NONE = "9223372036854771712"


def lay(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")
    return root


CGROUPS = {
    "none": ({}, CgroupLimits()),
    "v2_two_cpus": (
        {
            "proc/self/cgroup": "0::/",
            "sys/fs/cgroup/cpu.max": "200000 100000",
            "sys/fs/cgroup/memory.max": str(4 * GIB),
            "sys/fs/cgroup/memory.current": str(GIB),
            "sys/fs/cgroup/memory.stat": f"anon 5\ninactive_file {GIB // 4}\nactive_file 7",
        },
        CgroupLimits(2.0, 4 * GIB, GIB - GIB // 4),
    ),
    "v2_max": (
        {
            "proc/self/cgroup": "0::/user.slice",
            "sys/fs/cgroup/user.slice/cpu.max": "max 100000",
            "sys/fs/cgroup/user.slice/memory.max": "max",
        },
        CgroupLimits(),
    ),
    "v2_fraction": (
        {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "150000 100000"},
        CgroupLimits(1.5),
    ),
    "v2_limit_on_an_ancestor": (
        {
            "proc/self/cgroup": "0::/a/b",
            "sys/fs/cgroup/a/b/cpu.max": "max 100000",
            "sys/fs/cgroup/a/b/memory.max": str(9 * GIB),
            "sys/fs/cgroup/a/cpu.max": "50000 100000",
            "sys/fs/cgroup/a/memory.max": str(2 * GIB),
            "sys/fs/cgroup/a/memory.current": str(GIB),
        },
        CgroupLimits(0.5, 2 * GIB, GIB),
    ),
    "v2_outside_the_namespace": (
        {"proc/self/cgroup": "0::/../../x", "sys/fs/cgroup/cpu.max": "100000 100000"},
        CgroupLimits(1.0),
    ),
    "v1": (
        {
            "proc/self/cgroup": "4:memory:/docker/ab\n3:cpu,cpuacct:/docker/ab\n1:name=systemd:/",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "300000",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/memory/docker/ab/memory.limit_in_bytes": str(GIB),
            "sys/fs/cgroup/memory/docker/ab/memory.usage_in_bytes": str(GIB // 2),
            "sys/fs/cgroup/memory/docker/ab/memory.stat": "total_inactive_file 4096",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": V1_NONE,
        },
        CgroupLimits(3.0, GIB, GIB // 2 - 4096),
    ),
    "v1_without_limits": (
        {
            "proc/self/cgroup": "4:memory:/\n3:cpu:/",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": V1_NONE,
        },
        CgroupLimits(),
    ),
    "hybrid": (
        {
            "proc/self/cgroup": "3:cpu,cpuacct:/\n0::/x",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "100000",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/unified/x/memory.max": str(GIB),
        },
        CgroupLimits(1.0, GIB),
    ),
    "broken_files": (
        {
            "proc/self/cgroup": "nonsense\n0::/",
            "sys/fs/cgroup/cpu.max": "many of them",
            "sys/fs/cgroup/memory.max": "a lot",
            "sys/fs/cgroup/memory.stat": "inactive_file",
        },
        CgroupLimits(),
    ),
    "period_of_zero": (
        {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "100000 0"},
        CgroupLimits(),
    ),
    "quota_without_a_period": (
        {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "100000"},
        CgroupLimits(),
    ),
}


@pytest.mark.parametrize("name", CGROUPS)
def test_the_limits_of_a_control_group_are_read(name: str, tmp_path: Path) -> None:
    files, expected = CGROUPS[name]
    lay(tmp_path, files)

    assert cgroup_limits(tmp_path / "proc", tmp_path / "sys") == expected


@pytest.mark.parametrize(
    ("affinity", "quota", "expected"),
    [(8, None, 8), (8, 2.0, 2), (8, 1.5, 2), (8, 0.2, 1), (1, None, 1), (1, 4.0, 1), (2, 64.0, 2)],
)
def test_usable_cpus_are_the_lesser_of_affinity_and_quota(
    affinity: int, quota: float | None, expected: int
) -> None:
    assert usable_cpus(affinity, quota) == expected


X86 = """processor\t: 0
vendor_id\t: AuthenticAMD
model\t\t: 97
model name\t: AMD Ryzen 9 7950X 16-Core Processor
flags\t\t: fpu vme pni ssse3 fma avx f16c avx2 avx512f avx512_vnni

processor\t: 1
model name\t: AMD Ryzen 9 7950X 16-Core Processor
flags\t\t: fpu"""
ARM = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 asimdhp asimddp
CPU part\t: 0xd0b

Revision\t: c04170
Model\t\t: Raspberry Pi 5 Model B Rev 1.0"""


@pytest.mark.parametrize(
    ("cpuinfo", "name", "flags"),
    [
        (
            X86,
            "AMD Ryzen 9 7950X 16-Core Processor",
            ("avx", "avx2", "avx512_vnni", "avx512f", "f16c", "fma", "ssse3"),
        ),
        (ARM, "Raspberry Pi 5 Model B Rev 1.0", ("asimd", "asimddp", "asimdhp")),
    ],
    ids=["x86", "arm"],
)
def test_the_name_and_the_flags_that_matter_are_read(
    cpuinfo: str, name: str, flags: tuple[str, ...], tmp_path: Path
) -> None:
    lay(tmp_path, {"proc/cpuinfo": cpuinfo})
    found = cpu(tmp_path / "proc", tmp_path / "sys")

    assert (found.name, found.flags) == (name, flags)
    assert 1 <= found.usable <= found.logical


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_a_process_held_on_one_cpu_uses_one(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert cpu(tmp_path, tmp_path).usable == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("cgroup", "expected"),
    [
        (CgroupLimits(), Memory(16 * GIB, 8 * GIB, 16 * GIB)),
        (CgroupLimits(memory=64 * GIB), Memory(16 * GIB, 8 * GIB, 16 * GIB)),
        (CgroupLimits(memory=4 * GIB, memory_used=GIB), Memory(16 * GIB, 3 * GIB, 4 * GIB)),
        (CgroupLimits(memory=10 * GIB, memory_used=GIB), Memory(16 * GIB, 8 * GIB, 10 * GIB)),
        (CgroupLimits(memory=4 * GIB), Memory(16 * GIB, 4 * GIB, 4 * GIB)),
        (CgroupLimits(memory=GIB, memory_used=2 * GIB), Memory(16 * GIB, 0, GIB)),
    ],
    ids=["none", "wider", "narrower", "machine_is_fuller", "use_unknown", "over_its_limit"],
)
def test_memory_is_the_lesser_of_machine_and_control_group(
    cgroup: CgroupLimits, expected: Memory
) -> None:
    assert limited(16 * GIB, 8 * GIB, cgroup) == expected


def test_a_control_group_narrows_this_machine(tmp_path: Path) -> None:
    files, _ = CGROUPS["v1"]
    lay(tmp_path, {**files, "sys/fs/cgroup/memory/memory.limit_in_bytes": "1048576"})
    found = memory(tmp_path / "proc", tmp_path / "sys")

    assert (found.limit, found.available) == (1_048_576, 1_048_576)


class FakeNvml:
    """The part of pynvml that is called, answering for the devices given."""

    class NVMLError(Exception):
        pass

    class NVMLError_NotSupported(NVMLError):
        pass

    def __init__(self, devices: list[Any], *, start: str = "", count: str = "") -> None:
        self.devices, self.start, self.count, self.open = devices, start, count, 0

    def nvmlInit(self) -> None:
        if self.start:
            raise self.NVMLError(self.start)
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.65.06"

    def nvmlDeviceGetCount(self) -> int:
        if self.count:
            raise self.NVMLError(self.count)
        return len(self.devices)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetName(self, handle: int) -> str | bytes:
        name: str | bytes = self.devices[handle][0]
        return name

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        _, total, free = self.devices[handle]
        if total is None:
            raise self.NVMLError_NotSupported("Not Supported")
        return SimpleNamespace(total=total, free=free)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNvml]:
    fake = FakeNvml([])
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    yield fake
    assert fake.open == 0


def test_nvml_names_its_devices(nvml: FakeNvml) -> None:
    nvml.devices = [
        ("NVIDIA GeForce RTX 4090", 24 * GIB, 23 * GIB),
        (b"Tesla P40", 24 * GIB, GIB),
        ("NVIDIA GB10", None, None),
    ]

    assert nvidia_gpus() == (
        (
            Gpu("NVIDIA GeForce RTX 4090", "cuda", 24 * GIB, 23 * GIB, "580.65.06"),
            Gpu("Tesla P40", "cuda", 24 * GIB, GIB, "580.65.06"),
            Gpu("NVIDIA GB10", "cuda", 0, 0, "580.65.06", unified=True),
        ),
        (),
    )


def test_a_driver_that_is_not_there_is_no_gpu(nvml: FakeNvml) -> None:
    nvml.start = "NVML Shared Library Not Found"

    assert nvidia_gpus() == ((), ())


def test_a_driver_that_fails_is_noted(nvml: FakeNvml) -> None:
    nvml.count = "Unknown Error"

    assert nvidia_gpus() == ((), ("the NVIDIA driver answers with an error: Unknown Error",))


def test_without_the_nvml_package_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(gpus_module.importlib, "import_module", absent)

    assert nvidia_gpus() == ((), ())


AMD = {
    "class/drm/card1/device/vendor": "0x1002",
    "class/drm/card1/device/device": "0x744c",
    "class/drm/card1/device/mem_info_vram_total": str(24 * GIB),
    "class/drm/card1/device/mem_info_vram_used": str(GIB),
    "class/drm/card1-DP-1/device/vendor": "0x1002",
    "class/drm/renderD128/device/vendor": "0x1002",
    "class/drm/version": "drm 1.1.0 20060810",
}
CARDS: dict[str, tuple[dict[str, str], tuple[Gpu, ...], tuple[str, ...]]] = {
    "no_cards": ({}, (), ()),
    "amd": (AMD, (Gpu("AMD GPU 0x744c", "rocm", 24 * GIB, 23 * GIB, ""),), ()),
    "amd_with_a_product_name": (
        {**AMD, "class/drm/card1/device/product_name": "Radeon Pro W7900"},
        (Gpu("Radeon Pro W7900", "rocm", 24 * GIB, 23 * GIB, ""),),
        (),
    ),
    "amd_broken": (
        {**AMD, "class/drm/card1/device/mem_info_vram_total": "lots"},
        (Gpu("AMD GPU 0x744c", "rocm", 0, 0, ""),),
        ("the memory size of AMD GPU 0x744c cannot be read",),
    ),
    "intel": (
        {
            "class/drm/card0/device/vendor": "0x8086",
            "class/drm/card0/device/device": "0xe20b",
            "class/drm/card0/device/tile0/physical_vram_size_bytes": str(12 * GIB),
        },
        (Gpu("Intel GPU 0xe20b", "level-zero", 12 * GIB, 12 * GIB, ""),),
        (),
    ),
    "intel_without_memory_of_its_own": (
        {"class/drm/card0/device/vendor": "0x8086", "class/drm/card0/device/device": "0x9a49"},
        (Gpu("Intel GPU 0x9a49", "level-zero", 0, 0, ""),),
        ("the memory size of Intel GPU 0x9a49 cannot be read",),
    ),
    "nvidia_without_its_driver": (
        {"class/drm/card0/device/vendor": "0x10de"},
        (),
        ("an NVIDIA GPU is present, but its driver does not answer",),
    ),
    "a_virtual_card": ({"class/drm/card0/device/vendor": "0x1af4"}, (), ()),
}


@pytest.mark.parametrize("name", CARDS)
def test_cards_of_sysfs_are_named(name: str, nvml: FakeNvml, tmp_path: Path) -> None:
    files, expected, notes = CARDS[name]
    nvml.start = "Driver Not Loaded"

    assert gpus(lay(tmp_path, files)) == (expected, notes)


def test_the_kernel_driver_of_a_card_is_named(nvml: FakeNvml, tmp_path: Path) -> None:
    lay(tmp_path, {**AMD, "bus/pci/drivers/amdgpu/module/version": "6.12.12"})
    (tmp_path / "class/drm/card1/device/driver").symlink_to(tmp_path / "bus/pci/drivers/amdgpu")

    [card], _ = gpus(tmp_path)
    assert card.driver == "amdgpu 6.12.12"


@dataclass
class FakeMount:
    device: str
    mountpoint: str
    fstype: str


def block(sys_root: Path, chain: str, rotational: str | None = None) -> None:
    """Lay ``sda/sda1`` out as the kernel does: devices, links from class, queue at the disk."""
    folder = sys_root / "devices" / chain
    folder.mkdir(parents=True)
    whole = sys_root / "devices" / chain.split("/")[0]
    if rotational is not None:
        lay(whole, {"queue/rotational": rotational})
    links = sys_root / "class" / "block"
    links.mkdir(parents=True, exist_ok=True)
    (links / folder.name).symlink_to(folder)


@pytest.mark.parametrize(
    ("chain", "rotational", "expected"),
    [
        ("nvme0n1/nvme0n1p2", "0", "nvme"),
        ("nvme1n1", "0", "nvme"),
        ("sda/sda1", "0", "ssd"),
        ("sdb", "1", "hdd"),
        ("mmcblk0/mmcblk0p2", "0", "ssd"),
        ("vda/vda1", "1", "unknown"),
        ("sdc/sdc1", None, "unknown"),
        ("sdd", "perhaps", "unknown"),
    ],
)
def test_the_kind_of_a_disk_is_the_kernels_word(
    chain: str, rotational: str | None, expected: str, tmp_path: Path
) -> None:
    block(tmp_path, chain, rotational)

    assert disk_kind(f"/dev/{chain.split('/')[-1]}", tmp_path) == expected


@pytest.mark.parametrize(
    ("below", "expected"), [(["nvme0n1"], "nvme"), (["nvme0n1", "sda"], "unknown")]
)
def test_a_mapped_device_is_of_its_slaves_kind(
    below: list[str], expected: str, tmp_path: Path
) -> None:
    block(tmp_path, "dm-0")
    for name in below:
        block(tmp_path, name, "0")
        slaves = tmp_path / "devices" / "dm-0" / "slaves"
        slaves.mkdir(exist_ok=True)
        (slaves / name).symlink_to(tmp_path / "devices" / name)

    assert disk_kind("/dev/dm-0", tmp_path) == expected


@pytest.mark.parametrize("device", ["overlay", "tmpfs", "//server/share", "/dev/nothing-here", ""])
def test_what_is_no_block_device_is_of_unknown_kind(device: str, tmp_path: Path) -> None:
    assert disk_kind(device, tmp_path) == "unknown"


def test_the_innermost_and_last_mount_holds_a_place(tmp_path: Path) -> None:
    inner = tmp_path / "data"
    inner.mkdir()
    block(tmp_path / "sys", "sda", "1")
    mounts = [
        FakeMount("/dev/root", "/", "ext4"),
        FakeMount("tmpfs", str(inner), "tmpfs"),
        FakeMount("/dev/sda", str(inner), "xfs"),
        FakeMount("/dev/other", str(tmp_path / "dat"), "btrfs"),
    ]
    found = disk(inner / "not" / "yet", tmp_path / "sys", mounts)

    assert (found.device, found.filesystem, found.kind) == ("/dev/sda", "xfs", "hdd")
    assert found.path == str(inner / "not" / "yet")
    assert 0 <= found.free <= found.total


def test_a_place_on_no_known_mount_still_has_its_free_space(tmp_path: Path) -> None:
    found = disk(tmp_path, tmp_path, [])

    assert (found.device, found.filesystem, found.kind) == ("", "", "unknown")
    assert found.total > 0


def test_this_machine_is_probed(tmp_path: Path) -> None:
    machine = probe([tmp_path, tmp_path / "later"])

    assert machine.cpu.usable >= 1
    assert 0 < machine.memory.limit <= machine.memory.total
    assert [Path(found.path) for found in machine.disks] == [tmp_path, tmp_path / "later"]
    assert machine.system
    assert machine.architecture
