"""Small configurations with every feature of their architecture, as data that can be widened.

Schedules, sources of shared caches and proportions follow the released configurations
(DeepSeek-V4-Flash-0731, DeepSeek-V4.1-Flash, DeepSeek-V3.2, Llama 3, Qwen3-30B-A3B).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Config = dict[str, Any]
VOCABULARY = 1024
BOS, EOS, PAD, SYSTEM, USER, ASSISTANT, IMAGE = range(7)
# Where the primes of the smallest tables begin.
ROWS = 500
_YARN = {
    "type": "yarn",
    "factor": 16,
    "beta_fast": 32,
    "beta_slow": 1,
    "original_max_position_embeddings": 65536,
}


@dataclass(frozen=True, slots=True)
class Growth:
    """How far a small model is grown: ``width`` multiplies matrices, ``units`` counts experts (of
    a dense model: 32 columns of its feed-forward blocks each), ``rows`` is where the primes that
    divide an Engram table begin."""

    layers: int
    units: int
    width: int = 1
    rows: int = 0


@dataclass(frozen=True, slots=True)
class Recipe:
    """One architecture: its configuration at a growth, and how far that may go."""

    build: Callable[[Growth], Config]
    layers: tuple[int, ...]
    units: range
    rows: int = 0


def engram_primes(config: Mapping[str, Any]) -> tuple[tuple[int, ...], ...]:
    """For each Engram layer the rows of its tables' parts: 2-grams' heads first, then 3-grams'.

    One ascending stream of primes that is never reused: every n-gram length of every layer takes
    the next ones at or above ``engram_vocab_size``
    (https://huggingface.co/deepseek-ai/DeepSeek-V4.1-Flash, inference/engram.py).
    """
    text = config.get("text_config", config)
    parts = (text["engram_max_ngram_size"] - 1) * text["engram_n_heads"]
    stream = _primes(text["engram_vocab_size"])
    return tuple(tuple(next(stream) for _ in range(parts)) for _ in text["engram_layer_ids"])


def _primes(start: int) -> Iterator[int]:
    number = max(2, start)
    while True:
        if all(number % factor for factor in range(2, int(number**0.5) + 1)):
            yield number
        number += 1


def _llama(growth: Growth) -> Config:
    width = growth.width
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 256 * width,
        "intermediate_size": 32 * growth.units * width,
        "max_position_embeddings": 8192,
        "num_attention_heads": 4 * width,
        "num_hidden_layers": growth.layers,
        "num_key_value_heads": 2 * width,
        "rms_norm_eps": 1e-5,
        "rope_scaling": None,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": VOCABULARY,
    }


def _qwen3_moe(growth: Growth) -> Config:
    width = growth.width
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "attention_bias": False,
        "bos_token_id": BOS,
        "decoder_sparse_step": 1,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 256 * width,
        "intermediate_size": 768 * width,
        "max_position_embeddings": 32768,
        "max_window_layers": growth.layers,
        "mlp_only_layers": [],
        "moe_intermediate_size": 96 * width,
        "norm_topk_prob": True,
        "num_attention_heads": 4 * width,
        "num_experts": growth.units,
        "num_experts_per_tok": 4,
        "num_hidden_layers": growth.layers,
        "num_key_value_heads": 2 * width,
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_sliding_window": False,
        "vocab_size": VOCABULARY,
    }


def _deepseek_v32(growth: Growth) -> Config:
    width = growth.width
    return {
        "architectures": ["DeepseekV32ForCausalLM"],
        "model_type": "deepseek_v32",
        "attention_bias": False,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "first_k_dense_replace": 1,
        "hidden_act": "silu",
        "hidden_size": 256 * width,
        "index_head_dim": 64,
        "index_n_heads": 32,
        "index_topk": 64,
        "intermediate_size": 512 * width,
        "kv_lora_rank": 64,
        "max_position_embeddings": 163840,
        "moe_intermediate_size": 128 * width,
        "moe_layer_freq": 1,
        "n_group": 2,
        "n_routed_experts": growth.units,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_attention_heads": 8 * width,
        "num_experts_per_tok": 4,
        "num_hidden_layers": growth.layers,
        "num_key_value_heads": 8 * width,
        "num_nextn_predict_layers": 1,
        "q_lora_rank": 128 * width,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 32,
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
        "rope_theta": 10000,
        "routed_scaling_factor": 2.5,
        "scoring_func": "sigmoid",
        "tie_word_embeddings": False,
        "topk_group": 1,
        "topk_method": "noaux_tc",
        "torch_dtype": "bfloat16",
        "v_head_dim": 32,
        "vocab_size": VOCABULARY,
    }


def _v4_text(growth: Growth) -> Config:
    """What V4 and V4.1 have in common."""
    width = growth.width
    return {
        "attention_bias": False,
        "bos_token_id": BOS,
        "compress_rope_theta": 160000,
        "dspark_block_size": 5,
        "dspark_markov_rank": 32 * width,
        "dspark_noise_token_id": SYSTEM,
        "dspark_target_layer_ids": [growth.layers - back for back in (3, 2, 1)],
        "eos_token_id": EOS,
        "hc_eps": 1e-6,
        "hc_mult": 4,
        "hc_sinkhorn_iters": 20,
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 256 * width,
        "index_head_dim": 32,
        "index_n_heads": 32,
        "index_topk": 16,
        "max_position_embeddings": 1048576,
        "moe_intermediate_size": 128 * width,
        "n_routed_experts": growth.units,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_attention_heads": 8 * width,
        "num_experts_per_tok": 4,
        "num_hidden_layers": growth.layers,
        "num_key_value_heads": 1,
        "o_groups": 2,
        "o_lora_rank": 64 * width,
        "q_lora_rank": 64 * width,
        "qk_rope_head_dim": 32,
        "rope_theta": 10000,
        "routed_scaling_factor": 1.5,
        "scoring_func": "sqrtsoftplus",
        "sliding_window": 32,
        "swiglu_limit": 10.0,
        "tie_word_embeddings": False,
        "topk_method": "noaux_tc",
        "vocab_size": VOCABULARY,
    }


def _deepseek_v4(growth: Growth) -> Config:
    pairs = (growth.layers - 3) // 2
    return {
        **_v4_text(growth),
        "architectures": ["DeepseekV4ForCausalLM"],
        "model_type": "deepseek_v4",
        "compress_ratios": [0, 0, *([4, 128] * pairs), 4, 0, 0, 0],
        "expert_dtype": "fp4",
        "num_hash_layers": 3,
        "num_nextn_predict_layers": 1,
        "quantization_config": {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "quant_method": "fp8",
            "scale_fmt": "ue8m0",
            "weight_block_size": [128, 128],
        },
        "rms_norm_eps": 1e-6,
        "rope_scaling": _YARN,
        "torch_dtype": "bfloat16",
    }


def _deepseek_v41(growth: Growth) -> Config:
    # As released: 18 of 38 compressing layers pair tokens, in three groups that share a cache.
    group = max(2, (growth.layers - 2) * 6 // 38)
    last = 2 + (2 if growth.layers < 16 else 3) * group
    owners = [*range(2, last, group), last]
    again = max(2, (growth.layers - last) // 5)
    tables = [1, owners[-2]]
    text = {
        **_v4_text(growth),
        "model_type": "deepseek_v41_text",
        "candidate_block_size": 2,
        "candidate_source_layer_id": last,
        "candidate_topk_blocks": 16,
        "compress_ratios": [
            0, 0, *([2] * (last - 2)), *([1] * (growth.layers - last)), 0, 0, 0,
        ],
        "dspark_n_routed_experts": max(4, growth.units // 3),
        "dspark_num_experts_per_tok": 3,
        "engram_head_dim": 64,
        "engram_layer_ids": tables,
        "engram_max_ngram_size": 4,
        "engram_n_heads": 4,
        "engram_pad_token_id": PAD,
        "engram_vocab_size": growth.rows,
        "index_source_layer_ids": [
            *owners, *range(last + again, growth.layers, again),
        ],
        "kv_source_layer_ids": owners,
        "num_nextn_predict_layers": 3,
        "pad_token_id": PAD,
        "rms_norm_eps": 1e-20,
        "rope_scaling": {"rope_type": "yarn", **{k: v for k, v in _YARN.items() if k != "type"}},
    }  # fmt: skip
    text["engram_num_embeddings"] = [sum(parts) for parts in engram_primes(text)]
    return {
        "architectures": ["DeepseekV41ForCausalLM"],
        "model_type": "deepseek_v41",
        "image_token_id": IMAGE,
        "tie_word_embeddings": False,
        "quantization_config": {
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "scale_fmt": "ue8m0",
            "weight_block_size": [32, 32],
            "expert_dtype": "fp4",
        },
        "text_config": text,
        "vision_config": {
            "model_type": "deepseek_v41_vision",
            "num_hidden_layers": 2,
            "hidden_size": 64,
            "num_attention_heads": 4,
            "intermediate_size": 128,
            "patch_size": 14,
            "rope_theta": 10000,
            "downsample_ratio": 3,
            "max_image_tokens": 64,
            "min_pixels": 3136,
            "max_wh_ratio": None,
        },
    }


RECIPES = {
    "deepseek_v41": Recipe(_deepseek_v41, (10, 16, 22, 28, 34, 40), range(8, 385), ROWS),
    "deepseek_v4": Recipe(_deepseek_v4, (7, 11, 19, 27, 35, 43), range(8, 257)),
    "deepseek_v32": Recipe(_deepseek_v32, (4, 6, 8, 12, 16, 24, 32, 48, 61), range(8, 257, 2)),
    "llama": Recipe(_llama, tuple(range(4, 33, 2)), range(16, 41)),
    "qwen3_moe": Recipe(_qwen3_moe, (4, 8, 16, 32, 48), range(8, 129)),
}
