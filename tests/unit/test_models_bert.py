"""BERT described: from its checkpoint, from its GGUF file, from its configuration alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from localrun.errors import HeaderError
from localrun.formats.gguf import read_gguf
from localrun.formats.read import read_header
from localrun.formats.reader import BytesSource
from localrun.models.architectures.bert import gguf_name
from localrun.models.describe import describe, describe_config
from localrun.models.names import classify
from tests.encoders import Encoder, convert, write_checkpoint
from tests.gguf_builder import gguf_bytes

MINILM = Encoder(6, 384, 12, 1536, 512, 30_522)
# What all-MiniLM-L6-v2's file holds, without the pooler and the list of positions.
MINILM_PARAMETERS = 22_565_376


def test_the_parameters_of_minilm_are_counted() -> None:
    spec = describe_config(MINILM.config)

    assert spec.parameters == MINILM_PARAMETERS
    assert not spec.guessed
    assert not spec.of("other")
    assert (spec.n_ctx_train, spec.width, spec.heads, spec.ffn_width) == (512, 384, 12, 1536)


def test_an_encoder_keeps_nothing_and_reads_one_row_of_its_table() -> None:
    spec = describe_config(MINILM.config)

    assert spec.encoder
    assert (spec.caches, spec.state_bytes, spec.kv_bytes_per_token) == ((), (), 0)
    (table,) = spec.of("embedding")
    assert table.active_parameters == 0


def test_checkpoint_and_gguf_file_are_described_alike(tmp_path: Path) -> None:
    encoder = Encoder()
    folder = write_checkpoint(tmp_path / "tiny", encoder)
    released = describe(read_header([folder / "model.safetensors"]), encoder.config)
    converted = describe(read_header([convert(folder, tmp_path / "tiny.gguf")]))

    assert released.encoder
    assert converted.encoder
    for kind in ("embedding", "attention", "dense_ffn", "head"):
        assert converted.of(kind) == released.of(kind)
    # The pooler, through which no embedding passes.
    assert sum(group.parameters for group in released.of("other")) == 64 * 64 + 64
    assert converted.tokenizer is not None
    assert converted.tokenizer.model == "bert"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("encoder.layer.3.attention.self.query.weight", ("attention", 3, False)),
        ("encoder.layer.3.attention.output.dense.weight", ("attention", 3, False)),
        ("encoder.layer.3.output.LayerNorm.bias", ("attention", 3, False)),
        ("bert.encoder.layer.11.intermediate.dense.weight", ("dense_ffn", 11, False)),
        ("encoder.layer.0.output.dense.bias", ("dense_ffn", 0, False)),
        ("blk.3.attn_output_norm.weight", ("attention", 3, False)),
        ("blk.3.ffn_up.bias", ("dense_ffn", 3, False)),
        ("embeddings.position_embeddings.weight", ("embedding", -1, False)),
        ("position_embd.weight", ("embedding", -1, False)),
        ("token_types.weight", ("embedding", -1, False)),
        ("embeddings.LayerNorm.weight", ("head", -1, False)),
        ("token_embd_norm.weight", ("head", -1, False)),
    ],
)
def test_tensors_are_told_by_their_names(name: str, expected: tuple[str, int, bool]) -> None:
    assert classify(name, 12) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("encoder.layer.10.attention.self.key.bias", "blk.10.attn_k.bias"),
        ("bert.encoder.layer.0.output.LayerNorm.gamma", "blk.0.layer_output_norm.weight"),
        ("bert.embeddings.LayerNorm.beta", "token_embd_norm.bias"),
        ("embeddings.token_type_embeddings.weight", "token_types.weight"),
        ("embeddings.position_ids", ""),
        ("bert.pooler.dense.weight", ""),
        ("cls.predictions.transform.dense.weight", ""),
        ("classifier.weight", None),
        ("encoder.layer.0.attention.self.query.lora_A", None),
        ("encoder.layer.x.output.dense.weight", None),
        ("encoder.layer.٣.output.dense.weight", None),
        ("encoder.layer.0.mixer.weight", None),
        ("embeddings.word_embeddings", None),
        ("", None),
    ],
)
def test_a_release_s_names_become_llamacpps(name: str, expected: str | None) -> None:
    assert gguf_name(name) == expected


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"hidden_size": 0}, "hidden_size"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers"),
        ({"max_position_embeddings": -1}, "max_position_embeddings"),
        ({"intermediate_size": "wide"}, "intermediate_size"),
        ({"vocab_size": 2**40}, "vocab_size"),
        ({"type_vocab_size": True}, "type_vocab_size"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_numbers_that_no_model_has_are_named(change: dict[str, Any], field: str) -> None:
    with pytest.raises(HeaderError, match=field):
        describe_config({**Encoder().config, **change})


def test_a_file_that_says_nothing_of_its_sizes_is_still_described() -> None:
    data = gguf_bytes({"general.architecture": "bert"}, [("token_embd.weight", (4, 32), "F32")])
    spec = describe(read_gguf(BytesSource(data), "m.gguf"))

    assert (spec.layers, spec.parameters, spec.guessed) == (0, 128, True)
