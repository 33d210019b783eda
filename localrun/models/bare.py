"""Knows no header: a config.json alone, and the tensors of the checkpoint it speaks of."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Self

from localrun.errors import HeaderError
from localrun.formats.types import GGUF_TYPES
from localrun.models.architecture import Architecture
from localrun.models.architectures import family, known
from localrun.models.facts import facts
from localrun.models.fields import HEADS_MAX, Fields
from localrun.models.gguf_layout import converted, parts
from localrun.models.layout import LayoutTensor
from localrun.models.mixtures import Model, assigned, mixture_name
from localrun.models.names import classify
from localrun.models.native import FOUR_BITS, fixed, is_table, settled, stays, table
from localrun.models.storage import Plain, storage_of

FILE = "config.json"
_QUANTIZATION = "quantization_config"
_PACKED = frozenset({"I8", "U8"})
_FOUR_BITS = next(kind for kind in GGUF_TYPES.values() if kind.name == FOUR_BITS)


def flat(config: Mapping[str, object]) -> Fields:
    """The fields of ``text_config`` over those of the config itself.

    Raises:
        HeaderError: ``text_config`` is no object.
    """
    text = Fields(config, FILE).mapping("text_config")
    if text is None:
        return Fields(config, FILE)
    inner = {key: item for key, item in text.values.items() if item is not None}
    return Fields({**config, **inner}, FILE)


def speaker(fields: Fields, model_type: str | None) -> Architecture | None:
    """Who speaks for a model: by the name of the whole, or of its text part."""
    return family(model_type or "") or family(fields.text("model_type") or "")


@dataclass(frozen=True, slots=True)
class Bare:
    """A config.json whose family is known and whose common numbers are those of a model."""

    fields: Fields
    model_type: str
    architecture: Architecture

    @classmethod
    def of(cls, config: Mapping[str, object]) -> Self:
        """Keys that begin with ``_`` are not read.

        Raises:
            HeaderError: a ``model_type`` that is not known here, or a number that no model has.
        """
        given = {key: item for key, item in config.items() if key[:1] != "_"}
        fields = flat(given)
        model_type = Fields(given, FILE).text("model_type")
        architecture = speaker(fields, model_type)
        if architecture is None or model_type is None:
            told = "is absent" if model_type is None else f"{model_type!r} is not known"
            raise fields.error("model_type", f"{told}; {', '.join(known())} are known")
        facts(fields)
        return cls(fields, model_type, architecture)

    def release(self) -> Iterator[LayoutTensor]:
        """As released, by its own quantization.

        Raises:
            HeaderError: a field is absent or absurd, a quantization not known.
        """
        return self.architecture.layout(self.fields, storage_of(self.fields))

    def gguf(self, quant: str) -> tuple[list[LayoutTensor], tuple[str, ...]]:
        """As a GGUF file of the mixture ``quant``, and the kinds of tensors that are in none.

        Raises:
            HeaderError: a field is absent or absurd.
            UsageError: no such ``quant``.
        """
        values = _unquantized(self.fields.values)
        if isinstance(text := values.get("text_config"), Mapping):
            values["text_config"] = _unquantized(text)
        fields = replace(self.fields, values=values)
        layers = facts(fields).layers
        plain = list(self.architecture.layout(fields, Plain()))
        found = converted(plain, fields, layers)
        kept, released = _kinds(found, layers), _kinds(plain, layers)
        left_out = tuple(kind for kind in ("draft", "vision") if kind in released - kept)
        stored = self._stored()
        found = [_table(tensor, stored) for tensor in found]
        four = _four_bits(plain, stored, fields, layers)
        return list(_retyped(found, quant, mixture_model(fields, found), four)), left_out

    def _stored(self) -> dict[str, LayoutTensor]:
        """The release's tensors by name; none of a release that is stored in no known way."""
        try:
            return {tensor.name: tensor for tensor in self.release()}
        except HeaderError:
            return {}


def _table(tensor: LayoutTensor, stored: Mapping[str, LayoutTensor]) -> LayoutTensor:
    if not is_table(tensor.name):
        return tensor
    at = f"layers.{tensor.name.split('.')[1]}.engram.embed."
    codes, scales = stored.get(f"{at}weight"), stored.get(f"{at}scale")
    bytewise = codes and scales and codes.type.name == "F8_E4M3" and scales.type.name == "F8_E8M0"
    return table(tensor.name, tensor.shape, scales.shape if scales and bytewise else None)


def _four_bits(
    plain: Iterable[LayoutTensor],
    stored: Mapping[str, LayoutTensor],
    fields: Fields,
    layers: int,
) -> frozenset[str]:
    """The tensors of the GGUF file whose numbers the release has two to a byte."""
    found: set[str] = set()
    for tensor in plain:
        packed = stored.get(tensor.name)
        if packed is None or packed.type.name not in _PACKED:
            continue
        if packed.shape and 2 * packed.shape[-1] == tensor.shape[-1]:
            found |= {part.tensor.name for part in parts(tensor, fields, layers)}
    return frozenset(found)


def _retyped(
    found: list[LayoutTensor], quant: str, model: Model, four: Collection[str]
) -> Iterator[LayoutTensor]:
    mixture = mixture_name(quant)
    floats = {each.name: each.type.name for each in found if fixed(model.architecture, each.name)}

    def override(name: str) -> str | None:
        return floats.get(name) or settled(name, mixture)

    for each in assigned(found, mixture, model, override=override):
        tensor = each.tensor
        if tensor.name in four and stays(tensor.type.name, tensor.shape[-1]):
            tensor = replace(tensor, type=_FOUR_BITS)
        yield tensor


def _unquantized(values: Mapping[str, object]) -> dict[str, object]:
    return {key: item for key, item in values.items() if key != _QUANTIZATION}


def _kinds(tensors: list[LayoutTensor], layers: int) -> set[str]:
    return {classify(tensor.name, layers)[0] for tensor in tensors}


def mixture_model(fields: Fields, found: list[LayoutTensor]) -> Model:
    """What mixtures look at, of a configuration and the tensors of its GGUF file."""
    blocks = {tensor.name.split(".")[1] for tensor in found if tensor.name.startswith("blk.")}
    common = facts(fields)
    # Latent keys and values are one head to every query head.
    latent = fields.values.get("kv_lora_rank") is not None
    heads = fields.per_layer("num_key_value_heads", common.layers, least=0, most=HEADS_MAX)
    kv_heads = 1 if latent else max(heads or (0,))
    grouped = common.heads // (kv_heads or max(common.heads, 1))
    return Model(fields.text("model_type") or "", len(blocks), common.experts, grouped)
