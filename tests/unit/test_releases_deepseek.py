"""A DeepSeek in GGUF comes back as the release that it was made of, bit by bit where it can."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localrun.cli.app import execute
from localrun.errors import HeaderError, LocalrunError, UsageError
from localrun.formats.gguf_values import F32, U32, F32s, I32s, U32s, Value
from localrun.models.bare import flat
from localrun.models.names import classify
from localrun.quantize.families import registry
from localrun.releases.read import release_of_checkpoint, release_of_gguf
from localrun.releases.release import Release
from localrun.releases.stored.release import weights_of
from localrun.releases.weights import Weight, row_count
from tests.deepseek import (
    base,
    by_name,
    convert_opened,
    gguf_file,
    numbers,
    opened,
    write,
    written,
)

EXPERTS = "_exps."
NO_INDEXER = ("index_head_dim", "index_n_heads", "index_topk")
# What a release says beside its language model, or of how it is stored: no file of llama.cpp's.
BESIDE = {
    "architectures", "model_type", "image_token_id", "expert_dtype", "vision_config", "text_config",
    "dspark_block_size", "dspark_markov_rank", "dspark_noise_token_id", "dspark_target_layer_ids",
    "dspark_n_routed_experts", "dspark_num_experts_per_tok", "quantization_config",
    "num_nextn_predict_layers", "torch_dtype",
}  # fmt: skip


def config_of(kind: str) -> dict[str, Any]:
    if kind in ("deepseek_v4", "deepseek_v41", "deepseek_v32"):
        return base(kind)
    config = base("deepseek_v32", model_type=kind)
    config = {key: value for key, value in config.items() if key not in NO_INDEXER}
    version = {"deepseek_v2": "V2", "deepseek_v3": "V3"}[kind]
    config["architectures"] = [f"Deepseek{version}ForCausalLM"]
    if kind == "deepseek_v2":
        config |= {"q_lora_rank": None, "scoring_func": "softmax", "num_nextn_predict_layers": None}
        config |= {"norm_topk_prob": False, "topk_method": "group_limited_greedy"}
    return config


KINDS = ("deepseek_v2", "deepseek_v3", "deepseek_v32", "deepseek_v4", "deepseek_v41")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("deepseek")
    return {kind: write(place / kind, config_of(kind)) for kind in KINDS}


@contextmanager
def both(
    folder: Path, place: Path, keys: Mapping[str, Value | None] | None = None, gone: str = ""
) -> Iterator[tuple[Release, Release]]:
    """(of the GGUF file, of the checkpoint it was made of); numbers are F32 there, four-bit ones
    MXFP4. A key that becomes None is left out, so is the tensor ``gone``."""
    with opened(folder) as checkpoint:
        weights = weights_of(checkpoint)
        theirs = release_of_checkpoint(checkpoint, weights)
        path = _file(checkpoint, place / f"{folder.name}.gguf", keys or {}, gone)
        with gguf_file(path) as gguf:
            yield release_of_gguf(gguf), theirs


def _file(checkpoint: Any, path: Path, keys: Mapping[str, Value | None], gone: str) -> Path:
    model = convert_opened(checkpoint)
    metadata = {**model.metadata, **keys}
    tensors = tuple(each for each in model.tensors if each.target.name != gone)
    kept = {key: value for key, value in metadata.items() if value is not None}
    model = model.__class__(model.architecture, kept, tensors, *_rest(model))
    written(model, path, {name: _moved(tensor) for name, tensor in by_name(model).items()})
    return path


def _rest(model: Any) -> tuple[Any, ...]:
    return model.blocks, model.experts, model.grouped, model.notes


def _moved(tensor: Any) -> str:
    if tensor.weight.stored == "FP4":
        return "MXFP4"
    kind: str = tensor.target.type.name
    return "F32" if kind == "BF16" else kind


def text_model(weights: Mapping[str, Weight], layers: int, drafts: bool) -> dict[str, Weight]:
    """What has a place in a text model's GGUF file."""
    gone = {"vision"} if drafts else {"vision", "draft"}
    return {k: v for k, v in weights.items() if classify(k, layers)[0] not in gone}


@pytest.mark.parametrize("kind", KINDS)
def test_weights_come_back_under_their_names(
    folders: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    with both(folders[kind], tmp_path) as (ours, theirs):
        layers = flat(theirs.config).values["num_hidden_layers"]
        wanted = text_model(theirs.weights, layers, drafts=kind == "deepseek_v32")
        assert ours.weights.keys() == wanted.keys()
        for name, weight in wanted.items():
            assert ours.weights[name].shape == weight.shape, name
            assert np.array_equal(numbers(ours.weights[name]), numbers(weight)), name


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_that_a_runner_needs_comes_back(
    folders: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    with both(folders[kind], tmp_path) as (ours, theirs):
        wanted = {k: v for k, v in flat(theirs.config).values.items() if k not in BESIDE}
        found = dict(ours.config)
        drafts = found.pop("num_nextn_predict_layers")
        scaling = wanted.pop("rope_scaling")
        stretched = found.pop("rope_scaling")
        start = (wanted.pop("engram_vocab_size", None), found.pop("engram_vocab_size", None))

    assert ours.config["model_type"] == kind
    assert ours.config["architectures"] == theirs.config["architectures"]
    assert {key: found.get(key) for key in wanted} == wanted
    # No word is there that the release does not have, but for ends of a text and its type.
    assert found.keys() - wanted.keys() <= {*BESIDE, "pad_token_id"}
    assert {"rope_type": "yarn", **{k: v for k, v in scaling.items() if k != "type"}} == stretched
    assert drafts == (1 if kind == "deepseek_v32" else 0)
    if kind == "deepseek_v41":
        # Any number up to the first prime begins the same stream of them.
        assert start == (500, 503)


@pytest.mark.parametrize("kind", KINDS)
def test_the_release_converts_to_the_same_file(
    folders: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    with both(folders[kind], tmp_path) as (ours, _):
        again = tmp_path / "again"
        write(again, config_of(kind))
        (again / "config.json").write_text(json.dumps(ours.config))
        for name, data in ours.beside.items():
            (again / name).write_bytes(data)
        with opened(again) as checkpoint:
            made = registry.convert(checkpoint, ours.weights, ours.name)
    with opened(folders[kind]) as checkpoint:
        first = convert_opened(checkpoint)

    assert made.architecture == first.architecture
    keys = dict(first.metadata)
    assert {key: made.metadata.get(key) for key in keys} == keys
    shapes = {name: each.target.shape for name, each in by_name(made).items()}
    assert shapes == {name: each.target.shape for name, each in by_name(first).items()}


@pytest.mark.parametrize("kind", ["deepseek_v4", "deepseek_v41"])
def test_four_bit_experts_keep_their_bits(
    folders: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    with both(folders[kind], tmp_path) as (ours, theirs):
        names = [name for name in ours.weights if ".experts." in name]
        assert len(names) >= 7 * 8 * 3
        for name in names:
            weight, own = ours.weights[name], theirs.weights[name]
            rows = row_count(own)
            moved, whole = weight.blocks("MXFP4", 3, rows), own.blocks("MXFP4", 3, rows)
            assert weight.stored == "MXFP4"
            assert moved is not None
            assert np.array_equal(moved, whole), name


def test_whole_numbers_stay_whole(folders: dict[str, Path], tmp_path: Path) -> None:
    with both(folders["deepseek_v4"], tmp_path) as (ours, theirs):
        name = "layers.0.ffn.gate.tid2eid"
        moved = ours.weights[name].blocks("I32", 5, 9)
        wanted = theirs.weights[name].blocks("I32", 5, 9)

    assert ours.weights[name].stored == "I32"
    assert moved is not None
    assert np.array_equal(moved, wanted)


def test_a_head_of_the_latent_projection_is_read_alone(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    name = "model.layers.2.self_attn.kv_b_proj.weight"
    with both(folders["deepseek_v3"], tmp_path) as (ours, theirs):
        whole = numbers(theirs.weights[name])
        weight = ours.weights[name]
        assert weight.step < len(whole)
        for start in range(0, len(whole), weight.step):
            stop = min(start + weight.step + 7, len(whole))
            assert np.array_equal(weight.rows(start, stop), whole[start:stop])


def test_constants_of_engram_come_back_and_its_tables_keep_their_bytes(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    with both(folders["deepseek_v41"], tmp_path) as (ours, theirs):
        assert ours.engram is not None
        assert ours.engram == theirs.engram
        assert ours.notes == ()
        table = ours.weights["layers.1.engram.embed.weight"]
        assert table.stored == "FP8"
        assert table.read_bytes == theirs.weights["layers.1.engram.embed.weight"].read_bytes

    with both(folders["deepseek_v4"], tmp_path) as (ours, theirs):
        assert ours.engram is None
        assert theirs.engram is None


def test_constants_that_follow_from_no_configuration_are_the_files_alone(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    with opened(folders["deepseek_v41"]) as checkpoint:
        stated = convert_opened(checkpoint).metadata["deepseek41.engram.token_map"]
    assert isinstance(stated, U32s)
    # Two tokens change their classes, and so their rows.
    other = U32s([*stated.values[:-2], stated.values[-1], stated.values[-2]])
    keys: dict[str, Value | None] = {"deepseek41.engram.token_map": other}
    with both(folders["deepseek_v41"], tmp_path, keys) as (ours, theirs):
        assert ours.engram is not None
        assert theirs.engram is not None
        assert ours.engram.classes == tuple(other.values)


def test_a_bias_for_image_tokens_is_part_of_the_release(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """V4's vision release has one in every layer."""
    with opened(folders["deepseek_v4"]) as checkpoint:
        weights = weights_of(checkpoint)
        own = weights["layers.3.ffn.gate.bias"]
        model = convert_opened(
            checkpoint, edit=lambda each: {**each, "layers.3.ffn.gate.bias_vl": own}
        )
        path = tmp_path / "v4.gguf"
        written(model, path, {name: _moved(each) for name, each in by_name(model).items()})
        with gguf_file(path) as gguf:
            release = release_of_gguf(gguf)
            found = numbers(release.weights["layers.3.ffn.gate.bias_vl"])
            assert np.array_equal(found, numbers(own))


REFUSED: dict[str, tuple[str, dict[str, Value | None], type[LocalrunError], str]] = {
    "uncached_latent": (
        "deepseek_v3", {"deepseek2.attention.key_length_mla": None}, UsageError, "key_length_mla",
    ),
    "unknown_score": (
        "deepseek_v32", {"deepseek32.expert_gating_func": U32(3)}, HeaderError,
        "expert_gating_func",
    ),
    "rope_wider_than_a_key": (
        "deepseek_v3", {"deepseek2.rope.dimension_count": U32(64)}, HeaderError,
        "rope.dimension_count",
    ),
    "only_drafts": (
        "deepseek_v32", {"deepseek32.nextn_predict_layers": U32(5)}, HeaderError,
        "nextn_predict_layers",
    ),
    "another_rank": (
        "deepseek_v3", {"deepseek2.attention.kv_lora_rank": U32(32)}, HeaderError, "attn_kv_a_mqa",
    ),
    "clamps_that_differ": (
        "deepseek_v4", {"deepseek4.swiglu_clamp_exp": F32s([10.0] * 6 + [7.0])}, UsageError,
        "swiglu_clamp",
    ),
    "shared_clamps_that_differ": (
        "deepseek_v4", {"deepseek4.swiglu_clamp_shexp": F32s([7.0] * 7)}, UsageError,
        "swiglu_clamp",
    ),
    "negative_ratio": (
        "deepseek_v4", {"deepseek4.attention.compress_ratios": I32s([0, 0, -4, 128, 4, 128, 4])},
        HeaderError, "compress_ratios[2]",
    ),
    "fewer_ratios": (
        "deepseek_v4", {"deepseek4.attention.compress_ratios": I32s([0, 0, 4])}, HeaderError,
        "compress_ratios",
    ),
    "no_streams": (
        "deepseek_v4", {"deepseek4.hyper_connection.count": None}, HeaderError,
        "hyper_connection.count",
    ),
    "no_base": (
        "deepseek_v4", {"deepseek4.attention.compress_rope_freq_base": None}, HeaderError,
        "compress_rope_freq_base",
    ),
    "no_owners": (
        "deepseek_v41", {"deepseek41.attention.kv_source_layers": None}, HeaderError,
        "kv_source_layers",
    ),
    "candidates_without_size": (
        "deepseek_v41", {"deepseek41.attention.indexer.candidate_block_size": None}, HeaderError,
        "candidate_block_size",
    ),
    "stretched_otherwise": (
        "deepseek_v4", {"deepseek4.rope.scaling.type": "longrope"}, UsageError, "longrope",
    ),
    "engram_without_primes": (
        "deepseek_v41", {"deepseek41.engram.head_bucket_sizes": None}, HeaderError,
        "head_bucket_sizes",
    ),
    "class_of_no_token": (
        "deepseek_v41",
        {
            "deepseek41.engram.pad_token_id": None, "deepseek41.engram.pad_id": U32(7),
            "deepseek41.engram.token_map": U32s([*range(7), *range(8, 1025)]),
        },
        HeaderError, "pad_id",
    ),
    "no_epsilon": (
        "deepseek_v3", {"deepseek2.attention.layer_norm_rms_epsilon": None}, HeaderError,
        "layer_norm_rms_epsilon",
    ),
    "gating_of_text": (
        "deepseek_v3", {"deepseek2.expert_weights_scale": "much"}, HeaderError,
        "expert_weights_scale",
    ),
    "factor": ("deepseek_v3", {"deepseek2.rope.scaling.factor": None}, UsageError, "yarn"),
    "wide_head": ("deepseek_v4", {"deepseek4.attention.key_length": U32(96)}, HeaderError, "attn_"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_release_says_is_refused(
    folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    kind, keys, error, told = REFUSED[name]
    with pytest.raises(error) as refused, both(folders[kind], tmp_path, keys):
        pass

    assert told in refused.value.message


GONE = {
    "deepseek_v2": "blk.0.attn_q.weight",
    "deepseek_v3": "blk.2.attn_v_b.weight",
    "deepseek_v32": "blk.1.indexer.k_norm.bias",
    "deepseek_v4": "blk.2.attn_compressor_ape.weight",
    "deepseek_v41": "blk.4.engram_embd.weight",
}


@pytest.mark.parametrize("kind", GONE)
def test_a_tensor_that_is_missing_is_named(
    folders: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    with pytest.raises(HeaderError) as refused, both(folders[kind], tmp_path, gone=GONE[kind]):
        pass

    assert GONE[kind] in refused.value.message


def test_a_file_whose_draft_layer_was_lost_has_none(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    with opened(folders["deepseek_v32"]) as checkpoint:
        model = convert_opened(checkpoint)
        tensors = tuple(t for t in model.tensors if not t.target.name.startswith("blk.4."))
        model = model.__class__(model.architecture, model.metadata, tensors, *_rest(model))
        written(model, tmp_path / "v32.gguf", {})
        with gguf_file(tmp_path / "v32.gguf") as gguf:
            release = release_of_gguf(gguf)

    assert release.config["num_hidden_layers"] == 4
    assert release.config["num_nextn_predict_layers"] == 0
    assert not any(name.startswith("model.layers.4.") for name in release.weights)


def test_a_file_says_how_scores_are_stretched_or_nothing(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    log = "deepseek2.rope.scaling.yarn_log_multiplier"
    with both(folders["deepseek_v3"], tmp_path, {log: F32(0.0707)}) as (ours, _):
        scaling = flat(ours.config).values["rope_scaling"]
        assert (scaling["mscale"], scaling["mscale_all_dim"]) == (0.707, 0.707)
    with both(folders["deepseek_v3"], tmp_path, {log: None}) as (ours, _):
        assert "mscale" not in flat(ours.config).values["rope_scaling"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_becomes_a_checkpoint_that_says_the_same(
    folders: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    with opened(folders[kind]) as checkpoint:
        theirs = release_of_checkpoint(checkpoint, weights_of(checkpoint))
        path = _file(checkpoint, tmp_path / "model.gguf", {}, "")
    out = tmp_path / "checkpoint"

    assert execute(["quantize", str(path), str(out), "--type", "safetensors-f32"]) == 0

    with opened(out) as checkpoint, gguf_file(path) as gguf:
        ours = release_of_checkpoint(checkpoint, weights_of(checkpoint))
        told = release_of_gguf(gguf)
        assert ours.engram == theirs.engram
        assert ours.weights.keys() == told.weights.keys()
        for name, weight in told.weights.items():
            assert np.array_equal(numbers(ours.weights[name]), numbers(weight)), name
        # The dtype is the new one's; all else is as told.
        assert {**ours.config, "torch_dtype": None, "dtype": None} == {
            **told.config,
            "torch_dtype": None,
            "dtype": None,
        }
