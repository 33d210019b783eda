"""DeepSeek-V4.1 in GGUF gives back the bits of its experts and of its Engram tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localrun.errors import HeaderError, LocalrunError, UsageError
from localrun.formats.gguf_values import U32, U32s
from localrun.models.describe import describe, describe_config
from localrun.quantize.types.choice import choose
from localrun.releases.engram_rows import NativeRows, tables
from localrun.releases.stored.release import weights_of
from localrun.releases.weights import row_count
from tests.deepseek import (
    Edit,
    base,
    by_name,
    convert,
    convert_opened,
    gguf_file,
    numbers,
    opened,
    write,
    written,
)
from tests.slabs import Numbers

EXPERTS = "_exps."


@pytest.fixture(scope="module")
def flash(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("v41") / "flash", base("deepseek_v41"))


@pytest.fixture(scope="module")
def gguf(flash: Path) -> Path:
    """Experts in MXFP4, all else as in a file of floats."""
    out = flash.parent / "flash.gguf"
    with opened(flash) as checkpoint:
        model = convert_opened(checkpoint)
        moved = {name: "MXFP4" for name in by_name(model) if EXPERTS in name}
        written(model, out, moved)
    return out


def test_a_reader_gets_the_bits_of_tables_and_experts(flash: Path, gguf: Path) -> None:
    with opened(flash) as checkpoint, gguf_file(gguf) as file:
        released = weights_of(checkpoint)
        raw = {each.name: each for each in checkpoint.header.tensors}
        found = file.weights()
        read = tables(found)
        assert sorted(read) == [1, 4]
        for layer, table in read.items():
            assert isinstance(table, NativeRows)
            assert table.table.shape == (table.shape[0], 66)
            codes, scales = table.codes(0, table.shape[0])
            for part, bits in (("weight", codes), ("scale", scales)):
                tensor = raw[f"layers.{layer}.engram.embed.{part}"]
                own = checkpoint.source(tensor).read(tensor.offset, tensor.bytes)
                assert bits.tobytes() == own
            assert np.array_equal(
                table.rows(17, 400), released[f"layers.{layer}.engram.embed.weight"].rows(17, 400)
            )
        for layer in range(10):
            for matrix, part in (("w1", "gate"), ("w2", "down"), ("w3", "up")):
                stack = numbers(found[f"blk.{layer}.ffn_{part}_exps.weight"])
                for expert, each in enumerate(stack):
                    name = f"layers.{layer}.ffn.experts.{expert}.{matrix}.weight"
                    weight = released[name]
                    assert np.array_equal(each, numbers(weight))
                    blocks = weight.blocks("MXFP4", 0, row_count(weight))
                    rows = len(each)
                    moved = found[f"blk.{layer}.ffn_{part}_exps.weight"].blocks(
                        "MXFP4", expert * rows, (expert + 1) * rows
                    )
                    assert np.array_equal(blocks, moved)


def test_tables_are_bytes_that_no_mixture_narrows_and_lie_behind_all_else(flash: Path) -> None:
    model = convert(flash)
    last = model.tensors[-2:]

    assert [each.target.name for each in last] == [
        "blk.1.engram_embd.weight",
        "blk.4.engram_embd.weight",
    ]
    assert {(each.target.type.name, each.fixed) for each in last} == {("I8", True)}
    assert by_name(model)["blk.1.engram_kv.weight"].target.shape == (1280, 768)
    assert by_name(model)["blk.4.engram_q_weight.weight"].target.shape == (4, 256)
    assert not by_name(model)["blk.1.engram_kv.weight"].fixed
    assert {note.partition(" ")[2].split()[0] for note in model.notes} >= {"draft", "vision"}


@pytest.mark.parametrize("mixture", ["Q2_K", "Q4_K_M", "MXFP4", "BF16"])
def test_no_mixture_touches_tables_or_how_streams_are_mixed(flash: Path, mixture: str) -> None:
    with opened(flash) as checkpoint:
        types = choose(convert_opened(checkpoint), mixture).types

    assert {kind for name, kind in types.items() if "engram_embd" in name} == {"I8"}
    assert {kind for name, kind in types.items() if ".hc_" in name} == {"F32"}
    experts = {kind for name, kind in types.items() if EXPERTS in name}
    assert experts == ({"MXFP4", "Q2_K"} if mixture == "Q2_K" else {"MXFP4"})


def test_a_table_of_floats_becomes_q8_0_and_nothing_less(flash: Path) -> None:
    def floats(weights: Any) -> Any:
        tables = {
            name: Numbers(name, np.zeros(each.shape, np.float32))
            for name, each in weights.items()
            if name.endswith("engram.embed.weight")
        }
        return weights | tables

    made = by_name(convert(flash, edit=floats))
    table = made["blk.1.engram_embd.weight"]
    assert (table.target.type.name, table.fixed) == ("Q8_0", True)
    assert "blk.1.engram_embd_scale.weight" not in made


def test_keys_say_who_shares_what(flash: Path) -> None:
    metadata = convert(flash).metadata

    assert metadata["general.architecture"] == "deepseek41"
    told = {
        "attention.kv_source_layers": U32s((2, 4, 6)),
        "attention.index_source_layers": U32s((2, 4, 6, 8)),
        "attention.indexer.candidate_source_layer": U32(6),
        "attention.indexer.candidate_topk_blocks": U32(16),
        "attention.indexer.candidate_block_size": U32(2),
        "embedding_length_out": U32(256),
        "hash_layer_count": U32(0),
        "engram.layers": U32s((1, 4)),
        "engram.ngram_size": U32(4),
        "engram.head_count": U32(4),
        "engram.head_dim": U32(64),
        "engram.embedding_counts": U32s((6568, 7464)),
        "engram.compressed_vocab_size": U32(870),
        "engram.pad_token_id": U32(2),
        "engram.encoding": "e4m3_e8m0_32_row66",
    }
    assert {key: metadata[f"deepseek41.{key}"] for key in told} == told


def test_a_planner_gets_from_the_file_what_the_configuration_says(flash: Path, gguf: Path) -> None:
    with opened(flash) as checkpoint, gguf_file(gguf) as file:
        told, read = describe_config(checkpoint.config), describe(file.header)

    assert not read.guessed
    assert read.caches == told.caches
    assert read.prefill_layers == told.prefill_layers
    assert (read.layers, read.experts, read.experts_used) == (10, 8, 4)


REFUSED: dict[str, tuple[dict[str, Any], type[LocalrunError], str]] = {
    "other primes": ({"engram_vocab_size": 600}, HeaderError, "engram_num_embeddings"),
    "other rows": ({"engram_num_embeddings": [6568, 7465]}, HeaderError, "has the shape"),
    "other classes": ({"engram_compressed_vocab_size": 869}, HeaderError, "870 classes"),
    "too many buckets": ({"engram_n_heads": 4096}, HeaderError, "has the shape|too many"),
    "a pad that is no token": ({"engram_pad_token_id": 1024}, HeaderError, "engram_pad_token_id"),
    "another score": ({"scoring_func": "sigmoid"}, UsageError, "scoring_func"),
    "a cooler gate": ({"gate_temp": 0.5}, UsageError, "gate_temp"),
}


@pytest.mark.parametrize(("changes", "kind", "said"), REFUSED.values(), ids=list(REFUSED))
def test_what_would_become_another_model_is_refused(
    flash: Path, changes: dict[str, Any], kind: type[LocalrunError], said: str
) -> None:
    with pytest.raises(kind, match=said) as raised:
        convert(flash, changes)
    assert raised.value.hint


def lost(name: str) -> Edit:
    return lambda weights: {key: each for key, each in weights.items() if key != name}


@pytest.mark.parametrize("name", ["layers.1.engram.embed.weight", "layers.4.engram.q_weight"])
def test_a_tensor_that_is_gone_is_named(flash: Path, name: str) -> None:
    with pytest.raises(HeaderError, match=f"{name}.*not in the checkpoint"):
        convert(flash, edit=lost(name))


def test_a_table_of_a_layer_that_has_none_is_named(flash: Path) -> None:
    def add(weights: Any) -> Any:
        return {**weights, "layers.3.engram.q_weight": weights["layers.4.engram.q_weight"]}

    with pytest.raises(HeaderError, match=r"layers\.3\.engram\.q_weight.*no tensor of this model"):
        convert(flash, edit=add)
