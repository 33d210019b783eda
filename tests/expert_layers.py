"""The routed experts of one layer in any stored form, resident or in places."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from localrun.backends.torch.layers.feed_forward import Experts
from localrun.backends.torch.matrices.slots import ExpertSlots
from localrun.backends.torch.model import Setup
from localrun.backends.torch.numerics import Numerics
from localrun.backends.torch.tensors import Tensors
from localrun.disk.staged import Stage
from localrun.ggml.quantize import quantize
from localrun.ref import PathRef
from localrun.releases.checkpoint import Checkpoint
from localrun.releases.gguf_file import GgufFile
from localrun.releases.release import Release
from localrun.releases.stored.release import weights_of
from localrun.releases.views import Portion
from localrun.releases.weights import Weight
from localrun.store import on_disk
from tests.gguf_builder import gguf_bytes
from tests.matrices import FORMS, G, fp8
from tests.stored import write

COUNT, INNER, WIDTH = 6, 256, 512
SHAPES = {"w1": (INNER, WIDTH), "w3": (INNER, WIDTH), "w2": (WIDTH, INNER)}
GGUF = ("Q4_K", "Q8_0", "MXFP4", "BF16")
STORED = ("plain", "fp8-128", "fp8-f32", "fp4", "w4a16", "w4a16-zeros")
CPU = torch.device("cpu")
OPEN = ExitStack()


def written(folder: Path, form: str) -> Path:
    """A file of experts: a checkpoint as released, each matrix by itself, or GGUF's three stacks.
    Activations are rounded by blocks of another matrix where a form has none of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    if form in GGUF:
        data = {}
        for seed, (name, (rows, columns)) in enumerate(SHAPES.items()):
            drawn = G(seed).normal(0, 0.05, (COUNT * rows, columns)).astype("<f4")
            data[name] = quantize(form, drawn).tobytes()
        tensors = [(name, (COUNT, *shape), form) for name, shape in SHAPES.items()]
        path = folder / "experts.gguf"
        path.write_bytes(gguf_bytes({}, tensors, data=data))
        return path
    cases = [
        FORMS[form](f"e.{expert}.{name}", *shape, 10 * expert + seed)
        for expert in range(COUNT)
        for seed, (name, shape) in enumerate(SHAPES.items())
    ]
    stored = {name: each for case in cases for name, each in case.stored.items()}
    if form == "fp4":
        stored |= fp8("other", 256, 256, "e8m0", 128, 1).stored
    return write(folder, [stored], cases[0].quantization)


def opened(path: Path, stage: Stage | None = None) -> dict[str, Weight]:
    """The weights of a file by the names of a release, open until ``OPEN`` is closed."""
    files = on_disk.model_files(PathRef(str(path)))
    if path.suffix != ".gguf":
        return weights_of(OPEN.enter_context(Checkpoint(files, stage)))
    whole = OPEN.enter_context(GgufFile(files, stage)).weights()
    return {
        f"e.{expert}.{name}.weight": Portion(whole[name], shape, expert * shape[0])
        for name, shape in SHAPES.items()
        for expert in range(COUNT)
    }


@dataclass
class Kept:
    """In place of ``ExpertStore``: keeps the slots that it is given."""

    places_each: int
    slots: list[ExpertSlots] = field(default_factory=list)

    def places(self, count: int) -> int:
        return self.places_each

    def layer(self, slots: ExpertSlots, top: int, guess: Any) -> ExpertSlots:
        self.slots.append(slots)
        return slots


def taken(
    found: Mapping[str, Weight], numerics: Numerics, threads: int, late: bool, places: int = 0
) -> Any:
    """``Experts`` of all, or the slots of ``places``."""
    store: Any = Kept(places) if places else None
    setup = Setup(numerics, CPU, 64, threads=threads, experts=store)
    tensors = Tensors(Release("tiny", {}, found), setup)
    OPEN.callback(tensors.close)
    return tensors.experts(
        [f"e.{{e}}.{name}" for name in SHAPES],
        COUNT,
        INNER,
        WIDTH,
        top=2,
        guess=lambda x, tokens: tokens,
        limit=10.0,
        late=late,
    )


def resident(found: Mapping[str, Weight], numerics: Numerics, threads: int, late: bool) -> Experts:
    made = taken(found, numerics, threads, late)
    assert isinstance(made, Experts)
    return made
