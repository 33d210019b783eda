"""Knows no other family: DeepSeek-V4.1 with its Engram tables, as GGUF's deepseek41.

llama.cpp has no converter of it yet. Names and keys follow that of
https://github.com/tarruda/llama.cpp (conversion/deepseek41.py); ``engram`` tells of the others.
Tables of eight-bit floats keep their bits, the scales of a row behind its numbers in one I8 tensor,
as those of https://github.com/antirez/ds4 do: a row is one read. Those of a release without such
floats become Q8_0, and no table ever less. They are read a few rows at a time and lie behind all
else in the file, so that what every token needs lies together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from localrun.errors import HeaderError
from localrun.formats.gguf_values import U32, U32s, Value
from localrun.formats.text import shown
from localrun.formats.types import GGUF_TYPES
from localrun.models.architectures import deepseek_v41
from localrun.models.bare import FILE
from localrun.models.fields import CONTEXT_MAX, LAYERS_MAX, Fields
from localrun.models.gguf_layout import place
from localrun.models.layout import LayoutTensor
from localrun.models.native import fixed, table
from localrun.models.storage import Plain
from localrun.quantize.families.deepseek import unquantized
from localrun.quantize.families.deepseek_v4 import GRANTED, block_keys, kept
from localrun.quantize.families.metadata import require, rope, with_defaults
from localrun.quantize.families.model import gguf_model
from localrun.quantize.families.tensors import Made, made_of
from localrun.quantize.gguf_writer import Written
from localrun.quantize.models import GgufModel, GgufTensor
from localrun.releases.checkpoint import Checkpoint
from localrun.releases.engram import of_release
from localrun.releases.engram_rows import encoding, joined, scales_of
from localrun.releases.weights import Weight

ARCHITECTURE: Final = "deepseek41"
_TYPES: Final = {kind.name: kind for kind in GGUF_TYPES.values()}
_MARK: Final = ".engram."
# Inside ``layers.N.engram.`` → inside ``blk.N.``, and the type in a file of floats.
_ENGRAM: Final = {
    "wkv.weight": ("engram_kv.weight", "BF16"),
    "q_weight": ("engram_q_weight.weight", "F32"),
    "k_weight": ("engram_k_weight.weight", "F32"),
}
_TABLE: Final = "embed.weight"


def convert(checkpoint: Checkpoint, weights: Mapping[str, Weight], name: str) -> GgufModel:
    """The GGUF file of a DeepSeek-V4.1 checkpoint.

    Raises:
        UsageError: it would be computed as another model.
        HeaderError: a field or a tensor that is absent or does not fit the others.
    """
    config = with_defaults(unquantized(checkpoint.config), {"hidden_act": "silu"})
    require(config, GRANTED)
    plain = list(deepseek_v41.layout(config, Plain()))
    inner = {each: weight for each, weight in weights.items() if _MARK not in each}
    made = kept(made_of(inner, [each for each in plain if _MARK not in each.name], config))
    tables = _engram(weights, [each for each in plain if _MARK in each.name])
    turned, notes = rope(ARCHITECTURE, config)
    keys = {**block_keys(config), **_shared(config)}
    if config.integers("engram_layer_ids", most=LAYERS_MAX):
        pad = config.needed("engram_pad_token_id", least=0, most=2**31 - 1)
        constants = of_release(checkpoint, config)
        keys |= constants.keys(pad)
        if any(each.target.type.name == "I8" for each in tables):
            keys["engram.encoding"] = encoding(constants.width)
    named = {f"{ARCHITECTURE}.{key}": value for key, value in keys.items()} | turned
    whole = Made(_in_order(made.tensors, tables), made.notes)
    return gguf_model(checkpoint, ARCHITECTURE, name, config, whole, named, notes)


def _shared(config: Fields) -> dict[str, Value]:
    """Who computes what others read, and what is absent since V4."""
    owners = config.integers("kv_source_layer_ids", most=LAYERS_MAX) or ()
    choosers = config.integers("index_source_layer_ids", most=LAYERS_MAX) or ()
    made: dict[str, Value] = {
        "hash_layer_count": U32(0),
        "embedding_length_out": U32(config.needed("hidden_size", most=2**24)),
        "attention.kv_source_layers": U32s(owners),
        "attention.index_source_layers": U32s(choosers),
    }
    source = config.integer("candidate_source_layer_id", least=0, most=LAYERS_MAX)
    if source is not None:
        at = "attention.indexer.candidate"
        made[f"{at}_source_layer"] = U32(source)
        for key in ("topk_blocks", "block_size"):
            made[f"{at}_{key}"] = U32(config.needed(f"candidate_{key}", most=CONTEXT_MAX))
    return made


def _engram(weights: Mapping[str, Weight], wanted: list[LayoutTensor]) -> list[GgufTensor]:
    """Every tensor of the n-gram tables and of what joins them to the streams.

    Raises:
        HeaderError: a tensor is missing, has another shape, or nobody knows it.
    """
    names = {each.name for each in wanted}
    for name, weight in weights.items():
        if _MARK in name and name not in names:
            problem = f"is no tensor of this model: {FILE} does not ask for it"
            raise HeaderError(shown(name), weight.place[1], problem)
    made: list[GgufTensor] = []
    for each in wanted:
        found = weights.get(each.name)
        if found is None:
            problem = f"is not in the checkpoint; {FILE} asks for it"
            raise HeaderError(shown(each.name), 0, problem)
        if found.shape != each.shape:
            problem = f"has the shape {found.shape}, {FILE} says {each.shape}"
            raise HeaderError(shown(each.name), found.place[1], problem)
        before, _, inner = each.name.partition(_MARK)
        at = f"blk.{before.rpartition('.')[2]}."
        if inner == _TABLE:
            made.append(_table(at, found))
        else:
            name, kind = _ENGRAM[inner]
            target = Written(at + name, _TYPES[kind], found.shape)
            made.append(GgufTensor(target, found, fixed=fixed(ARCHITECTURE, target.name)))
    return made


def _table(at: str, weight: Weight) -> GgufTensor:
    """A table's bytes with its scales' as they are stored, or its numbers as Q8_0."""
    scales = scales_of(weight)
    made = table(f"{at}engram_embd.weight", weight.shape, scales)
    source = joined(weight) if made.type.name == "I8" else weight
    return GgufTensor(Written(made.name, made.type, made.shape), source, fixed=True)


def _in_order(tensors: tuple[GgufTensor, ...], engram: list[GgufTensor]) -> tuple[GgufTensor, ...]:
    """By layer and name, the tables last."""
    tables = [each for each in engram if "engram_embd" in each.target.name]
    joints = [each for each in engram if "engram_embd" not in each.target.name]
    return (
        *sorted((*tensors, *joints), key=lambda each: place(each.target.name)),
        *sorted(tables, key=lambda each: place(each.target.name)),
    )
