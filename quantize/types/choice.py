"""Knows no bytes: which type every tensor of a GGUF file gets, and what the user is told of it.

The rules of mixtures are llama.cpp's (``localrun.models.mixtures``). What is added here: a type
that the user names for a tensor, weights that are stored in 4 bits already, and refusals before any
work is done.

What stays as the release stores it is told by ``localrun.models.native``; ``--tensor-type`` has its
way over that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from localrun.formats.types import GGUF_TYPES
from localrun.models.gguf_config import FILE_TYPES
from localrun.models.layout import LayoutTensor
from localrun.models.mixtures import Assigned, Model, assigned, mixture_name, quantizable
from localrun.models.native import FOUR_BITS as _NATIVE
from localrun.models.native import settled, stays
from localrun.quantize.gguf_writer import Written
from localrun.quantize.models import GgufModel, GgufTensor
from localrun.quantize.types.needs import require_importance, unweighted_warning
from localrun.quantize.types.overrides import Override, override_of, require_matches

_TYPES: Final = {kind.name: kind for kind in GGUF_TYPES.values()}
_NATIVELY_STORED: Final = frozenset({"FP4", "MXFP4"})
_FLOATS: Final = frozenset({"F64", "F32", "F16", "BF16", "FP8"})


@dataclass(frozen=True, slots=True)
class Fallback:
    """A tensor whose rows of ``columns`` are no whole blocks of the type that was wanted."""

    name: str
    columns: int
    wanted: str
    got: str


@dataclass(frozen=True, slots=True)
class Choice:
    """The final ``types`` by tensor, in the order of the model's tensors.

    ``native`` are the tensors that keep their source's 4 bits. ``notes`` and ``warnings`` are for
    the user, one sentence each.
    """

    mixture: str
    types: Mapping[str, str]
    fallbacks: tuple[Fallback, ...] = ()
    native: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def file_type(self) -> int:
        """``general.file_type``: the mixture's number in llama.cpp's ``enum llama_ftype``."""
        return next(number for number, name in FILE_TYPES.items() if name == self.mixture)


def choose(
    model: GgufModel,
    mixture: str,
    *,
    overrides: Sequence[Override] = (),
    weighted: bool = False,
    covered: Collection[str] | None = None,
) -> Choice:
    """Decide every tensor's type by a mixture.

    ``weighted`` says that an importance matrix is at hand, ``covered`` which tensors it has numbers
    for (None: all).

    Raises:
        UsageError: no such mixture, an override that fits nothing, or a type that cannot be made
            without an importance matrix.
    """
    name = mixture_name(mixture, flag="--type")
    require_matches(overrides, changeable(model))
    tensors = {each.target.name: each for each in model.tensors}
    found = _by_rules(model, name, tensors, overrides, weighted=weighted)
    named = {each for each in tensors if override_of(each, overrides) is not None}
    kept = tuple(
        each.tensor.name
        for each in found
        if each.tensor.name not in named
        and stays_as_stored(tensors[each.tensor.name], each.tensor.type.name)
    )
    types = {each.tensor.name: each.tensor.type.name for each in found}
    types |= dict.fromkeys(kept, _NATIVE)
    types |= {key: each.target.type.name for key, each in tensors.items() if each.fixed}
    fallbacks = tuple(_fallbacks(found, types, kept))
    return finished(model, name, types, fallbacks, kept, _covered(weighted, covered, types))


def _covered(
    weighted: bool, covered: Collection[str] | None, types: Mapping[str, str]
) -> Collection[str] | None:
    if not weighted:
        return None
    return types.keys() if covered is None else covered


def finished(
    model: GgufModel,
    mixture: str,
    types: Mapping[str, str],
    fallbacks: tuple[Fallback, ...],
    kept: tuple[str, ...],
    covered: Collection[str] | None,
) -> Choice:
    """A choice of types with all that is to be said of it, or refused.

    Raises:
        UsageError: a type that cannot be made without an importance matrix.
    """
    ordered = {each.target.name: types[each.target.name] for each in model.tensors}
    stored = {each.target.name: each.weight.stored for each in model.tensors}
    made = {name: type for name, type in ordered.items() if stored[name] != type}
    require_importance(made, mixture, covered)
    notes = (
        fallback_note(fallbacks, len(ordered)),
        _native_note(kept),
        _dense_note(mixture, ordered),
    )
    warnings = (
        unweighted_warning(made, covered),
        _requantized(made, stored, kept),
        _bigger(model, ordered),
    )
    return Choice(
        mixture, ordered, fallbacks, kept, tuple(filter(None, notes)), tuple(filter(None, warnings))
    )


def changeable(model: GgufModel) -> list[str]:
    """The tensors whose type a mixture, an override or a budget may change."""
    rules = _rules(model)
    return [
        each.target.name
        for each in model.tensors
        if not each.fixed and quantizable(_layout(each), rules)
    ]


def stays_as_stored(tensor: GgufTensor, type: str) -> bool:
    """Whether weights stored in 4 bits are better left so than made ``type``."""
    if tensor.fixed or tensor.weight.stored not in _NATIVELY_STORED:
        return False
    return stays(type, tensor.target.columns)


def _rules(model: GgufModel) -> Model:
    return Model(model.architecture, model.blocks, model.experts, model.grouped)


def _layout(tensor: GgufTensor) -> LayoutTensor:
    return LayoutTensor(tensor.target.name, tensor.target.shape, tensor.target.type)


def _by_rules(
    model: GgufModel,
    mixture: str,
    tensors: Mapping[str, GgufTensor],
    overrides: Sequence[Override],
    *,
    weighted: bool,
) -> list[Assigned]:
    """By layer and name, which is the order that llama.cpp counts in."""

    def override(name: str) -> str | None:
        each = tensors[name]
        if each.fixed:
            return each.target.type.name
        return override_of(name, overrides) or settled(name, mixture)

    listed = [_layout(tensors[name]) for name in sorted(tensors, key=_order)]
    return list(assigned(listed, mixture, _rules(model), weighted=weighted, override=override))


def _order(name: str) -> tuple[int, str]:
    head, _, rest = name.partition(".")
    layer = rest.partition(".")[0]
    return (int(layer) if head == "blk" and layer.isdecimal() else -1), name


def _fallbacks(
    found: Iterable[Assigned], types: Mapping[str, str], kept: Collection[str]
) -> Iterable[Fallback]:
    for each in found:
        tensor = each.tensor
        if each.wanted != tensor.type.name and tensor.name not in kept:
            yield Fallback(tensor.name, tensor.shape[-1], each.wanted, types[tensor.name])


def fallback_note(fallbacks: Sequence[Fallback], tensors: int) -> str | None:
    """How many of a file's tensors did not get the type that was wanted, and what they got."""
    if not fallbacks:
        return None
    kinds = Counter((each.wanted, each.got) for each in fallbacks)
    listed = ", ".join(f"{count} × {old} → {new}" for (old, new), count in sorted(kinds.items()))
    widths = ", ".join(str(width) for width in sorted({each.columns for each in fallbacks}))
    return (
        f"{len(fallbacks)} of {tensors} tensors fall back, since their rows of {widths} are no"
        f" whole blocks: {listed}"
    )


def _native_note(kept: Sequence[str]) -> str | None:
    if not kept:
        return None
    return (
        f"{len(kept)} tensors keep the 4 bits that they were released in, bit by bit as {_NATIVE}:"
        f" more would add nothing (--tensor-type 'REGEX=TYPE' has them changed)"
    )


def _dense_note(mixture: str, types: Mapping[str, str]) -> str | None:
    if mixture != _NATIVE or _NATIVE in types.values():
        return None
    return (
        f"{_NATIVE} is for experts and this model has none: its matrices are Q8_0, as llama.cpp"
        f" makes them (--tensor-type 'blk=MXFP4' makes them {_NATIVE})"
    )


def _requantized(
    made: Mapping[str, str], stored: Mapping[str, str], kept: Collection[str]
) -> str | None:
    """Quantizing what is quantized adds one error to another."""
    twice = Counter(
        stored[name]
        for name, type in made.items()
        if name not in kept and stored[name] not in _FLOATS and _TYPES[type].block_elements > 1
    )
    if not twice:
        return None
    listed = ", ".join(f"{count} × {type}" for type, count in sorted(twice.items()))
    return f"tensors that are quantized already are quantized again ({listed}): better from floats"


def _bigger(model: GgufModel, types: Mapping[str, str]) -> str | None:
    """A model released in 4 bits is small already."""
    if not any(each.weight.stored in _NATIVELY_STORED for each in model.tensors):
        return None
    before = sum(each.weight.read_bytes for each in model.tensors)
    after = sum(target_bytes(each, types[each.target.name]) for each in model.tensors)
    if after <= before:
        return None
    return (
        f"the file will be larger than its source: {after:,} bytes from {before:,}, which hold most"
        " weights in 4 bits; a smaller --type loses quality, a larger one gains none"
    )


def target_bytes(tensor: GgufTensor, type: str) -> int:
    """Of the tensor in ``type``, without padding."""
    target = tensor.target
    return Written(target.name, _TYPES[type], target.shape).bytes
