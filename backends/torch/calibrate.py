"""Knows no plan and no CPU: how fast CUDA cards multiply by weights of 16 and 32 bits.

Weights are arbitrary, in several matrices that are read one after the other: together more than a
card's caches hold. Types are called as a safetensors header calls them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor

from localrun.hardware.machine import Speed
from localrun.hardware.measure_cpu import usual_rate
from localrun.hardware.measure_memory import Clock
from localrun.hardware.measurements import DeviceFigures

TYPES: Final = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
DEVICE_SECONDS: Final = 4.0
_MATRICES: Final = 16
_PROMPT_MATRICES: Final = 4
_COLUMNS: Final = 4096
_ROWS: Final = 4096
_PROMPT: Final = 512  # tokens of a micro-batch


def measure(seconds: float, say: Callable[[str], None]) -> Mapping[str, DeviceFigures]:
    """Figures by the card's name, in about ``seconds``; empty where there is none."""
    found: dict[str, DeviceFigures] = {}
    count = torch.cuda.device_count()
    for at in range(count):
        device = torch.device("cuda", at)
        name = torch.cuda.get_device_name(device)
        if name in found:
            continue
        say(f"measuring gpu with torch: {name}")
        try:
            found[name] = measure_device(device, min(DEVICE_SECONDS, seconds / count))
        except RuntimeError as error:
            say(f"{name} could not be measured: {error}")
    return found


def measure_device(
    device: torch.device,
    seconds: float,
    clock: Clock = time.perf_counter,
    *,
    rows: int = _ROWS,
    columns: int = _COLUMNS,
) -> DeviceFigures:
    """One device's, each type in its share of ``seconds``."""
    gemv: dict[str, Speed] = {}
    prefill: dict[str, Speed] = {}
    share = seconds / len(TYPES) / 2
    for kind, dtype in TYPES.items():
        weights = [torch.randn(rows, columns, device=device).to(dtype) for _ in range(_MATRICES)]
        size = sum(each.nbytes for each in weights)
        gemv[kind] = _speed(_products(weights, 1), size / 1e9, share, clock)
        work = 2 * rows * columns * _PROMPT * _PROMPT_MATRICES / 1e12
        run = _products(weights[:_PROMPT_MATRICES], _PROMPT)
        prefill[kind] = _speed(run, work, share, clock)
    return DeviceFigures(gemv, prefill)


def _speed(run: Callable[[], None], work: float, seconds: float, clock: Clock) -> Speed:
    return Speed(usual_rate(run, work, seconds, clock), "measured", "torch")


def _products(weights: list[Tensor], tokens: int) -> Callable[[], None]:
    """Of ``tokens`` by every matrix, waited for."""
    first = weights[0]
    x = torch.randn(tokens, first.shape[1], device=first.device).to(first.dtype)

    def run() -> None:
        for each in weights:
            torch.mm(x, each.T)
        if first.device.type == "cuda":
            torch.cuda.synchronize(first.device)

    return run
