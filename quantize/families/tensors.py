"""Knows no family: the tensors of a release as those of a GGUF file, by the planner's own table.

``localrun.models.gguf_layout`` says what every tensor becomes; the configuration says which there
must be. What is there and what must be are held against each other here, tensor by tensor.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from localrun.errors import HeaderError
from localrun.formats.extent import Extent
from localrun.formats.gguf_values import Value
from localrun.formats.text import shown
from localrun.models.bare import FILE, mixture_model
from localrun.models.facts import facts
from localrun.models.fields import Fields
from localrun.models.gguf_layout import Part, Rows, parts, place
from localrun.models.layout import LayoutTensor
from localrun.models.names import classify
from localrun.models.storage import BF16
from localrun.quantize.gguf_writer import Written
from localrun.quantize.models import GgufModel, GgufTensor
from localrun.releases.stored.plain import INTEGERS
from localrun.releases.views import Reshaped, Stacked, part_of_each
from localrun.releases.weights import Bytes, Floats, Weight, columns

Change = Callable[[str, Weight], Weight]
"""What a runner wants otherwise than the release has it: (name in the GGUF file, weight)."""
Split = Callable[[Weight, tuple[int, ...]], Weight]
"""Some rows of a weight, in the shape that they are to have."""
_EXPERT: Final = re.compile(r"(.*\.experts\.)([0-9]{1,6})(\..+)", re.ASCII | re.DOTALL)
# Buffers that old checkpoints store and every runner computes.
_COMPUTED: Final = re.compile(r"\.rotary_emb\.inv_freq$")
_KINDS: Final = {
    "vision": "the vision tower is a file of its own in GGUF and is left out",
    "draft": "the draft layers have no place in this architecture's GGUF file and are left out",
}
_HEAD: Final = "output.weight"
_TIED: Final = "the output head is the embedding again and is left out"


@dataclass(frozen=True, slots=True)
class Made:
    """The tensors of the file in their order, and what the user should know of them."""

    tensors: tuple[GgufTensor, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Held:
    """A weight that is computed, not read: a table of a few numbers."""

    name: str
    numbers: NDArray[np.float32]
    place: tuple[int, int] = (0, 0)
    stored: str = "F32"
    read_bytes: int = 0
    step: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        return self.numbers.shape

    def rows(self, start: int, stop: int) -> Floats:
        return self.numbers.reshape(-1, self.shape[-1])[start:stop]

    def ranges(self, start: int, stop: int) -> Iterator[Extent]:
        return iter(())

    def blocks(self, type: str, start: int, stop: int) -> Bytes | None:
        return None


def _same(name: str, weight: Weight) -> Weight:
    return weight


def _half(weight: Weight, shape: tuple[int, ...], second: bool) -> Weight:
    *count, inner, width = shape
    if weight.shape != (*count, 2 * inner, width):
        whole = (*count, 2 * inner, width)
        raise _error(weight, f"has the shape {weight.shape}; {whole} is split into gate and up")
    return part_of_each(weight, shape, 2 * inner, inner * second, inner * (1 + second))


def _first_half(weight: Weight, shape: tuple[int, ...]) -> Weight:
    return _half(weight, shape, second=False)


def _second_half(weight: Weight, shape: tuple[int, ...]) -> Weight:
    return _half(weight, shape, second=True)


_SPLITS: Final[Mapping[Rows, Split]] = {"gate": _first_half, "up": _second_half}


def made_of(
    weights: Mapping[str, Weight],
    layout: Iterable[LayoutTensor],
    config: Fields,
    *,
    change: Change = _same,
    splits: Mapping[Rows, Split] | None = None,
    extra: Iterable[GgufTensor] = (),
) -> Made:
    """Every tensor that ``layout`` (the release's, unquantized) asks for, made of ``weights``.

    Experts may be apart or merged in either. Types are those of a file of floats. ``splits`` are
    ways to take rows that only one family knows; ``extra`` are tensors that no release stores.

    Raises:
        HeaderError: a tensor is missing, has another shape, is there twice, or nobody knows it.
    """
    layers = facts(config).layers
    wanted = _wanted(layout, config, layers)
    ways = {**_SPLITS, **(splits or {})}
    found: dict[str, GgufTensor] = {}
    left_out: Counter[str] = Counter()
    for tensor, weight in _gathered(weights):
        became = () if _COMPUTED.search(tensor.name) else parts(tensor, config, layers)
        if not became:
            left_out[_KINDS.get(classify(tensor.name, layers)[0], "")] += tensor.copies
        for part in became:
            name = part.tensor.name
            if name == _HEAD and name not in wanted:
                left_out[_TIED] += 1
                continue
            if name in found:
                raise _error(weight, f"stands for {name} once more")
            if name not in wanted:
                raise _error(weight, f"is no tensor of this model: {FILE} does not ask for it")
            target = wanted[name][1]
            found[name] = GgufTensor(_written(target), _view(part, weight, target, ways, change))
    for name, (release, _) in wanted.items():
        if name not in found:
            raise HeaderError(shown(release), 0, f"is not in the checkpoint; {FILE} asks for it")
    tensors = sorted((*found.values(), *extra), key=lambda each: place(each.target.name))
    return Made(tuple(tensors), tuple(f"{why} ({n})" for why, n in left_out.items() if why))


def _wanted(
    layout: Iterable[LayoutTensor], config: Fields, layers: int
) -> dict[str, tuple[str, LayoutTensor]]:
    """By name in GGUF: what the release calls it, and what it is to be."""
    return {
        part.tensor.name: (tensor.name.replace("{e}", "0"), part.tensor)
        for tensor in layout
        for part in parts(tensor, config, layers)
    }


def _gathered(weights: Mapping[str, Weight]) -> Iterator[tuple[LayoutTensor, Weight]]:
    """Each weight beside what it would be in a layout; the experts of a layer as one.

    Raises:
        HeaderError: an expert is missing, or its shape is not the others'.
    """
    experts: dict[tuple[str, str], dict[int, Weight]] = defaultdict(dict)
    for name, weight in weights.items():
        found = _EXPERT.fullmatch(name)
        if found is None:
            yield LayoutTensor(name, weight.shape, BF16), weight
        elif experts[found[1], found[3]].setdefault(int(found[2]), weight) is not weight:
            raise _error(weight, "is there twice")
    for (before, after), each in experts.items():
        name = f"{before}{{e}}{after}"
        alike = [_expert(each, number, name) for number in range(len(each))]
        shape = alike[0].shape
        if not shape:
            raise _error(alike[0], "is a single number")
        for weight in alike:
            if weight.shape != shape:
                raise _error(weight, f"has the shape {weight.shape}, expert 0 has {shape}")
        stack = Stacked(tuple(alike), (len(alike), *shape))
        yield LayoutTensor(name, shape, BF16, len(alike)), stack


def _expert(each: Mapping[int, Weight], number: int, name: str) -> Weight:
    if number not in each:
        missing = name.replace("{e}", str(number))
        raise HeaderError(shown(missing), 0, f"is not there, expert {max(each)} is")
    return each[number]


def _written(tensor: LayoutTensor) -> Written:
    return Written(tensor.name, tensor.type, tensor.shape)


def _view(
    part: Part,
    weight: Weight,
    target: LayoutTensor,
    ways: Mapping[Rows, Split],
    change: Change,
) -> Weight:
    """The rows of ``weight`` that the part has, in its shape, as a runner wants them.

    Raises:
        HeaderError: of another shape than the configuration says.
    """
    if weight.stored in INTEGERS and target.type.name not in INTEGERS:
        raise _error(weight, f"holds {weight.stored}, and {target.name} floats")
    if part.tensor.shape != target.shape:
        raise _error(weight, f"has the shape {weight.shape}, {FILE} says {target.shape} in GGUF")
    if part.rows != "all":
        return change(target.name, ways[part.rows](weight, target.shape))
    if columns(weight) != target.shape[-1]:
        raise _error(weight, f"has the shape {weight.shape}, {FILE} says {target.shape} in GGUF")
    same = weight.shape == target.shape
    return change(target.name, weight if same else Reshaped(weight, target.shape))


def _error(weight: Weight, problem: str) -> HeaderError:
    return HeaderError(shown(weight.name), weight.place[1], problem)


def model_of(
    architecture: str, metadata: Mapping[str, Value], made: Made, config: Fields, *notes: str
) -> GgufModel:
    """The whole file; what mixtures look at is told by the same rules as the planner's."""
    seen = [LayoutTensor(t.target.name, t.target.shape, t.target.type) for t in made.tensors]
    mixed = mixture_model(config, seen)
    counted = mixed.blocks, mixed.experts, mixed.grouped
    return GgufModel(architecture, metadata, made.tensors, *counted, (*made.notes, *notes))
