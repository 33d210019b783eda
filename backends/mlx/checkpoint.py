"""Knows no sequences: a checkpoint's files → a model of mlx-lm with the weights that its plan keeps
in memory."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final, cast

import mlx.core as mx
from mlx.nn.layers import quantized
from mlx.utils import tree_flatten

from localrun.backends.mlx import deepseek_v41
from localrun.backends.mlx.architectures import MODULES
from localrun.backends.mlx.engram import Hashes, Rows
from localrun.backends.mlx.library import model_module, own_module
from localrun.backends.mlx.on_disk import OnDisk
from localrun.engine.runner import ForwardAborted
from localrun.errors import EngineError
from localrun.formats.read import read_header
from localrun.formats.reader import FileSource
from localrun.formats.strict_json import read_config
from localrun.formats.text import shown
from localrun.plan.plan import Execution

CONFIG: Final = "config.json"
_CONVERT: Final = "make one that mlx reads: `localrun quantize SRC OUT --type mlx-8bit`"
# What a release's ``quant_method`` may be: mlx-lm's models unpack these by their own ``sanitize``.
_UNPACKED: Final = frozenset({"fp8", "mxfp4", "mxfp8"})
# (bits, weights to a scale) of the modes whose scales are bytes (mx.quantize).
_BYTE_SCALES: Final = {(4, 32): "mxfp4", (4, 16): "nvfp4", (8, 32): "mxfp8"}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model; ``nbytes`` is what its weights take of memory, tables too. Whoever sets ``asked``
    ends the wait for a disk. ``files`` are open where something is read while the model runs."""

    model: Any
    config: Mapping[str, Any]
    directory: Path
    nbytes: int
    asked: threading.Event
    files: OnDisk | None = None

    @property
    def interruptible(self) -> bool:
        """Whether a step may end in its middle."""
        return self.files is not None and self.files.reader is not None

    def close(self) -> None:
        """Again does nothing."""
        if self.files is not None:
            self.files.close()


def read_checkpoint(files: Sequence[str], execution: Execution, *, float32: bool) -> Checkpoint:
    """The model of ``files``, safetensors of one directory with its config.json.

    ``float32`` computes in 32 bits: what is not a matrix becomes float32, and mlx then promotes
    what it is multiplied with. Matrices keep their type in memory, and caches are not rounded.

    Raises:
        HeaderError: a file is torn, or its header or the configuration is malformed.
        EngineError: mlx-lm has no such model, the tensors are not its own, or they do not stream
            as the plan says.
        DiskReadError: a file cannot be opened for direct reads.
    """
    read_header([Path(file) for file in files])
    directory = Path(files[0]).parent
    config = _config(directory)
    asked = threading.Event()

    def check() -> None:
        if asked.is_set():
            raise ForwardAborted

    apart = execution.streams or _has_tables(config)
    open_files = OnDisk(files, execution, check) if apart else None
    try:
        model, held = _built(files, config, execution, open_files, float32=float32)
    except BaseException:
        if open_files is not None:
            open_files.close()
        raise
    return Checkpoint(model, config, directory, held, asked, open_files)


def _built(
    files: Sequence[str],
    config: Mapping[str, Any],
    execution: Execution,
    open_files: OnDisk | None,
    *,
    float32: bool,
) -> tuple[Any, int]:
    """The model with its weights, and the bytes that they take."""
    ours = _kind(config) in deepseek_v41.NAMES
    engram = (
        open_files.engram() if open_files and ours and deepseek_v41.has_tables(config) else None
    )
    module, model = _empty(config, float32=float32)
    try:
        weights = _weights(files)
        held = deepseek_v41.taken(weights, engram) if engram else {}
        stacks = open_files.stacks(model, weights) if open_files and execution.streams else {}
        if hasattr(model, "sanitize"):
            weights = model.sanitize(weights)
        weights |= stacks
        _pack(model, weights)
        model.eval()
        model.load_weights(list(weights.items()), strict=True)
        if float32:
            _widen(model)
            if _kind(config) in deepseek_v41.NAMES:
                deepseek_v41.widen(model)
        mx.eval(model)
        if stacks and open_files:
            open_files.stream(model)
        if engram and open_files:
            rows = Rows(Hashes(engram), open_files.tables)
            model = deepseek_v41.joined(model, module, held, engram, rows, _pack)
            mx.eval(model)
    except (ValueError, KeyError, TypeError, RuntimeError, IndexError, AttributeError) as error:
        raise EngineError(
            f"{Path(files[0]).parent}: its tensors are not those of a {_model_type(config)!r} in "
            f"mlx-lm: {_first_line(error)}",
            hint=_CONVERT,
        ) from error
    memory = sum(array.nbytes for array in _parameters(model).values())
    return model, memory + (open_files.table_bytes if open_files else 0)


def _parameters(model: Any) -> dict[str, mx.array]:
    return dict(cast(list[tuple[str, mx.array]], tree_flatten(model.parameters())))


def _config(directory: Path) -> dict[str, Any]:
    path = directory / CONFIG
    if not path.is_file():
        raise EngineError(
            f"{directory}: no {CONFIG} beside the weights",
            hint="get the model's whole directory, or a GGUF file of it",
        )
    with FileSource(path) as source:
        config: dict[str, Any] = read_config(source, str(path))
    told = config.get("quantization_config")
    method = told.get("quant_method") if isinstance(told, dict) else None
    if method is not None and method not in _UNPACKED and "quantization" not in config:
        raise EngineError(
            f"{path}: quantized as {shown(str(method))!r}, which the mlx backend does not read",
            hint=_CONVERT,
        )
    return config


def _kind(config: Mapping[str, Any]) -> str:
    return str(config.get("model_type"))


def _has_tables(config: Mapping[str, Any]) -> bool:
    return _kind(config) in deepseek_v41.NAMES and deepseek_v41.has_tables(config)


def _model_type(config: Mapping[str, Any]) -> str:
    return shown(_kind(config))


def _empty(config: Mapping[str, Any], *, float32: bool) -> tuple[ModuleType, Any]:
    """The module and its model with no weights yet. The module's name is one of a list, never the
    file's."""
    module_name = MODULES.get(_kind(config))
    if module_name is None:
        raise EngineError(
            f"mlx-lm has no model of type {_model_type(config)!r}",
            hint="another conversion of the model may be supported: look for its GGUF",
        )
    wanted = dict(config)
    if _kind(config) in deepseek_v41.NAMES:
        wanted, module = deepseek_v41.without_tables(config), own_module(module_name)
        deepseek_v41.changed(module, float32=float32)
    else:
        module = model_module(module_name)
    try:
        return module, module.Model(module.ModelArgs.from_dict(wanted))
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise EngineError(
            f"{CONFIG}: no {_model_type(config)!r} can be built of it: {_first_line(error)}",
            hint="get the model's own config.json",
        ) from error


def _weights(files: Sequence[str]) -> dict[str, mx.array]:
    found: dict[str, mx.array] = {}
    for file in files:
        found.update(cast(dict[str, mx.array], mx.load(file, format="safetensors")))
    return found


def _pack(model: Any, weights: Mapping[str, mx.array]) -> None:
    """Make quantized modules of those whose weights are: their tensors say how."""

    def packed(path: str, module: Any) -> Any:
        if f"{path}.scales" not in weights or not hasattr(module, "to_quantized"):
            return False
        return _packing(path, module.weight.shape[-1], weights)

    quantized.quantize(model, class_predicate=packed)


def _packing(path: str, width: int, weights: Mapping[str, mx.array]) -> dict[str, Any]:
    """How ``path`` is quantized, by the shapes of its words and scales (mx.quantize)."""
    scales, words = weights[f"{path}.scales"], weights[f"{path}.weight"]
    group, bits = width // scales.shape[-1], words.shape[-1] * 32 // width
    mode = "affine" if scales.dtype != mx.uint8 else _BYTE_SCALES.get((bits, group))
    if mode is None:
        raise ValueError(f"{path}: {bits} bits with a scale for {group} weights is no mode of mlx")
    return {"group_size": group, "bits": bits, "mode": mode}


def _widen(model: Any) -> None:
    """Norms, biases and scales in float32, so that everything is computed in it.

    A CPU multiplies quantized weights by float32 eight times as fast as by BF16. And where sums
    over the layers are BF16, SmolLM2 picks another token than llama.cpp 12 times of 256, else once.
    """
    packed = {
        f"{path}.{part}"
        for path, module in model.named_modules()
        if hasattr(module, "scales")
        for part in ("scales", "biases")
    }
    wide = {
        name: array.astype(mx.float32)
        for name, array in _parameters(model).items()
        if mx.issubdtype(array.dtype, mx.floating) and (array.ndim == 1 or name in packed)
    }
    model.load_weights(list(wide.items()), strict=False)


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return shown(text.splitlines()[0])
