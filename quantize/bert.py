"""Knows no bytes: what a BERT checkpoint becomes as a GGUF file that llama.cpp embeds texts with.

Keys and names are those that ``llama_model_bert`` reads
(https://github.com/ggml-org/llama.cpp/blob/master/src/models/bert.cpp). How a text's states become
one vector is told by sentence-transformers' ``modules.json`` and ``1_Pooling/config.json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from localrun.errors import HeaderError, UsageError
from localrun.formats.text import shown
from localrun.models import blocks
from localrun.models.architectures.bert import gguf_name, layout
from localrun.models.bare import FILE
from localrun.models.fields import CONTEXT_MAX, VOCABULARY_MAX, WIDTH_MAX, Fields
from localrun.models.gguf_layout import converted
from localrun.models.layout import LayoutTensor
from localrun.models.mixtures import Model, retyped
from localrun.models.storage import Plain
from localrun.quantize.checkpoint import Checkpoint
from localrun.quantize.conversion import Conversion, Converted
from localrun.quantize.gguf_writer import F32, U32, GgufPlan, Value, Written
from localrun.quantize.wordpiece import read_wordpiece

ARCHITECTURES: Final = ("BertModel", "BertForMaskedLM", "BertForPreTraining")
# llama.cpp computes GELU by its tanh formula, whichever of these is written.
_ACTIVATIONS: Final = frozenset(
    {"gelu", "gelu_new", "gelu_python", "gelu_fast", "gelu_pytorch_tanh"}
)
_EPSILON: Final = 1e-12
_POOLING_CONFIG: Final = "1_Pooling/config.json"
# Flags of a Pooling module, or its one word → ``enum llama_pooling_type`` (llama.h).
_POOLING: Final = {"mean": 1, "cls": 2, "lasttoken": 3}
_FLAGS: Final = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "lasttoken",
}
_MODULES: Final = frozenset({"Transformer", "Pooling", "Normalize"})


def convert(checkpoint: Checkpoint, mixture: str, name: str) -> Conversion:
    """Plan the GGUF file of a BERT checkpoint, its matrices of type ``mixture``.

    Raises:
        UsageError: a BERT that llama.cpp would compute as another model.
        HeaderError: a field or a tensor that is absent or does not fit the others.
    """
    fields = Fields(checkpoint.config, FILE)
    shape = _checked(fields)
    pooling, notes = _pooling(checkpoint)
    tensors = _tensors(checkpoint, fields, shape, mixture)
    vocabulary = fields.needed("vocab_size", most=VOCABULARY_MAX)
    metadata: dict[str, Value] = {
        "general.architecture": "bert",
        "general.type": "model",
        "general.name": name,
        "bert.block_count": U32(shape.layers),
        "bert.context_length": U32(fields.needed("max_position_embeddings", most=CONTEXT_MAX)),
        "bert.embedding_length": U32(shape.width),
        "bert.feed_forward_length": U32(fields.needed("intermediate_size", most=WIDTH_MAX)),
        "bert.attention.head_count": U32(shape.heads),
        "bert.attention.layer_norm_epsilon": F32(_epsilon(fields)),
        "bert.attention.causal": False,
        **read_wordpiece(checkpoint).metadata(vocabulary),
        "tokenizer.ggml.token_type_count": U32(
            fields.integer("type_vocab_size", most=VOCABULARY_MAX) or 2
        ),
    }
    if pooling is not None:
        metadata["bert.pooling_type"] = U32(pooling)
    plan = GgufPlan(metadata, tuple(each.target for each in tensors))
    return Conversion("bert", plan, tensors, notes)


def _checked(fields: Fields) -> blocks.Shape:
    """What of the configuration llama.cpp takes for granted."""
    shape = blocks.Shape.of(fields)
    if shape.width % shape.heads or shape.heads * shape.head != shape.width:
        raise fields.error("num_attention_heads", f"{shape.heads} heads in {shape.width}")
    expected = {
        "hidden_act": (fields.text("hidden_act") or "gelu", _ACTIVATIONS),
        "position_embedding_type": (
            fields.text("position_embedding_type") or "absolute",
            frozenset({"absolute"}),
        ),
    }
    for key, (found, known) in expected.items():
        if found not in known:
            raise UsageError(
                f"{FILE}: {key} is {shown(found)!r}, llama.cpp computes {', '.join(sorted(known))}",
                hint="this BERT would give other embeddings; use one of the usual shape",
            )
    if fields.flag("is_decoder") or fields.flag("add_cross_attention"):
        raise UsageError(f"{FILE}: a decoder made of BERT is not converted")
    return shape


def _epsilon(fields: Fields) -> float:
    value = fields.values.get("layer_norm_eps", _EPSILON)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise fields.error("layer_norm_eps", "is not a number between 0 and 1")
    return float(value)


def _tensors(
    checkpoint: Checkpoint, fields: Fields, shape: blocks.Shape, mixture: str
) -> tuple[Converted, ...]:
    """What the file will hold, in llama.cpp's order, each beside its source.

    Raises:
        HeaderError: a tensor is missing, of another shape, or nobody knows it.
    """
    found = {}
    for tensor in checkpoint.header.tensors:
        name = gguf_name(tensor.name)
        if name is None:
            raise HeaderError(shown(tensor.name), tensor.offset, "is no tensor of BERT's")
        if name in found:
            raise HeaderError(shown(tensor.name), tensor.offset, f"stands for {name} once more")
        if name:
            found[name] = tensor
    expected = converted(layout(fields, Plain()), fields, shape.layers)
    wanted = retyped(expected, mixture, Model("bert", shape.layers, 0, 1))
    made = []
    for each in wanted:
        source = found.pop(each.name, None)
        if source is None:
            raise HeaderError(each.name, 0, "is not in the checkpoint", file=str(checkpoint.folder))
        if tuple(dim for dim in source.shape if dim != 1) != each.shape:
            problem = f"has the shape {source.shape}, {FILE} says {each.shape}"
            raise HeaderError(shown(source.name), source.offset, problem)
        made.append(Converted(source, _written(each)))
    if found:
        extra = next(iter(found.values()))
        raise HeaderError(shown(extra.name), extra.offset, f"is not of {shape.layers} layers")
    return tuple(made)


def _written(tensor: LayoutTensor) -> Written:
    return Written(tensor.name, tensor.type, tensor.shape)


def _pooling(checkpoint: Checkpoint) -> tuple[int | None, tuple[str, ...]]:
    """How one vector is made of a text's, and what to tell the user of it."""
    modules = checkpoint.list_of_objects("modules.json")
    kinds = [Fields(each, "modules.json").text("type") or "" for each in modules or []]
    for kind in kinds:
        if kind.rpartition(".")[2] not in _MODULES:
            raise UsageError(
                f"modules.json: {shown(kind)} stands behind the encoder, and GGUF has no place "
                "for it",
                hint="models that end in pooling and normalizing are converted",
            )
    stated = checkpoint.json(_POOLING_CONFIG)
    if stated is None:
        note = (
            "the checkpoint does not say how to pool; where a request does not either, it is mean"
        )
        return None, (note,)
    return _POOLING[_mode(Fields(stated, _POOLING_CONFIG))], ()


def _mode(stated: Fields) -> str:
    one = stated.text("pooling_mode")
    on = [key for key in stated.values if key.startswith("pooling_mode_") and stated.flag(key)]
    modes = [one] if one is not None else [_FLAGS.get(key, key) for key in on]
    if len(modes) != 1 or modes[0] not in _POOLING:
        raise UsageError(
            f"{_POOLING_CONFIG}: pooling by {', '.join(map(shown, modes)) or 'nothing'}",
            hint=f"one of {', '.join(_POOLING)} is converted",
        )
    return modes[0]


def supports(config: Mapping[str, object]) -> str | None:
    """None, or why a checkpoint with this config.json is no BERT encoder."""
    fields = Fields(config, FILE)
    kind = fields.text("model_type")
    if kind != "bert":
        return f"model_type {shown(kind or 'not stated')!r}"
    stated = fields.values.get("architectures")
    named = stated[0] if isinstance(stated, list) and stated else ARCHITECTURES[0]
    return None if named in ARCHITECTURES else f"architecture {shown(str(named))!r}"
