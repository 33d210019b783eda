"""DeepSeek, GLM and Kimi from their configuration alone: tensors, parameters and bytes."""

from __future__ import annotations

import re
from functools import lru_cache

import pytest

from localrun.models.describe import describe_config
from localrun.models.fields import Fields
from localrun.models.spec import ModelSpec
from localrun.models.storage import Plain
from tests.released import architecture, edited, flat, released, tensors


@lru_cache
def spec(key: str) -> ModelSpec:
    return describe_config(released(key))


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

    found = list(architecture(released("deepseek-v4-flash")).layout(fields, Plain()))

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
