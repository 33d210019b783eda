"""Knows no quantization: what the tensors of a release become in a GGUF file.

Names and shapes follow llama.cpp's converters
(https://github.com/ggml-org/llama.cpp/tree/master/conversion): experts are merged over a layer,
latent keys and values are apart, and what is small stays F32. Vision towers are files of their own,
and so are most drafts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

from localrun.errors import HeaderError
from localrun.formats.text import shown
from localrun.formats.types import GGUF_TYPES
from localrun.models.architectures import bert
from localrun.models.delta import DeltaNet
from localrun.models.fields import HEADS_MAX, WIDTH_MAX, Fields
from localrun.models.layout import LayoutTensor
from localrun.models.names import classify

_TYPES: Final = {kind.name: kind for kind in GGUF_TYPES.values()}
_INNER: Final = re.compile(r"(?:^|\.)layers\.([0-9]+)\.(.+)$")
_EXPERT: Final = re.compile(r"(?:mlp|ffn|block_sparse_moe)\.experts\.\{e\}\.(\w+)\.weight$")
_MERGED: Final = re.compile(r"mlp\.experts\.(gate_up_proj|down_proj)(_bias)?$")
_PROJECTIONS: Final = {
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "down",
    "w1": "gate",
    "w3": "up",
    "w2": "down",
}
_FLOAT: Final = re.compile(
    r"_norm\.|ple_norm|ffn_gate_inp|ssm_conv1d|indexer\.proj|hc_.*_(?:fn|base|scale)\.|_ape\."
    r"|engram_[qk]_weight\."
    r"|^position_embd\.|^token_types\."
)
# Families whose norm before the feed-forward network goes by attention, or is another one.
_NORM_BEHIND: Final = re.compile(r"gemma3|gpt_oss|qwen3_next|qwen3_5|glm4v?_moe")
# Converters that leave the numbered draft layers of a release out.
_NO_DRAFTS: Final = frozenset({"deepseek_v2", "deepseek_v3", "kimi_k2"})

_ROOT: Final = {
    "embed_tokens": "token_embd",
    "embed": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "head": "output",
    "hc_head_fn": "output_hc_fn.weight",
    "hc_head_base": "output_hc_base.weight",
    "hc_head_scale": "output_hc_scale.weight",
    "output_attn_res_proj": "output_res_score",
    "hyper_connection_mixer.hc_norm": "output_hc_norm",
    "hyper_connection_mixer.input_mix_weight_down": "output_hc_down",
    "hyper_connection_mixer.input_mix_weight_up": "output_hc_up",
}
_LAYER: Final = {
    "input_layernorm": "attn_norm",
    "attn_norm": "attn_norm",
    "ffn_norm": "ffn_norm",
    "post_attention_layernorm": "ffn_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.sinks": "attn_sinks.weight",
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.indexer.wq_b": "indexer.attn_q_b",
    "self_attn.indexer.wk": "indexer.attn_k",
    "self_attn.indexer.k_norm": "indexer.k_norm",
    "self_attn.indexer.weights_proj": "indexer.proj",
    "self_attn.indexer.index_kpool_compress_ape": "indexer_compressor_ape.weight",
    "self_attn.indexer.index_kpool_compress_gate": "indexer_compressor_gate.weight",
    "self_attn.indexer.index_qk_proj": "indexer.q_proj",
    "self_attn.indexer.q_layernorm": "indexer.q_norm",
    "self_attn.indexer.k_layernorm": "indexer.k_norm",
    "self_attn.q_conv1d": "ssm_conv1d_q",
    "self_attn.k_conv1d": "ssm_conv1d_k",
    "self_attn.v_conv1d": "ssm_conv1d_v",
    "self_attn.f_a_proj": "ssm_f_a",
    "self_attn.f_b_proj": "ssm_f_b",
    "self_attn.b_proj": "ssm_beta",
    "self_attn.g_a_proj": "ssm_g_a",
    "self_attn.g_b_proj": "ssm_g_b",
    "self_attn.g_proj": "ssm_g",
    "self_attn.o_norm": "ssm_norm",
    "self_attn.dt_bias": "ssm_dt.bias",
    "self_attn.A_log": "ssm_a",
    "self_attention_res_proj": "attn_res_score",
    "mlp_res_proj": "ffn_res_score",
    "linear_attn.in_proj_ba": "ssm_ba",
    "linear_attn.in_proj_qkv": "attn_qkv",
    "linear_attn.in_proj_z": "attn_gate",
    "linear_attn.in_proj_a": "ssm_alpha",
    "linear_attn.in_proj_b": "ssm_beta",
    "linear_attn.conv1d": "ssm_conv1d",
    "linear_attn.dt_bias": "ssm_dt.bias",
    "linear_attn.A_log": "ssm_a",
    "linear_attn.norm": "ssm_norm",
    "linear_attn.out_proj": "ssm_out",
    "attn.wq_a": "attn_q_a",
    "attn.wq_b": "attn_q_b",
    "attn.q_norm": "attn_q_a_norm",
    "attn.wkv": "attn_kv",
    "attn.kv_norm": "attn_kv_a_norm",
    "attn.wo_a": "attn_output_a",
    "attn.wo_b": "attn_output_b",
    "attn.attn_sink": "attn_sinks.weight",
    "attn.compressor.ape": "attn_compressor_ape.weight",
    "attn.compressor.wkv": "attn_compressor_kv",
    "attn.compressor.wgate": "attn_compressor_gate",
    "attn.compressor.norm": "attn_compressor_norm",
    "attn.indexer.wq_b": "indexer.attn_q_b",
    "attn.indexer.wk": "indexer.attn_k",
    "attn.indexer.k_norm": "indexer.k_norm",
    "attn.indexer.weights_proj": "indexer.proj",
    "attn.indexer.compressor.ape": "indexer_compressor_ape.weight",
    "attn.indexer.compressor.wkv": "indexer_compressor_kv",
    "attn.indexer.compressor.wgate": "indexer_compressor_gate",
    "attn.indexer.compressor.norm": "indexer_compressor_norm",
    "hc_attn_fn": "hc_attn_fn.weight",
    "hc_attn_base": "hc_attn_base.weight",
    "hc_attn_scale": "hc_attn_scale.weight",
    "hc_ffn_fn": "hc_ffn_fn.weight",
    "hc_ffn_base": "hc_ffn_base.weight",
    "hc_ffn_scale": "hc_ffn_scale.weight",
    "attn_hyper_connection.hc_norm": "hc_attn_norm",
    "attn_hyper_connection.input_mix_weight_down": "hc_attn_down",
    "attn_hyper_connection.input_mix_weight_up": "hc_attn_up",
    "attn_hyper_connection.block_inject_weight": "hc_attn_inject",
    "mlp_hyper_connection.hc_norm": "hc_ffn_norm",
    "mlp_hyper_connection.input_mix_weight_down": "hc_ffn_down",
    "mlp_hyper_connection.input_mix_weight_up": "hc_ffn_up",
    "mlp_hyper_connection.block_inject_weight": "hc_ffn_inject",
    "ple.key_proj": "ple_key",
    "ple.value_proj": "ple_value",
    "ple.norm_key": "ple_norm_key",
    "ple.norm_query": "ple_norm_query",
    "ple.norm_conv": "ple_norm_conv",
    "ple.conv1d": "ple_conv1d",
    "engram.embed": "engram_embd",
    "engram.wkv": "engram_kv",
    "engram.q_weight": "engram_q_weight.weight",
    "engram.k_weight": "engram_k_weight.weight",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "enorm": "nextn.enorm",
    "hnorm": "nextn.hnorm",
    "eh_proj": "nextn.eh_proj",
    "embed_tokens": "nextn.embed_tokens",
    "shared_head.norm": "nextn.shared_head_norm",
    "shared_head.head": "nextn.shared_head_head",
}
_MIXTURE: Final = {
    "gate.weight": "ffn_gate_inp.weight",
    "router.weight": "ffn_gate_inp.weight",
    "router.bias": "ffn_gate_inp.bias",
    "gate.bias": "exp_probs_b.bias",
    "gate.bias_vl": "exp_probs_b_vl.bias",
    "gate.e_score_correction_bias": "exp_probs_b.bias",
    "gate.tid2eid": "ffn_gate_tid2eid.weight",
    "shared_expert_gate.weight": "ffn_gate_inp_shexp.weight",
    "routed_expert_down_proj.weight": "ffn_routed_down.weight",
    "routed_expert_up_proj.weight": "ffn_routed_up.weight",
    "routed_expert_norm.weight": "ffn_routed_norm.weight",
}


Rows = Literal["all", "gate", "up", "keys", "values", "several"]
"""Which rows of a release's tensor a part has: ``gate`` and ``up`` are halves of merged experts,
``keys`` and ``values`` those of a latent projection; ``several`` tensors lie one behind another."""
_Inner = tuple[str, tuple[int, ...], Rows]


@dataclass(frozen=True, slots=True)
class Part:
    """What some or all ``rows`` of a release's tensor become in a GGUF file of floats."""

    tensor: LayoutTensor
    rows: Rows = "all"


def converted(tensors: Iterable[LayoutTensor], config: Fields, layers: int) -> list[LayoutTensor]:
    """The tensors of a plain BF16 release as a converter writes them, in the order of the file's
    layers and names.

    Raises:
        HeaderError: latent attention whose sizes ``config`` does not give.
    """
    found: list[LayoutTensor] = []
    table: list[LayoutTensor] = []
    for tensor in tensors:
        for part in parts(tensor, config, layers):
            (table if part.rows == "several" else found).append(part.tensor)
    if table:
        rows = sum(part.shape[0] for part in table)
        shape = (rows, table[0].shape[1])
        found.append(LayoutTensor(table[0].name, shape, _TYPES["BF16"]))
    return sorted(found, key=lambda tensor: place(tensor.name))


def parts(tensor: LayoutTensor, config: Fields, layers: int) -> tuple[Part, ...]:
    """What one tensor of a release of ``layers`` becomes; nothing where it is in no such file.

    A name that no table here has is kept: it is for the caller to know what a model consists of.

    Raises:
        HeaderError: latent attention whose sizes ``config`` does not give, or a tensor of too few
            dimensions.
    """
    if config.text("model_type") == "bert":
        name = bert.gguf_name(tensor.name)
        return (Part(_stored(name, tensor.shape, tensor)),) if name else ()
    kind, _, _ = classify(tensor.name, layers)
    keeps_drafts = config.text("model_type") not in _NO_DRAFTS
    own_file = kind == "draft" and (tensor.name.startswith("mtp.") or not keeps_drafts)
    if kind == "vision" or own_file:
        return ()
    if ".ngram_embedding." in tensor.name:
        return (Part(_stored("per_layer_token_embd.weight", tensor.shape, tensor), "several"),)
    numbered = _INNER.search(tensor.name)
    if numbered is None:
        return tuple(_root(tensor))
    at = f"blk.{numbered[1]}."
    return tuple(
        Part(_stored(at + name, shape, tensor), rows)
        for name, shape, rows in _layer(numbered[2], tensor, config)
    )


def place(name: str) -> tuple[int, str]:
    """Where a tensor stands in a file: by layer, then by name, as llama.cpp's quantizer has it."""
    head, _, rest = name.partition(".")
    number = rest.partition(".")[0]
    return (int(number) if head == "blk" and number.isdecimal() else -1, name)


def _root(tensor: LayoutTensor) -> Iterator[Part]:
    name = re.sub(r"^(?:language_model\.|model\.)+", "", tensor.name)
    if name == "output_attn_res_norm.weight":
        return
    stem, suffix = _split(name)
    yield Part(_stored(_joined(_ROOT.get(stem, stem), suffix), tensor.shape, tensor))


def _split(name: str) -> tuple[str, str]:
    stem, _, suffix = name.rpartition(".")
    return (stem, suffix) if suffix in {"weight", "bias"} else (name, "")


def _joined(stem: str, suffix: str) -> str:
    whole = stem.endswith((".weight", ".bias")) or not suffix
    return stem if whole else f"{stem}.{suffix}"


def _layer(inner: str, tensor: LayoutTensor, config: Fields) -> Iterator[_Inner]:
    """(name without the layer, shape, rows) of what one tensor of a layer becomes."""
    shape = tensor.shape
    stem, suffix = _split(inner)
    if one := _EXPERT.fullmatch(inner):
        yield f"ffn_{_PROJECTIONS[one[1]]}_exps.weight", (tensor.copies, *shape), "all"
    elif several := _MERGED.fullmatch(inner):
        _require_dimensions(tensor, 2 if several[2] else 3)
        yield from _unmerged(several[1], bool(several[2]), shape, config)
    elif stem == "self_attn.kv_b_proj":
        _require_dimensions(tensor, 2)
        yield from _latent(shape, config)
    elif stem == "linear_attn.in_proj_qkvz":
        net = DeltaNet.of(config)
        _require_dimensions(tensor, 2)
        yield "attn_qkv.weight", (net.channels, shape[1]), "keys"
        yield "attn_gate.weight", (net.values, shape[1]), "gate"
    elif inner.startswith("ple.ple_embedding.") or inner.endswith("_res_norm.weight"):
        return  # Hash constants are metadata there, and these norms are folded into projections.
    elif inner.startswith(("mlp.", "ffn.", "block_sparse_moe.")):
        yield _feed_forward(inner, stem, suffix), shape, "all"
    elif stem == "post_attention_layernorm" and _NORM_BEHIND.match(config.text("model_type") or ""):
        yield "post_attention_norm.weight", shape, "all"
    else:
        yield _joined(_LAYER.get(stem, stem), suffix), shape, "all"


def _require_dimensions(tensor: LayoutTensor, least: int) -> None:
    if len(tensor.shape) < least:
        problem = f"has the shape {tensor.shape}, not {least} dimensions"
        raise HeaderError(shown(tensor.name), 0, problem)


def _feed_forward(inner: str, stem: str, suffix: str) -> str:
    rest = inner.partition(".")[2]
    if rest in _MIXTURE:
        return _MIXTURE[rest]
    _, shared, projection = stem.partition("shared_expert")
    if shared:
        return f"ffn_{_PROJECTIONS[projection.rpartition('.')[2]]}_shexp.{suffix}"
    return _joined(_LAYER.get(stem, stem), suffix)


def _unmerged(name: str, bias: bool, shape: tuple[int, ...], config: Fields) -> Iterator[_Inner]:
    """Releases disagree on which way merged experts lie; the model's width tells."""
    count, width = shape[0], config.needed("hidden_size", most=WIDTH_MAX)
    suffix = "bias" if bias else "weight"
    if name == "down_proj":
        down = shape if bias else (count, width, math.prod(shape[1:]) // width)
        yield f"ffn_down_exps.{suffix}", down, "all"
        return
    half = (count, shape[1] // 2) if bias else (count, math.prod(shape[1:]) // width // 2, width)
    yield f"ffn_gate_exps.{suffix}", half, "gate"
    yield f"ffn_up_exps.{suffix}", half, "up"


def _latent(shape: tuple[int, ...], config: Fields) -> Iterator[_Inner]:
    heads = config.needed("num_attention_heads", most=HEADS_MAX)
    nope = config.needed("qk_nope_head_dim", most=WIDTH_MAX)
    value = config.needed("v_head_dim", most=WIDTH_MAX)
    yield "attn_k_b.weight", (heads, shape[1], nope), "keys"
    yield "attn_v_b.weight", (heads, value, shape[1]), "values"


def _stored(name: str, shape: tuple[int, ...], tensor: LayoutTensor) -> LayoutTensor:
    shape = tuple(dim for dim in shape if dim != 1) or (1,)
    if tensor.type.name == "I64":
        return LayoutTensor(name, shape, _TYPES["I32"])
    small = len(shape) < 2 or not name.endswith(".weight") or _FLOAT.search(name)
    kept = tensor.type.name == "F32" or small
    return LayoutTensor(name, shape, _TYPES["F32" if kept else "BF16"])
