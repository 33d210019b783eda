"""Small checkpoints as they are released, one for each thing that a converter may get wrong.

Weights are random; norms are not all alike, so that one that is taken for another shows.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from localrun.formats.read import read_header

BENCH = str(Path(__file__).parents[3] / "bench")
Config = dict[str, Any]
Stored = dict[str, tuple[str, tuple[int, ...], bytes]]
"""By name: type as safetensors calls it, shape, bytes."""
Edit = Callable[[Stored], Stored]
_WIDTHS = {"BF16": "<u2", "F16": "<f2", "F32": "<f4"}


def _as_it_is(tensors: Stored) -> Stored:
    return tensors


@dataclass(frozen=True)
class Case:
    """A checkpoint. ``config`` tells all there is to make it of; ``unstated`` are the fields that
    its config.json leaves out, and ``beside`` are further files."""

    name: str
    config: Config
    edit: Edit = _as_it_is
    unstated: tuple[str, ...] = ()
    beside: Mapping[str, Config] = field(default_factory=dict)


def write(case: Case, folder: Path) -> Path:
    """The checkpoint of ``case`` in the new ``folder``, in one file of weights."""
    if BENCH not in sys.path:
        sys.path.append(BENCH)
    import_module("synthetic_checkpoint").write(folder, dict(case.config), 0, False)
    found = case.edit(_uneven(_read(folder)))
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    _write(found, folder / "model.safetensors")
    stated = {key: value for key, value in case.config.items() if key not in case.unstated}
    for name, document in {"config.json": stated, **case.beside}.items():
        (folder / name).write_text(json.dumps(document, indent=1), encoding="utf-8")
    return folder


def _read(folder: Path) -> Stored:
    paths = sorted(folder.glob("*.safetensors"))
    files = [path.read_bytes() for path in paths]
    return {
        tensor.name: (
            tensor.type.name,
            tensor.shape,
            files[tensor.file][tensor.offset : tensor.offset + tensor.bytes],
        )
        for tensor in read_header(paths).tensors
    }


def _write(tensors: Stored, path: Path) -> None:
    entries, at = {}, 0
    for name, (kind, shape, data) in tensors.items():
        entries[name] = {"dtype": kind, "shape": shape, "data_offsets": (at, at + len(data))}
        at += len(data)
    head = json.dumps(entries).encode()
    head += b" " * (-len(head) % 8)
    data = b"".join(data for _, _, data in tensors.values())
    path.write_bytes(len(head).to_bytes(8, "little") + head + data)


def _uneven(tensors: Stored) -> Stored:
    """Norms away from one."""
    random = np.random.default_rng(0)
    return {
        name: (kind, shape, _drawn(random, kind, len(data)) if "norm" in name else data)
        for name, (kind, shape, data) in tensors.items()
    }


def _drawn(random: np.random.Generator, kind: str, size: int) -> bytes:
    numbers = random.normal(1.0, 0.25, size // np.dtype(_WIDTHS[kind]).itemsize).astype("<f4")
    if kind == "BF16":
        return (numbers.view("<u4") >> 16).astype("<u2").tobytes()
    return numbers.astype(_WIDTHS[kind]).tobytes()


def fused(tensors: Stored) -> Stored:
    """The experts of each layer merged as transformers 5 writes them: gate and up in one."""
    found = {name: each for name, each in tensors.items() if ".experts." not in name}
    layers = {name.partition(".experts.")[0] for name in tensors if ".experts." in name}
    for at in sorted(layers):
        count = sum(name.startswith(f"{at}.experts.") for name in tensors) // 3
        each = [f"{at}.experts.{number}" for number in range(count)]
        kind, (inner, width), _ = tensors[f"{each[0]}.gate_proj.weight"]
        both = ((f"{one}.gate_proj.weight", f"{one}.up_proj.weight") for one in each)
        data = b"".join(tensors[name][2] for pair in both for name in pair)
        found[f"{at}.experts.gate_up_proj"] = kind, (count, 2 * inner, width), data
        data = b"".join(tensors[f"{one}.down_proj.weight"][2] for one in each)
        found[f"{at}.experts.down_proj"] = kind, (count, width, inner), data
    return found


def with_frequencies(tensors: Stored) -> Stored:
    """A buffer that old checkpoints store."""
    return {
        "model.layers.0.self_attn.rotary_emb.inv_freq": ("F32", (8,), bytes(32)),
        **tensors,
    }


def _decoder(model_type: str, architecture: str, **changes: Any) -> Config:
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 128,
        "intermediate_size": 192,
        "max_position_embeddings": 4096,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": 1024,
    } | changes


_LLAMA3 = {
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 512,
    "rope_type": "llama3",
}
_YARN = {"factor": 4.0, "original_max_position_embeddings": 1024, "type": "yarn"}
_SAMPLING = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}
_MIXTURE = {
    "decoder_sparse_step": 1,
    "head_dim": 64,
    "mlp_only_layers": [],
    "moe_intermediate_size": 96,
    "norm_topk_prob": True,
    "num_experts": 6,
    "num_experts_per_tok": 2,
}
_GEMMA = {
    "bos_token_id": 0,
    "eos_token_id": [1, 5],
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 128,
    "intermediate_size": 192,
    "max_position_embeddings": 8192,
    "num_attention_heads": 2,
    "num_hidden_layers": 7,
    "num_key_value_heads": 1,
    "pad_token_id": 2,
    "query_pre_attn_scalar": 256,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    "sliding_window": 512,
    "vocab_size": 1024,
}
_SIGLIP = {
    "hidden_size": 32,
    "image_size": 28,
    "intermediate_size": 64,
    "model_type": "siglip_vision_model",
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "patch_size": 14,
}
_LATENT: Config = {
    "attention_bias": False,
    "first_k_dense_replace": 1,
    "hidden_size": 256,
    "intermediate_size": 384,
    "kv_lora_rank": 64,
    "moe_intermediate_size": 64,
    "moe_layer_freq": 1,
    "n_group": 2,
    "n_routed_experts": 6,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 96,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 16,
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    },
    "rms_norm_eps": 1e-6,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "v_head_dim": 32,
}
_TWO: Config = {
    "n_group": 1,
    "norm_topk_prob": False,
    "num_nextn_predict_layers": None,
    "q_lora_rank": None,
    "quantization_config": None,
    "routed_scaling_factor": 1.0,
    "scoring_func": "softmax",
    "topk_method": "greedy",
}
# V3.2's converter wants a tokenizer that says it begins every text.
_BEGINS: Config = {
    "add_bos_token": True,
    "bos_token": "<｜begin▁of▁sentence｜>",
    "eos_token": "<｜end▁of▁sentence｜>",
    "pad_token": "<｜▁pad▁｜>",
    "tokenizer_class": "LlamaTokenizerFast",
    "unk_token": "<｜▁pad▁｜>",
}
_INDEXED: Config = {"index_head_dim": 64, "index_n_heads": 8, "index_topk": 64}
CASES: tuple[Case, ...] = (
    Case("llama", _decoder("llama", "LlamaForCausalLM", head_dim=64), with_frequencies),
    Case(
        "llama3",
        _decoder(
            "llama",
            "LlamaForCausalLM",
            attention_bias=True,
            num_key_value_heads=4,
            rope_scaling=_LLAMA3,
            tie_word_embeddings=True,
        ),
        beside={"generation_config.json": _SAMPLING},
    ),
    Case(
        "llama-f32",
        _decoder(
            "llama",
            "LlamaForCausalLM",
            rope_scaling={"type": "linear", "factor": 2.0},
            torch_dtype="float32",
        ),
        unstated=("rope_theta",),
    ),
    Case(
        "mistral",
        _decoder(
            "mistral",
            "MistralForCausalLM",
            head_dim=None,
            sliding_window=None,
            torch_dtype="float16",
        ),
    ),
    Case("qwen2", _decoder("qwen2", "Qwen2ForCausalLM", rope_scaling=_YARN)),
    Case(
        "qwen3",
        _decoder(
            "qwen3",
            "Qwen3ForCausalLM",
            head_dim=48,
            rope_parameters={"rope_theta": 1000000.0, "rope_type": "default"},
            tie_word_embeddings=True,
        ),
        unstated=("rope_theta",),
    ),
    Case("qwen3-moe", _decoder("qwen3_moe", "Qwen3MoeForCausalLM", **_MIXTURE)),
    Case("qwen3-moe-fused", _decoder("qwen3_moe", "Qwen3MoeForCausalLM", **_MIXTURE), fused),
    Case(
        "gemma3",
        {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", **_GEMMA},
        unstated=("head_dim", "max_position_embeddings", "query_pre_attn_scalar"),
    ),
    Case(
        "gemma3-siglip",
        {
            "architectures": ["Gemma3ForConditionalGeneration"],
            "model_type": "gemma3",
            "text_config": {"model_type": "gemma3_text", **_GEMMA, "rope_scaling": None},
            "vision_config": _SIGLIP,
        },
    ),
    Case(
        "deepseek-two",
        _decoder("deepseek_v2", "DeepseekV2ForCausalLM", **_LATENT | _TWO),
        unstated=("quantization_config", "num_nextn_predict_layers"),
    ),
    Case("deepseek-three", _decoder("deepseek_v3", "DeepseekV3ForCausalLM", **_LATENT)),
    Case(
        "deepseek-sparse",
        _decoder("deepseek_v32", "DeepseekV32ForCausalLM", **_LATENT | _INDEXED),
        beside={"tokenizer_config.json": _BEGINS},
    ),
    Case(
        "kimi",
        _decoder(
            "kimi_k2",
            "DeepseekV3ForCausalLM",
            **_LATENT | {"n_group": 1, "num_nextn_predict_layers": 0},
        ),
    ),
)
