"""Knows no plan: how fast a device multiplies by weights of each type, and takes what it is sent.

Weights are of arbitrary bytes, as those of ``hardware.measure_cpu`` are, and lie in several
matrices that are read one after the other: together more than a device's caches hold.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Final

from localrun.errors import EngineError
from localrun.ggml.device import Device, Matrices, Products, Staging, Stream
from localrun.ggml.types import row_size
from localrun.hardware.machine import Speed
from localrun.hardware.measure_cpu import pattern, usual_rate
from localrun.hardware.measure_memory import Clock
from localrun.hardware.measurements import DeviceFigures

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MIB: Final = 1 << 20
# The most common first: time may end before the last.
TYPES: Final = ("Q4_K", "F16", "Q8_0", "MXFP4", "Q6_K")
PROMPT_TYPES: Final = ("Q4_K", "F16")
DEVICE_SECONDS: Final = 4.0
# Sixteen matrices of the size that a layer's have; a prompt's products are of the first four.
_MATRICES: Final = 16
_PROMPT_MATRICES: Final = 4
_MATRIX_BYTES: Final = 32 * MIB
_SMALLEST: Final = 4 * MIB
_COLUMNS: Final = 4096
_ROWS: Final = 64  # a multiple of every tile's
_PROMPT: Final = 512  # tokens of a micro-batch
# Matrices' worth of memory that all take: the outputs of a prompt are as large as four of them.
_ROOM: Final = 20
_SHARE_OF_FREE: Final = 4


def measure(
    devices: Sequence[Device], seconds: float, say: Callable[[str], None]
) -> Mapping[str, DeviceFigures]:
    """Figures by ``Device.description``, in about ``seconds``; one of each name is measured, in
    ``DEVICE_SECONDS`` at most. A device that cannot be measured is absent, and said."""
    chosen = {device.description: device for device in reversed(devices)}
    figures: dict[str, DeviceFigures] = {}
    for name, device in chosen.items():
        say(f"measuring gpu: {name}")
        try:
            figures[name] = measure_device(device, min(DEVICE_SECONDS, seconds / len(chosen)))
        except EngineError as error:
            say(f"note: {name} was not measured: {error.message}")
    return figures


def measure_device(
    device: Device, seconds: float, clock: Clock = time.perf_counter
) -> DeviceFigures:
    """One device's. A type that no time is left for, or that it does not multiply by, is absent.

    A quarter of its free memory is taken at most.

    Raises:
        EngineError: it cannot be computed with, or has too little memory.
    """
    import numpy as np

    size = min(_MATRIX_BYTES, device.free // _SHARE_OF_FREE // _ROOM)
    if size < _SMALLEST:
        raise EngineError(f"{device.free // MIB} MiB of its memory are free")
    deadline = clock() + seconds
    figures, problem = DeviceFigures({}), "its time was over before the first type's products"
    with ExitStack() as stack:
        stream = stack.enter_context(closing(Stream(device)))
        staging = stack.enter_context(closing(Staging(device, size)))
        np.copyto(staging.data, np.resize(pattern(), size))
        for done, type in enumerate(TYPES):
            if clock() >= deadline:
                break
            end = clock() + (deadline - clock()) / (len(TYPES) - done)
            try:
                figures = _with_type(figures, type, stream, staging, end, clock)
            except EngineError as error:
                problem = error.message
    if not figures.gemv:
        raise EngineError(problem)
    return figures


def _with_type(
    figures: DeviceFigures, type: str, stream: Stream, staging: Staging, end: float, clock: Clock
) -> DeviceFigures:
    """``figures`` and those of one type, measured until about ``end``; the first time, the link's
    too."""
    rows = staging.data.nbytes // row_size(type, _COLUMNS) // _ROWS * _ROWS
    with closing(Matrices(stream, type, rows, _COLUMNS, _MATRICES)) as matrices:
        blocks = staging.data[: matrices.nbytes]
        link = figures.link or _link(matrices, staging, blocks, (end - clock()) / 4, clock)
        for at in range(_MATRICES):
            matrices.put(at, blocks)
        read = matrices.nbytes * _MATRICES / 1e9
        half = (end - clock()) / 2 if type in PROMPT_TYPES else end - clock()
        gemv = {**figures.gemv, type: _rate(stream, matrices, 1, _MATRICES, read, half, clock)}
        prefill = figures.prefill
        if type in PROMPT_TYPES:
            work = 2 * rows * _COLUMNS * _PROMPT * _PROMPT_MATRICES / 1e12
            left = end - clock()
            done = _rate(stream, matrices, _PROMPT, _PROMPT_MATRICES, work, left, clock)
            prefill = {**prefill, type: done}
    return DeviceFigures(gemv, prefill, link)


def _link(
    matrices: Matrices,
    staging: Staging,
    blocks: NDArray[np.uint8],
    seconds: float,
    clock: Clock,
) -> Speed:
    rate = usual_rate(lambda: matrices.put(0, blocks), matrices.nbytes, seconds, clock)
    memory = "pinned" if staging.pinned else "ordinary"
    return Speed(rate / 1e9, "measured", f"ggml, copies from {memory} memory")


def _rate(
    stream: Stream,
    matrices: Matrices,
    tokens: int,
    count: int,
    work: float,
    seconds: float,
    clock: Clock,
) -> Speed:
    """``work`` a second of the products of ``tokens`` by ``count`` matrices."""
    import numpy as np

    activations = np.random.default_rng(0).standard_normal((tokens, _COLUMNS), np.float32)
    with closing(Products(stream, matrices, activations, count)) as products:
        # A device may compile a kernel, or fetch it, when it is first asked for.
        before = clock()
        products.run()
        rate = usual_rate(products.run, work, seconds - (clock() - before), clock)
    return Speed(rate, "measured", f"ggml, {stream.device.name}")
