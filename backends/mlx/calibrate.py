"""Knows no plan: how fast Metal's GPU multiplies by weights of each type.

Weights are arbitrary, in several matrices that are read one after the other: together more than a
chip's caches hold. Types are called as a safetensors header calls them; ``U32`` are the words that
mlx packs four-bit weights in, eight to one, with a scale and a bias to 64.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import mlx.core as mx

from localrun.backends.mlx.library import devices, metal
from localrun.hardware.machine import Speed
from localrun.hardware.measure_cpu import usual_rate
from localrun.hardware.measure_memory import Clock
from localrun.hardware.measurements import DeviceFigures

TYPES: Final = ("U32", "BF16", "F16")
DEVICE_SECONDS: Final = 4.0
_MATRICES: Final = 16
_PROMPT_MATRICES: Final = 4
_COLUMNS: Final = 4096
_ROWS: Final = 4096
_PROMPT: Final = 512  # tokens of a micro-batch
_GROUP: Final = 64
_BITS: Final = 4


def measure(seconds: float, say: Callable[[str], None]) -> Mapping[str, DeviceFigures]:
    """Figures by the device's name, in about ``seconds``; empty where there is no Metal."""
    if not metal():
        return {}
    (device,) = devices()
    say(f"measuring gpu with mlx: {device.description}")
    return {device.description: measure_device(mx.gpu, min(DEVICE_SECONDS, seconds))}


def measure_device(
    device: Any,
    seconds: float,
    clock: Clock = time.perf_counter,
    *,
    rows: int = _ROWS,
    columns: int = _COLUMNS,
) -> DeviceFigures:
    """One device's, each type in its share of ``seconds``."""
    gemv: dict[str, Speed] = {}
    prefill: dict[str, Speed] = {}
    with mx.stream(device):
        for done, kind in enumerate(TYPES):
            end = clock() + seconds / len(TYPES) / 2
            weights = [_weights(kind, rows, columns) for _ in range(_MATRICES)]
            size = sum(part.nbytes for each in weights for part in each)
            run = _products(weights, 1, columns)
            gemv[kind] = _speed(run, size / 1e9, end - clock(), clock)
            if done < 2:
                run = _products(weights[:_PROMPT_MATRICES], _PROMPT, columns)
                work = 2 * rows * columns * _PROMPT * _PROMPT_MATRICES / 1e12
                prefill[kind] = _speed(run, work, seconds / len(TYPES) / 2, clock)
    return DeviceFigures(gemv, prefill)


def _speed(run: Callable[[], None], work: float, seconds: float, clock: Clock) -> Speed:
    return Speed(usual_rate(run, work, seconds, clock), "measured", "mlx")


def _weights(kind: str, rows: int, columns: int) -> tuple[mx.array, ...]:
    """A matrix, or the words, scales and biases of one."""
    plain = mx.random.normal((rows, columns)).astype(mx.float16 if kind == "F16" else mx.bfloat16)
    made = mx.quantize(plain, group_size=_GROUP, bits=_BITS) if kind == "U32" else (plain,)
    mx.eval(*made)
    return tuple(made)


def _products(weights: list[tuple[mx.array, ...]], tokens: int, columns: int) -> Callable[[], None]:
    """Of ``tokens`` by every matrix."""
    activations = mx.random.normal((tokens, columns)).astype(weights[0][-1].dtype)
    mx.eval(activations)

    def product(words: mx.array, *beside: mx.array) -> mx.array:
        if not beside:
            return activations @ words.T
        scales, biases = beside
        return mx.quantized_matmul(
            activations, words, scales, biases, transpose=True, group_size=_GROUP, bits=_BITS
        )

    return lambda: mx.eval([product(*each) for each in weights])
