"""Knows no architecture: how releases store their matrices, by ``quantization_config``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from localrun.formats.header import TensorType
from localrun.formats.text import shown
from localrun.formats.types import SAFETENSORS_TYPES
from localrun.models.architecture import Storage
from localrun.models.fields import WIDTH_MAX, Fields
from localrun.models.layout import LayoutTensor

F32 = SAFETENSORS_TYPES["F32"]
BF16 = SAFETENSORS_TYPES["BF16"]
U8 = SAFETENSORS_TYPES["U8"]
I32 = SAFETENSORS_TYPES["I32"]
I64 = SAFETENSORS_TYPES["I64"]
F8 = SAFETENSORS_TYPES["F8_E4M3"]
_FLOATS = {
    "bfloat16": BF16,
    "float16": SAFETENSORS_TYPES["F16"],
    "float32": F32,
}
_GROUP = 32
_PATTERN = re.compile(r"(?:[\w.*+|()^$-]|\\[.d]){1,200}")
_NESTED = re.compile(r"[)*+][*+]|\(\?")
_REPETITIONS_MAX = 3


class _Kept(Protocol):
    """Whether a module keeps its float type."""

    def __call__(self, name: str) -> bool: ...


@dataclass(frozen=True, slots=True)
class Plain:
    """Every tensor in one float type."""

    type: TensorType = BF16

    def linear(
        self, name: str, rows: int, columns: int, *, copies: int = 1
    ) -> Iterator[LayoutTensor]:
        yield LayoutTensor(f"{name}.weight", (rows, columns), self.type, copies)

    def plain(self, name: str, *shape: int) -> Iterator[LayoutTensor]:
        yield LayoutTensor(name, shape, self.type)


def _nothing(name: str) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Fp8Block:
    """``.weight`` F8_E4M3 and ``.weight_scale_inv`` F32, one for each ``block``; for the whole
    matrix where ``block`` is None (https://huggingface.co/deepseek-ai/DeepSeek-V3, README_WEIGHTS).
    """

    type: TensorType = BF16
    block: tuple[int, int] | None = (128, 128)
    kept: _Kept = _nothing

    def linear(
        self, name: str, rows: int, columns: int, *, copies: int = 1
    ) -> Iterator[LayoutTensor]:
        if self.kept(name):
            yield LayoutTensor(f"{name}.weight", (rows, columns), self.type, copies)
            return
        scales: tuple[int, ...] = ()
        if self.block:
            scales = (-(-rows // self.block[0]), -(-columns // self.block[1]))
        yield LayoutTensor(f"{name}.weight", (rows, columns), F8, copies)
        yield LayoutTensor(f"{name}.weight_scale_inv", scales, F32, copies)

    def plain(self, name: str, *shape: int) -> Iterator[LayoutTensor]:
        yield LayoutTensor(name, shape, self.type)


@dataclass(frozen=True, slots=True)
class Mxfp4Blocks(Plain):
    """gpt-oss: the experts alone are quantized, merged over the layer; the architecture writes
    ``_blocks`` and ``_scales`` itself through ``merged``."""

    def merged(self, name: str, count: int, rows: int, columns: int) -> Iterator[LayoutTensor]:
        groups = -(-columns // _GROUP)
        yield LayoutTensor(f"{name}_blocks", (count, rows, groups, _GROUP // 2), U8)
        yield LayoutTensor(f"{name}_scales", (count, rows, groups), U8)


@dataclass(frozen=True, slots=True)
class Packed:
    """compressed-tensors: four-bit codes beside one scale a group of 32
    (https://github.com/vllm-project/compressed-tensors, compressors/quantized_compressors).

    Integers are eight to an I32 word, with their shape written beside them; e2m1 floats are two to
    a byte with U8 exponents.
    """

    type: TensorType = BF16
    group: int = _GROUP
    floats: bool = False
    kept: _Kept = _nothing

    def linear(
        self, name: str, rows: int, columns: int, *, copies: int = 1
    ) -> Iterator[LayoutTensor]:
        groups = -(-columns // self.group)
        if self.kept(name):
            yield LayoutTensor(f"{name}.weight", (rows, columns), self.type, copies)
        elif self.floats:
            yield LayoutTensor(f"{name}.weight_packed", (rows, -(-columns // 2)), U8, copies)
            yield LayoutTensor(f"{name}.weight_scale", (rows, groups), U8, copies)
        else:
            yield LayoutTensor(f"{name}.weight_packed", (rows, -(-columns // 8)), I32, copies)
            yield LayoutTensor(f"{name}.weight_scale", (rows, groups), self.type, copies)
            yield LayoutTensor(f"{name}.weight_shape", (2,), I64, copies)

    def plain(self, name: str, *shape: int) -> Iterator[LayoutTensor]:
        yield LayoutTensor(name, shape, self.type)


def storage_of(config: Fields) -> Storage:
    """How the release of this config.json stores its matrices.

    Raises:
        HeaderError: a ``quantization_config`` or a dtype that is not known here.
    """
    kind = _float(config)
    quantization = config.mapping("quantization_config")
    if quantization is None:
        return Plain(kind)
    method = quantization.text("quant_method")
    if method == "fp8":
        return Fp8Block(kind, _block(quantization), _listed(quantization, "modules_to_not_convert"))
    if method == "mxfp4":
        return Mxfp4Blocks(kind)
    if method == "compressed-tensors":
        return _compressed(quantization, kind)
    raise quantization.error("quant_method", f"{method!r} is not one that a layout is known for")


def _float(config: Fields) -> TensorType:
    key = "dtype" if config.values.get("dtype") is not None else "torch_dtype"
    name = (config.text(key) or "bfloat16").removeprefix("torch.")
    if name not in _FLOATS:
        raise config.error(key, f"{name!r} is not one of {', '.join(_FLOATS)}")
    return _FLOATS[name]


def _block(quantization: Fields) -> tuple[int, int] | None:
    block = quantization.integers("weight_block_size", least=1, most=WIDTH_MAX)
    if block is None:
        return None
    if len(block) != 2:
        raise quantization.error("weight_block_size", f"has {len(block)} entries, not 2")
    return block[0], block[1]


def _compressed(quantization: Fields, kind: TensorType) -> Storage:
    layout = quantization.text("format")
    kept = _listed(quantization, "ignore")
    if layout == "pack-quantized":
        return Packed(kind, _group(quantization), kept=kept)
    if layout == "mxfp4-pack-quantized":
        return Packed(kind, floats=True, kept=kept)
    raise quantization.error("format", f"{layout!r} is not one that a layout is known for")


def _group(quantization: Fields) -> int:
    groups = quantization.mapping("config_groups")
    first = groups.mapping(next(iter(groups.values), "")) if groups else None
    weights = first.mapping("weights") if first else None
    if weights is None:
        raise quantization.error("config_groups", "says nothing of weights")
    if weights.integer("num_bits", most=64) != 4:
        raise weights.error("num_bits", "is not 4, the one width a layout is known for")
    return weights.needed("group_size", most=WIDTH_MAX)


@dataclass(frozen=True, slots=True)
class _Listed:
    """Modules by name, by the end or the beginning of it, or by ``re:`` and a pattern."""

    names: tuple[str, ...]
    patterns: tuple[re.Pattern[str], ...]

    def __call__(self, name: str) -> bool:
        whole = name.replace("{e}", "0")
        return any(pattern.match(whole) for pattern in self.patterns) or any(
            whole == entry or whole.startswith(f"{entry}.") or whole.endswith(f".{entry}")
            for entry in self.names
        )


def _listed(quantization: Fields, key: str) -> _Kept:
    value = quantization.values.get(key) or ()
    if not isinstance(value, tuple | list) or not all(isinstance(item, str) for item in value):
        raise quantization.error(key, "is not a list of strings")
    names = tuple(item for item in value if not item.startswith("re:"))
    patterns = tuple(
        _pattern(quantization, key, item.removeprefix("re:"))
        for item in value
        if item.startswith("re:")
    )
    return _Listed(names, patterns)


def _pattern(quantization: Fields, key: str, text: str) -> re.Pattern[str]:
    # A stranger's pattern may take for ever: repetitions are few, of single characters, not nested.
    repeated = text.count("*") + text.count("+")
    if not _PATTERN.fullmatch(text) or repeated > _REPETITIONS_MAX or _NESTED.search(text):
        raise quantization.error(key, f"re:{shown(text)} is not a pattern of module names")
    try:
        return re.compile(text)
    except re.error as error:
        raise quantization.error(key, f"re:{shown(text)} is no pattern: {error}") from error
