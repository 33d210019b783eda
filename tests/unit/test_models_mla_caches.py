"""DeepSeek, GLM and Kimi: what a sequence keeps and what a decoded token reads of it."""

from __future__ import annotations

import pytest

from localrun.models.architecture import Caches
from localrun.models.cache import growth
from localrun.models.describe import describe_config
from localrun.models.spec import CacheKind
from tests.released import caches, edited, released

MILLION = 2**20


def kept(found: Caches, kind: CacheKind, tokens: int = MILLION) -> int:
    """Bytes in the release's own format."""
    return sum(
        rows.rows_kept(tokens) * rows.native_bytes for rows in found.rows if rows.kind == kind
    )


def read(found: Caches, *kinds: CacheKind, tokens: int = MILLION) -> int:
    return sum(
        rows.rows_read(tokens) * rows.native_bytes for rows in found.rows if rows.kind in kinds
    )


# Bytes a token, in the release's own format and in BF16.
GROWTH = {
    "deepseek-v4-flash": (3514.25, 6880),
    "deepseek-v4-pro": (5031.4375, 9848),
    "deepseek-v4.1-flash": (890, 3200),
    "deepseek-v3": (61 * 1152, 61 * 1152),
    "glm-5.2": (78 * 1152 + 21 * 256, 78 * 1152 + 21 * 256),
    "glm-5.3-flash": (11 * (1024 + 64), 11 * (1024 + 64)),
    "kimi-linear-48b-a3b": (7 * 1152, 7 * 1152),
    "glm-4.7": (92 * 8 * 256 * 2, 92 * 8 * 256 * 2),
}


@pytest.mark.parametrize("key", GROWTH)
def test_a_context_grows_by_the_bytes_of_its_rows(key: str) -> None:
    found = describe_config(released(key))

    assert (growth(found, "native"), growth(found, "bf16")) == GROWTH[key]


def v32() -> dict[str, object]:
    return edited(
        "deepseek-v3",
        model_type="deepseek_v32",
        index_n_heads=64,
        index_head_dim=128,
        index_topk=2048,
    )


def test_v32_adds_an_indexer_to_v3_and_reads_the_rows_that_it_chooses() -> None:
    indexer = 64 * 128 * 1536 + 128 * 7168 + 2 * 128 + 64 * 7168

    before, found = describe_config(released("deepseek-v3")), describe_config(v32())

    assert growth(found, "native") == 61 * (656 + 132)
    assert found.backbone_parameters - before.backbone_parameters == 61 * indexer
    assert read(caches(v32()), "latent") == 61 * 2048 * 656
    assert read(caches(v32()), "index") == 61 * MILLION * 132


# Windows of one sequence in MiB, compressor tails in bytes.
FIXED = {
    "deepseek-v4-flash": (3.07, 21 * (65_536 + 16_384) + 20 * 524_288),
    "deepseek-v4-pro": (4.35, 30 * (65_536 + 16_384) + 31 * 524_288),
    "deepseek-v4.1-flash": (2.58, 3 * 8192),
}


@pytest.mark.parametrize("key", FIXED)
def test_a_sequence_keeps_windows_and_open_groups_whatever_its_length(key: str) -> None:
    found = caches(released(key))
    windows, tails = FIXED[key]

    assert round(kept(found, "sliding") / 2**20, 2) == windows
    assert kept(found, "sliding") == kept(found, "sliding", tokens=128)
    assert sum(size for _, size in found.states) == tails


# At 1,048,576 tokens: index keys in GB, rows attended to in MB.
READS = {
    "deepseek-v4-flash": (0.374, 105),
    "deepseek-v4-pro": (0.535, 171),
    "deepseek-v4.1-flash": (0.183, 8.3),
}


@pytest.mark.parametrize("key", READS)
def test_a_decoded_token_scans_index_keys_and_reads_chosen_rows(key: str) -> None:
    found = caches(released(key))
    keys, rows = READS[key]

    attended = read(found, "sliding", "compressed") / 1e6

    assert round(read(found, "index") / 1e9, 3) == keys
    assert round(attended, 1 if rows < 100 else 0) == rows


def test_without_a_candidate_level_v41_scans_its_long_keys_five_times() -> None:
    found = caches(edited("deepseek-v4.1-flash", candidate_source_layer_id=None))

    assert round(read(found, "index") / 1e9, 3) == 0.463


def test_a_short_context_is_read_no_further_than_it_reaches() -> None:
    found = caches(released("deepseek-v4.1-flash"))

    assert read(found, "compressed", tokens=100) == 288 * (18 * 50 + 20 * 100)


def test_layers_behind_the_last_owner_are_left_out_of_a_v41_prefill() -> None:
    assert caches(released("deepseek-v4.1-flash")).prefill_layers == 21
    assert caches(released("deepseek-v4-flash")).prefill_layers == 0


def test_linear_attention_keeps_a_float32_state_and_the_inputs_of_its_convolution() -> None:
    found = caches(released("kimi-linear-48b-a3b"))
    state = 4 * (32 * 128 * 128 + 3 * 32 * 128 * 3)

    assert [layer for layer, _ in found.states][:5] == [0, 1, 2, 4, 5]
    assert {size for _, size in found.states} == {state}
    assert found.rows[0].layers == (3, 7, 11, 15, 19, 23, 26)


def test_glm_53_pools_its_index_keys_by_four_in_the_layers_that_choose() -> None:
    latent, keys = caches(released("glm-5.3-flash")).rows

    assert latent.layers == keys.layers == tuple(range(3, 45, 4))
    assert (latent.elements, latent.read_rows) == (512, 2048)
    assert (keys.elements, keys.tokens_per_row) == (128, 4)
    assert len(caches(released("glm-5.3-flash")).states) == 34


def test_glm_52_keeps_index_keys_only_where_an_indexer_runs() -> None:
    config = {
        **released("glm-5.2"),
        "indexer_types": None,
        "index_topk_freq": 4,
        "index_skip_topk_offset": 3,
    }

    by_list, by_frequency = caches(released("glm-5.2")).rows[1], caches(config).rows[1]

    assert by_list.layers[:5] == (0, 1, 2, 6, 10)
    assert by_list == by_frequency


# What a GGUF file's metadata says, in config.json's words.
TRANSLATED: dict[str, tuple[str, dict[str, object], dict[CacheKind, int]]] = {
    "deepseek2": (
        "deepseek2",
        {"num_hidden_layers": 61, "kv_lora_rank": 512, "qk_rope_head_dim": 64},
        {"latent": 61},
    ),
    "deepseek4": (
        "deepseek4",
        {
            "num_hidden_layers": 4,
            "head_dim": 512,
            "qk_rope_head_dim": 64,
            "sliding_window": 128,
            "compress_ratios": (0, 4, 128, 4),
            "index_n_heads": 64,
            "index_head_dim": 128,
            "index_topk": 512,
        },
        {"sliding": 4, "compressed": 3, "index": 2},
    ),
    "glm-dsa": (
        "glm-dsa",
        {
            "num_hidden_layers": 4,
            "kv_lora_rank": 512,
            "qk_rope_head_dim": 64,
            "num_key_value_heads": 1,
            "index_head_dim": 128,
            "index_topk": 2048,
            "indexer_types": (True, False, False, True),
        },
        {"latent": 4, "index": 2},
    ),
    "kimi-linear": (
        "kimi-linear",
        {
            "num_hidden_layers": 4,
            "num_attention_heads": 32,
            "num_key_value_heads": (0, 0, 0, 1),
            "kv_lora_rank": 512,
            "qk_rope_head_dim": 64,
            "linear_head_dim": 128,
            "linear_conv_kernel_dim": 4,
        },
        {"latent": 1},
    ),
    "glm4moe": (
        "glm4moe",
        {
            "num_hidden_layers": 92,
            "hidden_size": 5120,
            "num_attention_heads": 96,
            "num_key_value_heads": 8,
            "head_dim": 128,
        },
        {"full": 92},
    ),
}


@pytest.mark.parametrize("case", TRANSLATED)
def test_caches_need_no_more_than_a_gguf_file_says(case: str) -> None:
    name, values, expected = TRANSLATED[case]

    found = caches({"model_type": name, **values})

    layers: dict[CacheKind, int] = {}
    for rows in found.rows:
        layers[rows.kind] = layers.get(rows.kind, 0) + len(rows.layers)
    assert layers == expected
