"""The memory of a platform, by the processor's name."""

from __future__ import annotations

from pathlib import Path

import pytest

from localrun.hardware.assumptions import ram_speed
from localrun.hardware.cpus import cpu
from localrun.hardware.machine import Cpu
from localrun.hardware.platforms import platform

# Name as a kernel or a table says it → GB/s of all channels.
NAMES = {
    "AMD Ryzen 9 9950X 16-Core Processor": 89.6,
    "AMD Ryzen 7 5800X 8-Core Processor": 51.2,
    "AMD EPYC 7343 16-Core Processor": 204.8,
    "AMD EPYC 9175F 16-Core Processor": 576.0,
    "AMD Ryzen Threadripper PRO 7965WX 24-Cores": 332.8,
    "13th Gen Intel(R) Core(TM) i9-13900HK": 83.2,
    "Intel(R) Core(TM) i9-14900K": 89.6,
    "Intel(R) Core(TM) i9-10900X CPU @ 3.70GHz": 93.856,
    "Intel(R) Core(TM) Ultra 7 265K": 102.4,
    "Intel(R) Xeon(R) CPU E5-2696 v4 @ 2.20GHz": 76.8,
    "2x Intel(R) Xeon(R) Gold 6454S": 614.4,
    "2x Xeon Silver 4510": 563.2,
}


@pytest.mark.parametrize(("name", "gbps"), NAMES.items(), ids=NAMES.keys())
def test_a_processor_tells_the_memory_of_its_platform(name: str, gbps: float) -> None:
    found = platform(name)

    assert found is not None
    assert found.gbps == pytest.approx(gbps)


@pytest.mark.parametrize("name", ["", "Apple M3", "Virtual CPU", "Ryzen", "EPYC", "x" * 500])
def test_a_processor_nobody_knows_tells_nothing(name: str) -> None:
    assert platform(name) is None


def test_two_sockets_have_twice_the_channels() -> None:
    one, two = platform("AMD EPYC 9554"), platform("AMD EPYC 9554", sockets=2)

    assert one is not None
    assert two is not None
    assert (two.channels, two.sockets) == (2 * one.channels, 2)


def test_a_few_cores_of_a_server_are_not_promised_its_memory() -> None:
    slice_of = ram_speed(Cpu("AMD EPYC 9554", 2, 4, 2))
    whole = ram_speed(Cpu("AMD EPYC 9554", 64, 128, 128))

    assert slice_of.value == 50.0
    assert whole.value == pytest.approx(460.8)
    assert {slice_of.basis, whole.basis} == {"assumed"}


def test_sockets_are_counted_where_the_kernel_numbers_them(tmp_path: Path) -> None:
    text = "".join(
        f"processor\t: {at}\nmodel name\t: AMD EPYC 7343\nphysical id\t: {at % 2}\n\n"
        for at in range(4)
    )
    (tmp_path / "cpuinfo").write_text(text)

    assert cpu(tmp_path, tmp_path).sockets == 2
