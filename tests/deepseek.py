"""Small DeepSeek checkpoints as they are released, and what converters make of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localrun.formats.header import Header
from localrun.formats.read import read_header
from localrun.quantize.families import registry
from localrun.quantize.gguf_writer import GgufPlan
from localrun.quantize.models import GgufModel, GgufTensor
from localrun.ref import PathRef
from localrun.releases.checkpoint import Checkpoint
from localrun.releases.gguf_file import GgufFile
from localrun.releases.stored.release import weights_of
from localrun.releases.weights import Floats, Weight, row_count
from localrun.store import on_disk

BENCH = str(Path(__file__).parents[1] / "bench")
Edit = Callable[[dict[str, Weight]], dict[str, Weight]]


def base(arch: str, **changes: Any) -> dict[str, Any]:
    """The smallest configuration of an architecture, with changes."""
    config: dict[str, Any] = _bench("synthetic_configs").base(arch)
    return config | changes


def write(folder: Path, config: Mapping[str, Any], seed: int = 0) -> Path:
    """A checkpoint of ``config`` in its release's format."""
    _bench("synthetic_checkpoint").write(folder, dict(config), seed, False)
    return folder


def _bench(name: str) -> Any:
    if BENCH not in sys.path:
        sys.path.append(BENCH)
    return import_module(name)


def opened(folder: Path) -> Checkpoint:
    return Checkpoint(on_disk.model_files(PathRef(str(folder))))


def gguf_file(path: Path) -> GgufFile:
    return GgufFile(on_disk.model_files(PathRef(str(path))))


def convert(
    folder: Path, changes: Mapping[str, Any] | None = None, edit: Edit | None = None
) -> GgufModel:
    """The checkpoint in ``folder`` with another configuration or other weights. Nothing is read of
    what it returns: the files are closed."""
    with opened(folder) as checkpoint:
        return convert_opened(checkpoint, changes, edit)


def convert_opened(
    checkpoint: Checkpoint, changes: Mapping[str, Any] | None = None, edit: Edit | None = None
) -> GgufModel:
    config = dict(checkpoint.config)
    text = config.get("text_config")
    if isinstance(text, dict):
        config["text_config"] = {**text, **(changes or {})}
    else:
        config |= changes or {}
    checkpoint.config = config
    weights = weights_of(checkpoint)
    return registry.convert(checkpoint, edit(weights) if edit else weights, "tiny")


def numbers(weight: Weight) -> Floats:
    """All of a weight, in its shape."""
    return weight.rows(0, row_count(weight)).reshape(weight.shape)


def by_name(model: GgufModel) -> dict[str, GgufTensor]:
    return {tensor.target.name: tensor for tensor in model.tensors}


def written(model: GgufModel, out: Path, moved: Mapping[str, str]) -> Header:
    """``model`` as a file: tensors of ``moved`` in those types bit by bit, others as floats."""
    tensors = [
        tensor.target.__class__(
            tensor.target.name,
            _kind(moved.get(tensor.target.name, tensor.target.type.name)),
            tensor.target.shape,
        )
        for tensor in model.tensors
    ]
    plan = GgufPlan(model.metadata, tuple(tensors))
    head = plan.header()
    with out.open("wb") as file:
        file.truncate(plan.bytes)
        file.write(head)
        for target, offset, each in zip(plan.tensors, plan.offsets, model.tensors, strict=True):
            file.seek(len(head) + offset)
            file.write(_encoded(each.weight, target.type.name).tobytes())
    return read_header([out])


def _kind(name: str) -> Any:
    from localrun.formats.types import GGUF_TYPES

    return next(kind for kind in GGUF_TYPES.values() if kind.name == name)


def _encoded(weight: Weight, kind: str) -> NDArray[Any]:
    rows = row_count(weight)
    found = weight.blocks(kind, 0, rows)
    if found is not None:
        return found
    values = weight.rows(0, rows).astype("<f4")
    if kind == "F32":
        return values
    assert kind == "BF16", kind
    bits = values.view("<u4").astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
