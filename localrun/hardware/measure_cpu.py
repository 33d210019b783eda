"""Knows no model: how fast this machine's cores multiply by weights of each tensor type.

ggml's own kernels are timed (``localrun.ggml``) on weights of arbitrary bytes: what a kernel does
does not depend on the numbers, and some types take seconds to quantize to.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from localrun.hardware.machine import Compute, Speed
from localrun.hardware.measure_memory import Clock, streamed_bytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from localrun.ggml.matmul import Threads

# The most common first: time may end before the last.
TYPES: Final = (
    "Q4_K", "Q6_K", "Q8_0", "MXFP4", "Q4_0", "F16", "BF16", "IQ4_XS", "F32", "Q3_K", "Q2_K",
    "IQ2_XXS",
)  # fmt: skip
_COLUMNS: Final = 4096
_PROMPT: Final = 512  # tokens of a micro-batch
_ROWS_A_THREAD: Final = 512
_REPACKED_ROWS: Final = 64  # a multiple of every interleaving that kernels have
_PATTERN_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Kernels:
    """What is timed for one type: a product of one token by ``nbytes`` of weights with one thread
    and with all, and one of a prompt that takes ``flop`` operations with all."""

    layout: str
    nbytes: int
    flop: float
    one: Callable[[], None]
    every: Callable[[], None]
    prompt: Callable[[], None]


Prepare = Callable[[str], AbstractContextManager[Kernels]]


def measure_cpu(
    types: Sequence[str],
    threads: int,
    *,
    seconds: float,
    cores: int,
    available: int,
    repack: bool = True,
) -> Compute:
    """GB/s of weights and GFLOP/s of a prompt by type, in about ``seconds`` shared out evenly.

    ``threads`` is what this process may use, ``cores`` what ``Compute`` says there are, and a
    quarter of ``available`` bytes is taken at most. ``repack`` stores weights as llama.cpp does
    where no GPU is in use; with one, and wherever experts are read from disk, they lie plain.
    A type that no time is left for is absent; all are where memory is too short to time it.

    Raises:
        BackendMissingError: the library is absent.
        UsageError: no such type.
    """
    from localrun.ggml.matmul import Threads

    size = streamed_bytes(threads, available)
    if size is None:
        return Compute(cores)
    with ExitStack() as stack:
        one = stack.enter_context(closing(Threads(1)))
        every = stack.enter_context(closing(Threads(threads))) if threads > 1 else one
        return timed(
            types, lambda type: _kernels(type, size, one, every, repack),
            seconds=seconds, cores=cores, clock=time.perf_counter,
        )  # fmt: skip


def timed(
    types: Sequence[str],
    prepare: Prepare,
    *,
    seconds: float,
    cores: int,
    clock: Clock,
) -> Compute:
    """Time each type's kernels. None is begun after ``seconds``; one that is runs once at least."""
    deadline = clock() + seconds
    gemv, core_gemv, prefill = dict[str, Speed](), dict[str, Speed](), dict[str, Speed]()
    for done, type in enumerate(types):
        if clock() >= deadline:
            break
        own = clock() + (deadline - clock()) / (len(types) - done)
        with prepare(type) as kernels:
            runs = (
                (core_gemv, kernels.one, kernels.nbytes),
                (gemv, kernels.every, kernels.nbytes),
                (prefill, kernels.prompt, kernels.flop),
            )
            for left, (speeds, run, work) in zip((3, 2, 1), runs, strict=True):
                rate = usual_rate(run, work, (own - clock()) / left, clock)
                speeds[type] = Speed(rate / 1e9, "measured", f"ggml, {kernels.layout}")
    return Compute(cores, gemv=gemv, core_gemv=core_gemv, prefill=prefill)


def usual_rate(run: Callable[[], object], work: float, seconds: float, clock: Clock) -> float:
    """Work a second of a run that a quarter of them beat: near what the machine can do while other
    programs take their turns, and no lucky lull.

    The first run warms up. A run that would probably end later than ``seconds`` is not begun,
    except that one: where it took all the time, it is what is known.
    """
    end = clock() + seconds
    before = clock()
    run()
    first = took = clock() - before
    times: list[float] = []
    while clock() + took <= end:
        before = clock()
        run()
        took = clock() - before
        times.append(took)
    return work / max(sorted(times or [first])[len(times) // 4], 1e-9)


@contextmanager
def _kernels(type: str, size: int, one: Threads, every: Threads, repack: bool) -> Iterator[Kernels]:
    import numpy as np

    from localrun.ggml.matmul import Product
    from localrun.ggml.types import row_size
    from localrun.ggml.weights import Weights

    row = row_size(type, _COLUMNS)
    rows = max(1, size // row // _REPACKED_ROWS) * _REPACKED_ROWS
    few = min(rows, _ROWS_A_THREAD * every.count)
    blocks = np.resize(pattern(), rows * row)
    with ExitStack() as stack:
        large = Weights(type, rows, _COLUMNS, blocks, repack=repack)
        stack.enter_context(closing(large))
        small = Weights(type, few, _COLUMNS, blocks[: few * row], repack=repack)
        stack.enter_context(closing(small))
        del blocks
        products = [
            Product(large, one, 1),
            Product(large, every, 1),
            Product(small, every, _PROMPT),
        ]
        for product in products:
            stack.enter_context(closing(product))
            shape = product.activations.shape
            product.activations[:] = np.random.default_rng(0).standard_normal(shape, np.float32)
        runs = [product.run for product in products]
        yield Kernels(large.layout, large.nbytes, 2.0 * few * _COLUMNS * _PROMPT, *runs)


def pattern() -> NDArray[np.uint8]:
    """Bytes that make ordinary half-precision numbers wherever a type keeps a scale: an infinity,
    a NaN or a subnormal could take a kernel another time."""
    import numpy as np

    ordinary = np.array([*range(0x20, 0x3C), *range(0xA0, 0xBC)], np.uint8)
    return np.random.default_rng(0).choice(ordinary, _PATTERN_BYTES)
