"""Knows no device: how disks of a class answer, from what others measured.

``large`` is GB/s of random direct reads of megabytes. Makers print sequential figures from a
fresh drive's cache; these are lower because plans rely on what lasts:

- nvme3: 1.4 to 2.7 GB/s measured (P3, 980) of 3.5 printed
- nvme4: 5.9 to 6.7 GB/s (980 PRO, 990 PRO) of 7.0 to 7.45
- nvme5: 8.1 to 11.5 GB/s (9100 PRO, SN8100) of 14.5
- sata-ssd: the bus ends at 0.55; usb-enclosure: 0.94 measured; hdd: a spinning disk with seeks

One read at a time reaches 83 % of that, two reach all of it. Small reads wait for the flash: 45 µs
by specification, 80 µs seen by programs; the ceiling is half of what is printed for an empty drive
(500K, 1.2M and 1.85M), which agrees with the 500K to 1M that programs see with io_uring.
"""

from __future__ import annotations

from dataclasses import dataclass

from localrun.hardware.machine import DiskReads, Speed

DEPTHS = (1, 16, 64, 256)
LARGE_DEPTHS = (1, 2, 4)
_ONE_AT_A_TIME = 0.83
_SOURCE = "what others measured on disks of this class"


@dataclass(frozen=True, slots=True)
class DiskClass:
    """``large`` in GB/s; ``single`` and ``ceiling`` are 4 KiB reads a second, alone and at most."""

    large: float
    single: int
    ceiling: int

    @property
    def read(self) -> Speed:
        return Speed(self.large, "assumed", _SOURCE)

    def reads(self) -> DiskReads:
        iops = {depth: float(min(depth * self.single, self.ceiling)) for depth in DEPTHS}
        large = {d: self.large * (_ONE_AT_A_TIME if d == 1 else 1.0) for d in LARGE_DEPTHS}
        return DiskReads(
            {depth: Speed(value, "assumed", _SOURCE) for depth, value in iops.items()},
            {depth: Speed(value, "assumed", _SOURCE) for depth, value in large.items()},
        )


CLASSES = {
    "nvme3": DiskClass(2.0, 15_000, 250_000),
    "nvme4": DiskClass(6.0, 16_000, 600_000),
    "nvme5": DiskClass(9.5, 20_000, 900_000),
    "sata-ssd": DiskClass(0.5, 8_000, 70_000),
    "usb-enclosure": DiskClass(0.94, 5_000, 50_000),
    "hdd": DiskClass(0.15, 100, 100),
    # Apple's own: 3.2 GB/s cold on a base M3; 4.4 to 6.9 on Pro, Max and Ultra up to the fourth
    # generation, 5.5 cold and at random on an M3 Max; 10.7 to 12.8 on an M5 Pro.
    "apple-base": DiskClass(3.2, 12_000, 250_000),
    "apple-large": DiskClass(5.5, 12_000, 400_000),
    "apple-m5-large": DiskClass(10.7, 12_000, 600_000),
}


def apple_internal(chip: str) -> str:
    """The class of a Mac's own disk by its chip's slug."""
    generation, _, size = chip.partition("-")
    if not size:
        return "apple-base"
    return "apple-m5-large" if generation == "m5" else "apple-large"
