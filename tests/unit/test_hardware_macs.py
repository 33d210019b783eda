"""What two commands print on Macs, recorded, as values."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from localrun.hardware import probe as probe_module
from localrun.hardware.machine import Cpu, Gpu
from localrun.hardware.macs import mac_cpu, mac_gpus, parse_sysctl, wired_limit
from localrun.hardware.reserves import free_unified

GIB = 1024**3
M4_MAX_SYSCTL = """\
machdep.cpu.brand_string: Apple M4 Max
hw.physicalcpu: 16
hw.logicalcpu: 16
hw.perflevel0.physicalcpu: 12
hw.perflevel1.physicalcpu: 4
hw.memsize: 137438953472
hw.optional.arm.FEAT_DotProd: 1
hw.optional.arm.FEAT_BF16: 1
hw.optional.arm.FEAT_I8MM: 1
hw.optional.arm.FEAT_SME: 1
"""
M1_SYSCTL = """\
machdep.cpu.brand_string: Apple M1
hw.physicalcpu: 8
hw.logicalcpu: 8
hw.perflevel0.physicalcpu: 4
hw.perflevel1.physicalcpu: 4
hw.memsize: 17179869184
hw.optional.arm.FEAT_DotProd: 1
hw.optional.arm.FEAT_BF16: 0
hw.optional.arm.FEAT_I8MM: 0
"""
INTEL_SYSCTL = """\
machdep.cpu.brand_string: Intel(R) Core(TM) i9-9980HK CPU @ 2.40GHz
hw.physicalcpu: 8
hw.logicalcpu: 16
hw.memsize: 34359738368
hw.optional.avx2_0: 1
"""
M4_MAX_DISPLAYS = """\
{
  "SPDisplaysDataType" : [
    {
      "_name" : "Apple M4 Max",
      "spdisplays_mtlgpufamilysupport" : "spdisplays_metal4",
      "spdisplays_ndrvs" : [
        {
          "_name" : "Color LCD",
          "_spdisplays_display-product-id" : "a050",
          "_spdisplays_pixels" : "3456 x 2234",
          "spdisplays_connection_type" : "spdisplays_internal",
          "spdisplays_main" : "spdisplays_yes",
          "spdisplays_online" : "spdisplays_yes"
        }
      ],
      "spdisplays_vendor" : "sppci_vendor_Apple",
      "sppci_bus" : "spdisplays_builtin",
      "sppci_cores" : "40",
      "sppci_device_type" : "spdisplays_gpu",
      "sppci_model" : "Apple M4 Max"
    }
  ]
}
"""
INTEL_DISPLAYS = """\
{
  "SPDisplaysDataType" : [
    {
      "_name" : "kHW_IntelUHDGraphics630Item",
      "spdisplays_vendor" : "Intel",
      "spdisplays_vram_shared" : "1536 MB",
      "sppci_model" : "Intel UHD Graphics 630"
    },
    {
      "_name" : "kHW_AMDRadeonPro5500MItem",
      "spdisplays_mtlgpufamilysupport" : "spdisplays_metal3",
      "spdisplays_vendor" : "sppci_vendor_amd",
      "spdisplays_vram" : "8 GB",
      "sppci_model" : "AMD Radeon Pro 5500M"
    }
  ]
}
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (M4_MAX_SYSCTL, Cpu("Apple M4 Max", 16, 16, 12, ("bf16", "dotprod", "i8mm", "sme"))),
        (M1_SYSCTL, Cpu("Apple M1", 8, 8, 4, ("dotprod",))),
        (INTEL_SYSCTL, Cpu("Intel(R) Core(TM) i9-9980HK CPU @ 2.40GHz", 8, 16, 16, ("avx2",))),
        ("", None),
        ("hw.physicalcpu: many\nhw.logicalcpu: 8\n", None),
        ("sysctl: unknown oid 'hw.physicalcpu'\n", None),
    ],
    ids=["m4_max", "m1", "intel", "empty", "broken", "unknown_names"],
)
def test_sysctl_tells_the_processor(text: str, expected: Cpu | None) -> None:
    assert mac_cpu(parse_sysctl(text)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            M4_MAX_DISPLAYS,
            (Gpu("Apple M4 Max", "metal", 128 * GIB, 100 * GIB, "metal4", True, 40),),
        ),
        (
            INTEL_DISPLAYS,
            (
                Gpu("Intel UHD Graphics 630", "metal", 0, 0, ""),
                Gpu("AMD Radeon Pro 5500M", "metal", 8 * GIB, 8 * GIB, "metal3"),
            ),
        ),
        ("", ()),
        ("[]", ()),
        ("{}", ()),
        ('{"SPDisplaysDataType": null}', ()),
        ('{"SPDisplaysDataType": [null, {}, 3]}', ()),
        ("[" * 100_000, ()),
    ],
    ids=["m4_max", "intel", "empty", "list", "object", "null", "odd_entries", "nested"],
)
def test_system_profiler_tells_the_gpus(text: str, expected: tuple[Gpu, ...]) -> None:
    assert mac_gpus(text, 128 * GIB, 100 * GIB) == expected


def test_a_mac_is_probed_by_its_two_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(command: tuple[str, ...], **_: Any) -> subprocess.CompletedProcess[str]:
        text = M4_MAX_SYSCTL if command[0].endswith("sysctl") else M4_MAX_DISPLAYS
        return subprocess.CompletedProcess(command, 1, stdout=text, stderr="")

    monkeypatch.setattr(probe_module.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(probe_module.subprocess, "run", answer)
    machine = probe_module.probe([tmp_path])

    assert machine.cpu.usable == 12
    assert machine.gpus[0].total == machine.memory.total
    assert machine.gpus[0].unified
    assert machine.notes == ()


def test_a_mac_without_its_commands_still_has_a_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(command: tuple[str, ...], **_: Any) -> subprocess.CompletedProcess[str]:
        raise FileNotFoundError(command[0])

    monkeypatch.setattr(probe_module.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(probe_module.subprocess, "run", absent)
    machine = probe_module.probe([])

    assert machine.cpu.logical >= 1
    assert machine.notes == ("system_profiler names no GPU",)


@pytest.mark.parametrize(
    ("told", "expected"),
    [("iogpu.wired_limit_mb: 114688\n", 112 * GIB), ("iogpu.wired_limit_mb: 0\n", 0), ("", 0)],
)
def test_a_limit_that_a_user_has_raised_is_the_gpus(told: str, expected: int) -> None:
    limit = wired_limit(parse_sysctl(M4_MAX_SYSCTL + told))
    (gpu,) = mac_gpus(M4_MAX_DISPLAYS, 128 * GIB, 100 * GIB, limit)

    assert gpu.wired_limit == expected


@pytest.mark.parametrize(
    ("memory", "wired", "expected"),
    [
        # recommendedMaxWorkingSetSize of an M1, an M1 Max, an M1 Max and a raised M5 Max.
        (16 * GIB, 0, 10922.67),
        (32 * GIB, 0, 21845.33),
        (64 * GIB, 0, 49152),
        (128 * GIB, 112 * GIB, 114688),
    ],
)
def test_usable_memory_is_what_metal_recommends(memory: int, wired: int, expected: float) -> None:
    usable = free_unified(memory, memory, memory, metal=True, wired_limit=wired)

    assert usable / 1024**2 == pytest.approx(expected, abs=0.01)
