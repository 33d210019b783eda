"""DeepSeek, GLM and Kimi from their configuration alone: tensors, parameters, bytes and caches."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

import pytest

from localrun import models
from localrun.errors import HeaderError
from localrun.models.architecture import Caches
from localrun.models.architectures import family
from localrun.models.cache import growth
from localrun.models.describe import describe_config
from localrun.models.fields import Fields
from localrun.models.layout import LayoutTensor
from localrun.models.spec import CacheKind, ModelSpec
from localrun.models.storage import Plain, storage_of

GEOMETRIES = Path(str(models.__file__)).parent / "geometries"
MILLION = 2**20
Config = Mapping[str, object]


@lru_cache
def released(key: str) -> Config:
    found: Config = json.loads((GEOMETRIES / f"{key}.json").read_text(encoding="utf-8"))
    return found


def flat(config: Config) -> dict[str, object]:
    text = config.get("text_config", {})
    assert isinstance(text, dict)
    return {**config, **text}


def edited(key: str, **changes: object) -> dict[str, object]:
    """Fields of a release, flat; a change to None leaves a field out."""
    values = {**flat(released(key)), **changes}
    gone = {name for name, value in values.items() if value is None} | {"text_config"}
    return {name: value for name, value in values.items() if name not in gone}


def tensors(config: Config) -> list[LayoutTensor]:
    fields = Fields(flat(config), "config.json")
    architecture = family(str(config["model_type"]))
    assert architecture is not None
    return list(architecture.layout(fields, storage_of(fields)))


def caches(config: Config) -> Caches:
    architecture = family(str(config["model_type"]))
    assert architecture is not None
    return architecture.caches(Fields(flat(config), "config.json"))


@lru_cache
def spec(key: str) -> ModelSpec:
    return describe_config(released(key))


def kept(found: Caches, kind: CacheKind, tokens: int = MILLION) -> int:
    """Bytes in the release's own format."""
    return sum(
        rows.rows_kept(tokens) * rows.native_bytes for rows in found.rows if rows.kind == kind
    )


def read(found: Caches, *kinds: CacheKind, tokens: int = MILLION) -> int:
    return sum(
        rows.rows_read(tokens) * rows.native_bytes for rows in found.rows if rows.kind in kinds
    )


# Without draft, tables and vision: all, read for one token, in routed experts.
PARAMETERS = {
    "deepseek-v2-lite": (15_706_484_224, 2_451_435_008, 14_394_851_328),
    "deepseek-v3": (671_026_419_200, 36_625_618_432, 653_908_770_816),
    "deepseek-v4-flash": (284_332_240_471, 13_270_101_591, 277_025_390_592),
    "deepseek-v4-flash-0731": (284_332_240_471, 13_270_101_591, 277_025_390_592),
    "deepseek-v4-pro": (1_572_997_201_763, 48_852_402_019, 1_547_396_186_112),
    "deepseek-v4.1-flash": (551_880_835_184, 16_130_588_784, 543_581_798_400),
    "glm-4.6v": (106_852_251_264, 12_803_372_672, 99_656_663_040),
    "glm-4.7": (352_797_829_024, 32_856_319_904, 335_963_750_400),
    "glm-5.1": (743_911_218_432, 40_833_146_112, 724_775_731_200),
    "glm-5.2": (743_377_019_904, 40_298_947_584, 724_775_731_200),
    "glm-5.3-flash": (313_326_811_966, 16_742_333_246, 304_405_807_104),
    "kimi-k2.6": (1_026_408_232_448, 31_687_095_808, 1_014_686_023_680),
    "kimi-k3": (2_779_484_476_000, 104_189_612_640, 2_722_740_830_208),
    "kimi-linear-48b-a3b": (49_122_681_728, 3_106_972_544, 47_110_422_528),
}


@pytest.mark.parametrize("key", PARAMETERS)
def test_parameters_are_those_counted_from_the_release(key: str) -> None:
    found = spec(key)

    experts = sum(group.parameters for group in found.of("experts"))

    assert (found.backbone_parameters, found.active_parameters, experts) == PARAMETERS[key]


# Embedding and head that a draft repeats are no parameters of its own.
DRAFTS = {
    "deepseek-v3": (11_610_068_224, 2 * 129_280 * 7168),
    "deepseek-v4-flash": (6_610_048_891, 0),
    "deepseek-v4-pro": (25_840_145_979, 0),
    "deepseek-v4.1-flash": (14_225_362_530, 0),
    "glm-4.7": (3_988_069_792, 2 * 151_552 * 5120),
    "glm-5.1": (9_952_920_576, 0),
    "glm-5.2": (9_952_920_576, 0),
    "glm-5.3-flash": (7_433_378_902, 0),
}


@pytest.mark.parametrize("key", DRAFTS)
def test_draft_layers_are_counted_apart(key: str) -> None:
    own, repeated = DRAFTS[key]

    assert sum(group.parameters for group in spec(key).of("draft")) == own + repeated


SIZES = {
    "deepseek-v3": (91_991, 688_574_839_360),
    "deepseek-v4-flash": (69_187, 159_609_485_896),
    "deepseek-v4-flash-0731": (72_317, 166_878_536_440),
    "deepseek-v4-pro": (145_116, 864_704_792_696),
    "deepseek-v4.1-flash": (96_085, 510_286_023_000),
}


@pytest.mark.parametrize("key", SIZES)
def test_tensors_and_bytes_are_those_of_the_released_files(key: str) -> None:
    assert (spec(key).tensors, spec(key).tensor_bytes) == SIZES[key]


def test_a_draft_of_three_stages_is_added_to_v4_pro_by_its_fields() -> None:
    ratios = flat(released("deepseek-v4-pro"))["compress_ratios"]
    assert isinstance(ratios, list)

    config = edited(
        "deepseek-v4-pro",
        compress_ratios=[*ratios, 0, 0],
        dspark_block_size=5,
        dspark_target_layer_ids=[58, 59, 60],
        dspark_markov_rank=256,
    )

    assert describe_config(config).tensor_bytes == 892_595_197_672


# In GB, by the names of tensors; the part of the first pattern that matches.
PARTS = {
    "draft": r"mtp\.",
    "vision": r"vision|aligner|image_",
    "tables": r".*engram\.embed",
    "projections": r".*engram",
    "compressors": r".*\.(compressor|indexer)\.",
    "streams": r".*hc_",
    "shared": r".*shared_experts",
    "experts": r".*\.experts\.",
    "router": r".*ffn\.gate",
    "ends": r"(embed|head)\.",
    "attention": r".*",
}
GIGABYTES = {
    "deepseek-v4-flash-0731": {
        "ends": 2.118, "attention": 4.599, "compressors": 0.801, "streams": 0.135,
        "router": 0.109, "shared": 1.082, "experts": 147.170, "draft": 10.863,
    },
    "deepseek-v4-pro": {
        "ends": 3.707, "attention": 18.295, "compressors": 1.970, "streams": 0.336,
        "router": 0.355, "shared": 4.030, "experts": 822.054, "draft": 13.957,
    },
    "deepseek-v4.1-flash": {
        "ends": 2.648, "attention": 5.070, "compressors": 0.082, "streams": 0.157,
        "router": 0.157, "shared": 1.417, "experts": 288.778, "draft": 7.933,
        "tables": 202.758, "projections": 0.315, "vision": 0.971,
    },
}  # fmt: skip


@pytest.mark.parametrize("key", GIGABYTES)
def test_bytes_of_every_part_are_those_of_the_release(key: str) -> None:
    found: dict[str, int] = {}

    for tensor in tensors(released(key)):
        part = next(part for part, mark in PARTS.items() if re.match(mark, tensor.name))
        found[part] = found.get(part, 0) + tensor.bytes * tensor.copies

    # Norms, 2 MB at most, are no part of the published table.
    in_gigabytes = {part: size / 1e9 for part, size in found.items()}
    assert in_gigabytes == pytest.approx(GIGABYTES[key], abs=0.0025)


EXPERTS = {
    "deepseek-v4-flash": (256, 6, 13_369_344, 43),
    "deepseek-v4-pro": (384, 6, 35_094_528, 61),
    "deepseek-v4.1-flash": (384, 6, 18_800_640, 40),
    "kimi-k3": (896, 16, 17_547_264, 92),
}


@pytest.mark.parametrize("key", EXPERTS)
def test_one_expert_has_the_bytes_that_a_miss_reads(key: str) -> None:
    count, used, size, layers = EXPERTS[key]

    found = spec(key).of("experts")

    assert len(found) == layers
    for group in found:
        assert group.experts is not None
        assert (group.experts.count, group.experts.used, group.experts.bytes) == (count, used, size)
        assert group.active_bytes == used * size


def test_one_token_reads_24_rows_of_264_bytes_from_each_engram_table() -> None:
    tables = [group.table for group in spec("deepseek-v4.1-flash").of("engram")]

    assert [(table.rows, table.row_bytes, table.rows_per_token) for table in tables if table] == [
        (384_006_168, 264, 24),
        (384_016_682, 264, 24),
    ]
    assert (
        sum(group.parameters for group in spec("deepseek-v4.1-flash").of("engram"))
        == 196_613_849_600
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
    assert (growth(spec(key), "native"), growth(spec(key), "bf16")) == GROWTH[key]


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

    found = describe_config(v32())

    assert growth(found, "native") == 61 * (656 + 132)
    assert found.backbone_parameters == PARAMETERS["deepseek-v3"][0] + 61 * indexer
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


@pytest.mark.parametrize("key", ["deepseek-v3", "deepseek-v4-flash", "deepseek-v4.1-flash"])
def test_a_release_that_is_not_quantized_has_no_scales(key: str) -> None:
    config = edited(key, quantization_config=None)

    found = tensors(config)

    assert {tensor.type.name for tensor in found} <= {"BF16", "F32", "I64"}
    assert not [
        tensor.name for tensor in found if tensor.name.endswith(("scale", "scale_inv"))
    ] or (all("hc_" in tensor.name for tensor in found if tensor.name.endswith("scale")))
    assert describe_config(config).backbone_parameters == PARAMETERS[key][0]


def test_another_storage_than_the_release_has_is_taken_as_it_is() -> None:
    fields = Fields(flat(released("deepseek-v4-flash")), "config.json")
    architecture = family("deepseek_v4")
    assert architecture is not None

    found = list(architecture.layout(fields, Plain()))

    assert "F8_E4M3" not in {tensor.type.name for tensor in found}
    assert "I8" not in {tensor.type.name for tensor in found}


def test_experts_are_one_entry_whose_copies_have_names() -> None:
    experts = [tensor for tensor in tensors(released("deepseek-v4-flash")) if tensor.copies > 1]

    names = list(experts[0].names())

    assert len(experts) == 44 * 6
    assert names[0] == "layers.0.ffn.experts.0.w1.weight"
    assert names[-1] == "layers.0.ffn.experts.255.w1.weight"


@pytest.mark.parametrize("key", PARAMETERS)
def test_no_two_tensors_have_one_name(key: str) -> None:
    names = [tensor.name for tensor in tensors(released(key))]

    assert len(names) == len(set(names))


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

    assert refused > 30
