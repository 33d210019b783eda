"""Knows no memory: where the experts of mlx-lm's layers lie in a checkpoint's files.

A layer's are one tensor for each matrix, as mlx-lm writes them, or one for each expert as released:
in floats, or in the FP8 and FP4 codes of DeepSeek-V4 and later, which mlx's kernels take as they
are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import mlx.core as mx

from localrun.errors import EngineError
from localrun.formats.extent import Extent
from localrun.formats.header import TensorInfo
from localrun.formats.text import shown

PROJECTIONS: Final = ("gate_proj", "up_proj", "down_proj")
_CALLED: Final = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
_ALONE: Final = re.compile(
    r"(?:[a-z_]+\.)*layers\.([0-9]{1,4})\.(?:[a-z_]+\.)*experts\.([0-9]{1,6})\."
    r"(w[123]|gate_proj|up_proj|down_proj)\.([a-z_]+)",
    re.ASCII,
)
_LAYER: Final = re.compile(r"(?:^|\.)layers\.([0-9]{1,4})\.", re.ASCII)
_KINDS: Final = {
    "U32": mx.uint32, "U8": mx.uint8, "BF16": mx.bfloat16, "F16": mx.float16, "F32": mx.float32,
}  # fmt: skip
_FLOATS: Final = ("BF16", "F16", "F32")
_SCALES: Final = ("F8_E8M0", "U8")
_GROUP: Final = 32


@dataclass(frozen=True, slots=True)
class Stored:
    """One array of one matrix: a tensor for each expert, or one for all of them."""

    tensors: tuple[TensorInfo, ...]
    count: int

    @property
    def kind(self) -> str:
        return self.tensors[0].type.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one expert's."""
        shape = self.tensors[0].shape
        return shape if len(self.tensors) == self.count else shape[1:]

    def extent(self, expert: int) -> Extent:
        if len(self.tensors) == self.count:
            own = self.tensors[expert]
            return Extent(own.file, own.offset, own.bytes)
        whole = self.tensors[0]
        each = whole.bytes // self.count
        return Extent(whole.file, whole.offset + expert * each, each)


@dataclass(frozen=True, slots=True)
class Matrix:
    """One projection of a layer's experts; ``parts`` by the names that mlx has for them."""

    name: str
    projection: str
    count: int
    parts: Mapping[str, Stored]

    def stacks(self, places: int) -> dict[str, mx.array]:
        """Arrays for so many experts, as mlx-lm's module has them.

        Raises:
            EngineError: of a form that mlx would have to change.
        """
        made = {part: self._form(part) for part in self.parts}
        return {part: mx.zeros((places, *shape), kind) for part, (kind, shape) in made.items()}

    def _form(self, part: str) -> tuple[mx.Dtype, tuple[int, ...]]:
        own, weight = self.parts[part], self.parts["weight"]
        codes, alone = weight.kind in ("I8", "F8_E4M3"), self.parts.keys() == {"weight"}
        if weight.kind in _FLOATS and alone:
            return _KINDS[own.kind], own.shape
        if weight.kind == "U32" and not alone and own.kind in _KINDS:
            return _KINDS[own.kind], own.shape
        rows, width = weight.shape
        if codes and part == "weight" and self.parts.keys() == {"weight", "scales"}:
            return mx.uint32, (rows, width // 4)
        numbers = width if weight.kind == "F8_E4M3" else 2 * width
        lines = (rows, -(-rows // _GROUP)) if weight.kind == "F8_E4M3" else (rows,)
        if codes and own.kind in _SCALES and own.shape in [(n, numbers // _GROUP) for n in lines]:
            return mx.uint8, (rows, numbers // _GROUP)
        raise _not_streamed(self.name, f"{weight.kind} beside {own.kind} {list(own.shape)}")


def matrices_of(modules: Iterable[str], tensors: Sequence[TensorInfo]) -> dict[str, list[Matrix]]:
    """The matrices of each of ``modules``, paths of ``SwitchGLU`` in a model of mlx-lm.

    Raises:
        EngineError: a module's experts are not stored as any of the forms.
    """
    by_name = {tensor.name: tensor for tensor in tensors}
    alone = _alone(tensors)
    found: dict[str, list[Matrix]] = {}
    for path in modules:
        layer = layer_of(path)
        held = []
        for projection in PROJECTIONS:
            parts = _stacked(f"{path}.{projection}", by_name) or alone.get((layer, projection), {})
            if "weight" not in parts:
                raise _not_streamed(path, "other tensors than one for each expert or one for all")
            name = parts["weight"].tensors[0].name
            held.append(Matrix(name, projection, parts["weight"].count, parts))
        if len({(part.count) for each in held for part in each.parts.values()}) != 1:
            raise _not_streamed(path, "different numbers of tensors")
        found[path] = held
    return found


def layer_of(path: str) -> int:
    """Raises EngineError for a module of no layer."""
    found = _LAYER.search(path)
    if found is None:
        raise _not_streamed(path, "no number of a layer")
    return int(found[1])


def names_of(matrices: Iterable[Matrix]) -> Iterator[str]:
    """Every tensor that holds one of them."""
    for matrix in matrices:
        for part in matrix.parts.values():
            yield from (tensor.name for tensor in part.tensors)


def _stacked(path: str, by_name: Mapping[str, TensorInfo]) -> dict[str, Stored]:
    found = {part: by_name.get(f"{path}.{part}") for part in ("weight", "scales", "biases")}
    return {
        part: Stored((tensor,), tensor.shape[0] if tensor.shape else 0)
        for part, tensor in found.items()
        if tensor is not None
    }


def _alone(tensors: Sequence[TensorInfo]) -> dict[tuple[int, str], dict[str, Stored]]:
    held: dict[tuple[int, str, str], dict[int, TensorInfo]] = {}
    for tensor in tensors:
        if told := _ALONE.fullmatch(tensor.name):
            layer, expert, projection, part = told.groups()
            key = (
                int(layer),
                _CALLED.get(projection, projection),
                "scales" if part == "scale" else part,
            )
            held.setdefault(key, {})[int(expert)] = tensor
    found: dict[tuple[int, str], dict[str, Stored]] = {}
    for (layer_number, projection, part), by_number in held.items():
        numbers = sorted(by_number)
        listed = tuple(by_number[number] for number in numbers)
        alike = len({(each.type.name, each.shape) for each in listed}) == 1
        if numbers != list(range(len(numbers))) or not alike:
            raise _not_streamed(listed[0].name, "different numbers or shapes of tensors")
        found.setdefault((layer_number, projection), {})[part] = Stored(listed, len(listed))
    return found


def _not_streamed(name: str, form: str) -> EngineError:
    return EngineError(
        f"{shown(name)}: experts are stored in a form that does not stream with mlx: {form}",
        hint="it runs where memory holds all experts; or choose another backend",
    )
