"""DeepSeek, GLM and Kimi: configurations that no model has."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from localrun.errors import HeaderError
from tests.released import Config, caches, edited, flat, released, tensors

VISION = ("hidden_size", "intermediate_size", "patch_size", "downsample_ratio")
# Release, change, the field that the error has to name.
BAD: dict[str, tuple[str, dict[str, object], str]] = {
    "no heads": ("deepseek-v3", {"num_attention_heads": 0}, "num_attention_heads"),
    "no experts": ("deepseek-v3", {"n_routed_experts": 0}, "n_routed_experts"),
    "experts below zero": ("deepseek-v3", {"n_routed_experts": -8}, "n_routed_experts"),
    "no latent": ("deepseek-v3", {"kv_lora_rank": None}, "kv_lora_rank"),
    "a width in words": ("deepseek-v3", {"hidden_size": "7168"}, "hidden_size"),
    "a width that is true": ("deepseek-v3", {"hidden_size": True}, "hidden_size"),
    "too many layers": ("deepseek-v3", {"num_hidden_layers": 5000}, "num_hidden_layers"),
    "dense layers below zero": ("deepseek-v3", {"first_k_dense_replace": -1}, "first_k_dense_"),
    "few ratios": ("deepseek-v4-flash", {"compress_ratios": [0] * 42}, "compress_ratios"),
    "no ratios": ("deepseek-v4-flash", {"compress_ratios": None}, "compress_ratios"),
    "a draft that compresses": (
        "deepseek-v4-flash",
        {"compress_ratios": [0] * 43 + [4]},
        "compress_ratios",
    ),
    "a ratio below zero": ("deepseek-v4-flash", {"compress_ratios": [-4] * 44}, "compress_ratios"),
    "uneven groups": ("deepseek-v4-flash", {"o_groups": 7}, "o_groups"),
    "hashing beyond the layers": ("deepseek-v4-flash", {"num_hash_layers": 44}, "num_hash_layers"),
    "more used than there are": (
        "deepseek-v4-flash",
        {"num_experts_per_tok": 257},
        "num_experts_per_tok",
    ),
    "experts of an unknown type": ("deepseek-v4-flash", {"expert_dtype": "int3"}, "expert_dtype"),
    "oblong blocks": (
        "deepseek-v4-flash",
        {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 64]}},
        "quantization_config.weight_block_size",
    ),
    "no window": ("deepseek-v4-flash", {"sliding_window": 0}, "sliding_window"),
    "rotation beyond the head": (
        "deepseek-v4-flash",
        {"qk_rope_head_dim": 513},
        "qk_rope_head_dim",
    ),
    "a draft that captures nothing": (
        "deepseek-v4-flash-0731",
        {"dspark_target_layer_ids": []},
        "dspark_target_layer_ids",
    ),
    "a table without rows": (
        "deepseek-v4.1-flash",
        {"engram_num_embeddings": [384_006_168]},
        "engram_num_embeddings",
    ),
    "a table twice": ("deepseek-v4.1-flash", {"engram_layer_ids": [1, 1]}, "engram_layer_ids"),
    "a table behind the layers": (
        "deepseek-v4.1-flash",
        {"engram_layer_ids": [1, 40]},
        "engram_layer_ids",
    ),
    "no owner": ("deepseek-v4.1-flash", {"kv_source_layer_ids": []}, "kv_source_layer_ids"),
    "owners out of order": (
        "deepseek-v4.1-flash",
        {"kv_source_layer_ids": [8, 2, 14, 20]},
        "kv_source_layer_ids",
    ),
    "an owner that does not compress": (
        "deepseek-v4.1-flash",
        {"kv_source_layer_ids": [0, 8, 14, 20]},
        "kv_source_layer_ids",
    ),
    "a reader of another ratio": (
        "deepseek-v4.1-flash",
        {"kv_source_layer_ids": [2, 8, 14]},
        "compress_ratios",
    ),
    "a chooser behind the layers": (
        "deepseek-v4.1-flash",
        {"index_source_layer_ids": [2, 8, 14, 40]},
        "index_source_layer_ids",
    ),
    "few kinds of feed-forward": (
        "glm-5.2",
        {"mlp_layer_types": ["dense"] * 77},
        "mlp_layer_types",
    ),
    "few indexers": ("glm-5.2", {"indexer_types": ["full"] * 77}, "indexer_types"),
    "few flags of indexers": ("glm-5.2", {"indexer_types": [True] * 77}, "indexer_types"),
    "few kinds of layers": ("glm-5.3-flash", {"layer_types": ["x"] * 44}, "layer_types"),
    "no linear heads": ("glm-5.3-flash", {"linear_num_heads": 0}, "linear_num_heads"),
    "no lists of layers": (
        "kimi-linear-48b-a3b",
        {"linear_attn_config": None},
        "linear_head_dim",
    ),
    "a layer in no list": (
        "kimi-linear-48b-a3b",
        {
            "linear_attn_config": {
                "num_heads": 32,
                "head_dim": 128,
                "short_conv_kernel_size": 4,
                "kda_layers": [1],
                "full_attn_layers": [2],
            }
        },
        "linear_attn_config.kda_layers",
    ),
    "a tower of nothing": (
        "deepseek-v4.1-flash",
        {"vision_config": dict.fromkeys(VISION, 0)},
        "vision_config.hidden_size",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_configuration_that_no_model_has_is_refused_by_its_field(case: str) -> None:
    key, changes, field = BAD[case]
    config = edited(key, **changes)

    with pytest.raises(HeaderError) as refused:
        both(config)

    assert refused.value.field.startswith(field)
    assert "config.json" in str(refused.value)


def both(config: Config) -> None:
    tensors(config)
    caches(config)


JUNK: tuple[object, ...] = (None, -1, 0, "x", [3], {}, 2**70)


@pytest.mark.parametrize(
    "key", ["deepseek-v4-flash-0731", "deepseek-v4.1-flash", "glm-5.3-flash", "kimi-linear-48b-a3b"]
)
@pytest.mark.parametrize("part", [tensors, caches])
def test_any_field_may_hold_anything_and_nothing_but_its_refusal_comes_of_it(
    key: str, part: Callable[[Config], object]
) -> None:
    config, refused = flat(released(key)), 0
    config.pop("text_config", None)

    for name in config.keys() - {"model_type"}:
        for junk in JUNK:
            try:
                part({**config, name: junk})
            except HeaderError:
                refused += 1

    assert refused > 20
