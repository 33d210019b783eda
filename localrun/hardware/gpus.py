"""Knows no runner: GPUs as NVML and the kernel's sysfs describe them; nothing is guessed.

A size that cannot be read is 0 and a note says so. NVML: https://docs.nvidia.com/deploy/nvml-api/.
AMD: https://docs.kernel.org/gpu/amdgpu/driver-misc.html. Intel (xe): …/gpu/xe/.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from localrun.hardware.cgroup import SYS, read_number, read_text
from localrun.hardware.machine import Gpu

_CARD = re.compile(r"card[0-9]+\Z")
_NVIDIA, _AMD, _INTEL = "0x10de", "0x1002", "0x8086"
Found = tuple[tuple[Gpu, ...], tuple[str, ...]]


def gpus(sys: Path = SYS) -> Found:
    """Every GPU of a Linux or Windows machine, and notes on what could not be read."""
    cards = list(_cards(sys))
    found, notes = nvidia_gpus()
    if not found and any(vendor == _NVIDIA for vendor, _ in cards):
        notes = ("an NVIDIA GPU is present, but its driver does not answer", *notes)
    others = [drm_gpu(vendor, device) for vendor, device in cards if vendor in (_AMD, _INTEL)]
    notes += tuple(
        f"the memory size of {gpu.name} cannot be read" for gpu in others if not gpu.total
    )
    return (*found, *others), notes


def nvidia_gpus() -> Found:
    """Through NVML, which every NVIDIA driver brings along. No library or driver is no GPU."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return (), ()
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return (), ()
    try:
        driver = _text(nvml.nvmlSystemGetDriverVersion())
        devices = tuple(
            _nvidia(nvml, nvml.nvmlDeviceGetHandleByIndex(index), driver)
            for index in range(nvml.nvmlDeviceGetCount())
        )
    except nvml.NVMLError as error:
        return (), (f"the NVIDIA driver answers with an error: {error}",)
    finally:
        nvml.nvmlShutdown()
    return devices, ()


def _nvidia(nvml: Any, handle: Any, driver: str) -> Gpu:
    name = _text(nvml.nvmlDeviceGetName(handle))
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    except nvml.NVMLError_NotSupported:
        # The driver's answer on devices without memory of their own (GB10, Jetson).
        return Gpu(name, "cuda", total=0, free=0, driver=driver, unified=True)
    return Gpu(name, "cuda", total=int(memory.total), free=int(memory.free), driver=driver)


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _cards(sys: Path) -> Iterator[tuple[str, Path]]:
    """(PCI vendor, device folder) of each card; connectors (``card0-DP-1``) are left out."""
    try:
        entries = sorted((sys / "class" / "drm").iterdir())
    except OSError:
        return
    for entry in entries:
        vendor = read_text(entry / "device" / "vendor") if _CARD.match(entry.name) else None
        if vendor:
            yield vendor, entry / "device"


def drm_gpu(vendor: str, device: Path) -> Gpu:
    """One AMD or Intel card. Without a product name the PCI id stands for it."""
    kind, maker = ("rocm", "AMD") if vendor == _AMD else ("level-zero", "Intel")
    number = read_text(device / "device") or "of unknown id"
    if vendor == _AMD:
        total = read_number(device / "mem_info_vram_total")
        used = read_number(device / "mem_info_vram_used")
    else:
        total = read_number(device / "tile0" / "physical_vram_size_bytes")
        used = None
    driver = (device / "driver").resolve().name if (device / "driver").exists() else ""
    version = read_text(device / "driver" / "module" / "version")
    return Gpu(
        name=read_text(device / "product_name") or f"{maker} GPU {number}",
        kind=kind,
        total=total or 0,
        free=max(0, (total or 0) - (used or 0)),
        driver=f"{driver} {version}" if version else driver,
    )
