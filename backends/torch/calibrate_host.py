"""Knows no plan: what torch takes on this machine's CPU, of what libggml's figures do not tell.

Between its products a layer is Python and many small operations, whose time does not depend on
weights: it is measured of small models, in the time of one token by the blocks of their layers,
and in what a token takes longer whose experts are on disk.
Types that libggml has no kernels for are multiplied by torch; they are measured of large matrices.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from localrun.backends.files import files_of
from localrun.backends.torch.architectures import architecture
from localrun.backends.torch.library import failures
from localrun.backends.torch.matrices import dense, fp8
from localrun.backends.torch.matrices.kernels import Kernels
from localrun.backends.torch.matrices.tiles import Tiled
from localrun.backends.torch.model import Model, Setup, Span, Step
from localrun.backends.torch.numerics import FAST
from localrun.backends.torch.small_models import SMALL_MODELS, wider
from localrun.backends.torch.tensors import Tensors
from localrun.backends.torch.threads import share_threads
from localrun.backends.torch.tiers.store import ExpertStore
from localrun.backends.torch.tiers.use import DISK
from localrun.disk.opening import open_reader
from localrun.disk.staged import Stage
from localrun.hardware.machine import HostFigures, Speed
from localrun.hardware.measure_cpu import usual_rate
from localrun.hardware.measure_memory import Clock
from localrun.models.bare import flat
from localrun.models.describe import describe_config, layout_of
from localrun.plan.stack import stack
from localrun.releases.checkpoint import Checkpoint
from localrun.releases.read import open_source, release_of
from localrun.releases.stored.release import weights_of

_CPU: Final = torch.device("cpu")
_SIZE: Final = 4096  # rows and columns of a matrix
_MATRICES: Final = 4
_PROMPT: Final = 16
_CAPACITY: Final = 512
_STREAMED: Final = (SMALL_MODELS[0][1], wider(SMALL_MODELS[0][1], 4))
_ROUNDS: Final = 3
_PAIRS: Final = 3
_FORGOTTEN: Final = 2  # of the four experts that a token picks in each layer
_PLACES: Final = 1 << 10  # more than there are experts
_STAGING_BYTES: Final = 16 << 20
_LEAST_MS: Final = 0.001
# One ordinary number of each type that releases store.
_BYTES: Final = {
    "F8_E4M3": b"\x38",
    "F8_E8M0": b"\x77",
    "I8": b"\x22",
    "BF16": b"\x00\x3c",
    "F32": b"\x0a\xd7\x23\x3c",
    "I64": b"\x00" * 8,
}


def measure_host(
    seconds: float,
    threads: int,
    say: Callable[[str], None],
    clock: Clock = time.perf_counter,
) -> HostFigures:
    """In about ``seconds``, besides what loading takes."""
    share = seconds / (len(SMALL_MODELS) + len(_STREAMED) + 2) / _ROUNDS
    blocks, misses, products = (defaultdict[Any, list[float]](list) for _ in range(3))
    # Some time apart, and the middle one counts: threads that wait for each other stand still while
    # another program has a core, which makes a token many times longer.
    for _ in range(_ROUNDS):
        for names, config in SMALL_MODELS:
            say(f"measuring cpu with torch: a block of {names[0]}")
            took = _block(config, share, threads, clock)
            for name in names:
                blocks[name].append(took)
        for config in _STREAMED:
            say("measuring cpu with torch: experts from disk")
            size, took = _miss(config, share, threads, clock)
            misses[size].append(max(_LEAST_MS, took))
        for name, rate in _products(share, threads, clock).items():
            products[name].append(rate)
    return HostFigures(_middle(products), _middle(blocks), _middle(misses))


def _middle(seen: Mapping[Any, list[float]]) -> dict[Any, Speed]:
    return {name: Speed(median(each), "measured", "torch") for name, each in seen.items()}


def _block(config: Mapping[str, object], seconds: float, threads: int, clock: Clock) -> float:
    """Milliseconds of a token in one block of a layer."""
    spec = describe_config(config)
    blocks = sum(layer.blocks for layer in stack(spec, {}, "bf16", 0).layers)
    with _opened(config, threads) as (model, _):
        return _took(_token(model, threads), seconds, clock) / blocks


def _miss(
    config: Mapping[str, object], seconds: float, threads: int, clock: Clock
) -> tuple[int, float]:
    """Bytes of an expert; milliseconds that a token takes longer for each that it does not find,
    without those that it waits for the read."""
    with _opened(config, threads, streamed=True) as (model, store):
        assert store is not None
        found = _token(model, threads)

        longer: list[float] = []
        before, until = store.stats().experts[DISK], clock() + seconds
        # By turns: how fast a shared machine is changes within a second.
        while len(longer) < _PAIRS or clock() < until:
            start = clock()
            found()
            middle = clock()
            store.forget(_FORGOTTEN)
            found()
            longer.append(clock() - middle - (middle - start))
        after = store.stats().experts[DISK]
        missed = after.picks - before.picks
        waited = after.seconds - before.seconds
        took = 1e3 * (median(longer) * len(longer) - waited) / missed
        return (after.bytes - before.bytes) // missed, took


def _took(run: Callable[[], None], seconds: float, clock: Clock) -> float:
    """Milliseconds."""
    return 1e3 / usual_rate(run, 1.0, seconds, clock)


@contextmanager
def _opened(
    config: Mapping[str, object], threads: int, *, streamed: bool = False
) -> Iterator[tuple[Model, ExpertStore | None]]:
    """A model of ``config``, with its experts in memory, or in places that are all empty."""
    with ExitStack() as undo:
        place = Path(undo.enter_context(tempfile.TemporaryDirectory()))
        undo.enter_context(torch.no_grad())
        undo.enter_context(failures(_CPU, "measuring"))
        stage = Stage()
        source = open_source(files_of((_written(place, config),)), stage=stage)
        undo.callback(source.close)
        kernels = Kernels(threads)
        undo.callback(kernels.close)
        setup = Setup(FAST, _CPU, _CAPACITY, threads=threads, kernels=kernels)
        store = None
        if streamed:
            reader = open_reader(source.paths)
            undo.callback(reader.close)
            store = ExpertStore(
                reader, stage, slots=_PLACES, card_slots=0, staging_bytes=_STAGING_BYTES
            )
            undo.callback(store.close)
            setup = replace(setup, reader=reader, experts=store)
        assert isinstance(source, Checkpoint)
        release = release_of(source, weights_of(source))
        flattened = flat(release.config)
        model = architecture(flattened.text("model_type") or "").build(
            flattened, Tensors(release, setup)
        )
        undo.callback(model.close)
        yield model, store


def _written(folder: Path, config: Mapping[str, object]) -> str:
    """A checkpoint of ``config``, every number of a type the same."""
    header: dict[str, object] = {}
    parts: list[bytes] = []
    end = 0
    for tensor in layout_of(config):
        for name in tensor.names():
            start, end = end, end + tensor.bytes
            header[name] = {
                "dtype": tensor.type.name,
                "shape": list(tensor.shape),
                "data_offsets": [start, end],
            }
            number = _BYTES[tensor.type.name]
            parts.append(number * (tensor.bytes // len(number)))
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path = folder / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))
    (folder / "config.json").write_text(json.dumps(config))
    return str(path)


def _token(model: Model, threads: int) -> Callable[[], None]:
    """One more token of a sequence, taken back again."""
    cache = model.new_cache()

    def step(count: int) -> None:
        first = cache.tokens
        share_threads(count, FAST, threads)
        asked = Step(
            torch.full((count,), 7),
            torch.arange(first, first + count),
            (Span(cache, 0, count, first),),
            torch.tensor([count - 1]),
        )
        cache.begin()
        int(model.forward(asked)[0].argmax())
        cache.tokens += count

    def run() -> None:
        step(1)
        cache.revert(_PROMPT, cache.tokens)
        cache.tokens = _PROMPT

    step(_PROMPT)
    return run


def _products(seconds: float, threads: int, clock: Clock) -> Mapping[str, float]:
    """GB/s of weights by type, of one token's products with torch's kernels."""
    share_threads(1, FAST, threads)
    kernels = Kernels(threads)
    random = np.random.default_rng(0)
    codes = torch.from_numpy(random.integers(0, 120, (_SIZE, _SIZE), np.uint8))
    scales = torch.ones(_SIZE // 128, _SIZE // 128)
    eights = fp8.bytes_of(codes, scales, 128, 128)
    eights.scaled(0, scales.numpy())
    numbers = torch.from_numpy(random.standard_normal((_SIZE, _SIZE), np.float32))
    x = torch.from_numpy(random.standard_normal((1, _SIZE), np.float32))
    runs: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
        "F8_E4M3": (eights.nbytes, Tiled(eights, torch.bfloat16, torch.bfloat16, kernels)),
        "F32": (numbers.nbytes, dense.Dense(numbers)),
    }
    entered = x.bfloat16()
    try:
        return {
            name: usual_rate(partial(own, entered), size, seconds, clock) / 1e9
            for name, (size, own) in runs.items()
        }
    finally:
        kernels.close()
