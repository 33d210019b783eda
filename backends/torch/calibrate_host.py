"""Knows no plan: what torch takes on this machine's CPU, of what libggml's figures do not tell.

Between its products a layer is Python and many small operations, whose time does not depend on
weights: it is measured of small models, in the time of one token by the blocks of their layers.
Types that libggml has no kernels for are multiplied by torch; they are measured of large matrices.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

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
from localrun.backends.torch.small_models import SMALL_MODELS
from localrun.backends.torch.tensors import Tensors
from localrun.backends.torch.threads import share_threads
from localrun.hardware.machine import HostFigures, Speed
from localrun.hardware.measure_cpu import usual_rate
from localrun.hardware.measure_memory import Clock
from localrun.models.bare import flat
from localrun.models.describe import describe_config, layout_of
from localrun.plan.stack import stack
from localrun.releases.checkpoint import Checkpoint
from localrun.releases.read import release_of
from localrun.releases.stored.release import weights_of

_CPU: Final = torch.device("cpu")
_SIZE: Final = 4096  # rows and columns of a matrix
_MATRICES: Final = 4
_PROMPT: Final = 16
_CAPACITY: Final = 512
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
    share = seconds / (len(SMALL_MODELS) + 2)
    best: dict[str, float] = {}
    # Twice, some time apart: threads that wait for each other stand still while another program
    # has a core, which makes a token many times longer.
    for _ in range(2):
        for names, config in SMALL_MODELS:
            say(f"measuring cpu with torch: a block of {names[0]}")
            took = _block(config, share / 2, threads, clock)
            best |= {name: min(took, best.get(name, took)) for name in names}
    launches = {name: Speed(took, "measured", "torch") for name, took in best.items()}
    return HostFigures(_products(share, threads, clock), launches)


def _block(config: Mapping[str, object], seconds: float, threads: int, clock: Clock) -> float:
    """Milliseconds of a token in one block of a layer."""
    spec = describe_config(config)
    blocks = sum(layer.blocks for layer in stack(spec, {}, "bf16", 0).layers)
    with tempfile.TemporaryDirectory() as place, torch.no_grad(), failures(_CPU, "measuring"):
        source = Checkpoint(files_of((_written(Path(place), config),)))
        kernels = Kernels(threads)
        try:
            setup = Setup(FAST, _CPU, _CAPACITY, threads=threads, kernels=kernels)
            release = release_of(source, weights_of(source))
            flattened = flat(release.config)
            tensors = Tensors(release, setup)
            model = architecture(flattened.text("model_type") or "").build(flattened, tensors)
            try:
                return 1e3 / (usual_rate(_token(model, threads), 1.0, seconds, clock) * blocks)
            finally:
                model.close()
        finally:
            kernels.close()
            source.close()


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


def _products(seconds: float, threads: int, clock: Clock) -> Mapping[str, Speed]:
    """GB/s of weights by type, of one token's products with torch's kernels."""
    share_threads(1, FAST, threads)
    kernels = Kernels(threads)
    random = np.random.default_rng(0)
    codes = torch.from_numpy(random.integers(0, 120, (_SIZE, _SIZE), np.uint8))
    eights = fp8.bytes_of(codes, torch.ones(_SIZE // 128, _SIZE // 128), 128, 128)
    numbers = torch.from_numpy(random.standard_normal((_SIZE, _SIZE), np.float32))
    x = torch.from_numpy(random.standard_normal((1, _SIZE), np.float32))
    runs: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
        "F8_E4M3": (eights.nbytes, Tiled(eights, torch.bfloat16, torch.bfloat16, kernels)),
        "F32": (numbers.nbytes, dense.Dense(numbers)),
    }
    entered = x.bfloat16()
    try:
        return {
            name: Speed(
                usual_rate(partial(own, entered), size, seconds, clock) / 1e9, "measured", "torch"
            )
            for name, (size, own) in runs.items()
        }
    finally:
        kernels.close()
