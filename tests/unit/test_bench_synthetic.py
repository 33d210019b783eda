"""Synthetic checkpoints: in release format, of the size asked, the same bytes for the same seed."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from localrun.errors import UsageError
from localrun.formats.header import Header
from localrun.formats.read import read_header
from localrun.models.describe import layout_of

BENCH = str(Path(__file__).parents[2] / "bench")
INDEX = "model.safetensors.index.json"
ARCHITECTURES = ("deepseek_v41", "deepseek_v4", "deepseek_v32", "llama", "qwen3_moe")
SCALE = 30_000_000
every_architecture = pytest.mark.parametrize("arch", ARCHITECTURES)
# What DeepSeek-V4.1-Flash has other than the smallest model of its architecture.
RELEASED_TEXT = {
    "vocab_size": 129280,
    "hidden_size": 5120,
    "num_attention_heads": 64,
    "head_dim": 512,
    "qk_rope_head_dim": 64,
    "q_lora_rank": 1280,
    "o_groups": 8,
    "o_lora_rank": 1024,
    "moe_intermediate_size": 2304,
    "num_experts_per_tok": 6,
    "index_head_dim": 128,
    "index_topk": 512,
    "dspark_markov_rank": 256,
    "dspark_n_routed_experts": 128,
    "engram_n_heads": 8,
    "engram_head_dim": 256,
    "engram_num_embeddings": [384006168, 384016682],
    "dspark_noise_token_id": 128799,
}
RELEASED_VISION = {"num_hidden_layers": 32, "hidden_size": 1024, "intermediate_size": 2816}


def bench(name: str) -> ModuleType:
    """A script of bench/, which is no package: its parts import one another by bare name."""
    if BENCH not in sys.path:
        sys.path.append(BENCH)
    return import_module(name)


def configs() -> ModuleType:
    return bench("synthetic_configs")


def make(out: Path, *arguments: str) -> Path:
    bench("synthetic_checkpoint").main([str(out), *arguments])
    return out


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("synthetic")
    return {
        arch: make(place / arch, "--arch", arch, "--scale", "30MB", "--seed", "7")
        for arch in ARCHITECTURES
    }


def header(out: Path) -> Header:
    return read_header([out / INDEX])


def config(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "config.json").read_text())
    return found


def flat(document: dict[str, Any]) -> dict[str, Any]:
    return {**document, **document.get("text_config", {})}


def released() -> dict[str, Any]:
    """DeepSeek-V4.1-Flash, grown from the smallest one: its schedules are ours at 40 layers."""
    module = bench("synthetic_architectures")
    growth = module.Growth(layers=40, units=384, rows=16_000_000)
    document: dict[str, Any] = module.RECIPES["deepseek_v41"].build(growth)
    document["text_config"] |= RELEASED_TEXT
    document["vision_config"] |= RELEASED_VISION
    document["image_token_id"] = 129264
    return document


def raw(out: Path, name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The stored bytes of a tensor."""
    found = header(out)
    tensor = next(tensor for tensor in found.tensors if tensor.name == name)
    path = out / found.files[tensor.file]
    return np.fromfile(path, dtype=np.uint8, count=tensor.bytes, offset=tensor.offset)


@every_architecture
def test_names_shapes_and_types_are_those_of_the_layout(
    arch: str, written: dict[str, Path]
) -> None:
    found = {
        tensor.name: (tensor.shape, tensor.type.name) for tensor in header(written[arch]).tensors
    }
    wanted = {
        name: (tensor.shape, tensor.type.name)
        for tensor in layout_of(config(written[arch]))
        for name in tensor.names()
    }

    assert found == wanted


@every_architecture
def test_the_size_is_about_the_one_asked_for(arch: str, written: dict[str, Path]) -> None:
    out = written[arch]
    on_disk = sum(file.stat().st_size for file in out.glob("*.safetensors"))

    assert header(out).tensor_bytes == pytest.approx(SCALE, rel=0.1)
    assert on_disk == pytest.approx(SCALE, rel=0.1)
    assert json.loads((out / INDEX).read_text())["metadata"]["total_size"] == (
        header(out).tensor_bytes
    )


@every_architecture
@pytest.mark.parametrize("size", [10**9, 3 * 10**9, 10**11])
def test_a_configuration_can_be_grown_to_any_size(arch: str, size: int) -> None:
    module = configs()

    document = module.grown(arch, size)

    assert module.bytes_of(document) == pytest.approx(size, rel=0.1)
    assert flat(document).get("n_routed_experts", 0) <= 384


@every_architecture
def test_the_safetensors_library_opens_every_shard(arch: str, written: dict[str, Path]) -> None:
    from safetensors import safe_open

    shards = sorted(written[arch].glob("*.safetensors"))
    names = [name for shard in shards for name in safe_open(shard, "numpy").keys()]  # noqa: SIM118 - no mapping

    assert len(shards) >= 2
    assert sorted(names) == sorted(json.loads((written[arch] / INDEX).read_text())["weight_map"])


@every_architecture
def test_the_tokenizer_names_every_id_and_gives_text_back(
    arch: str, written: dict[str, Path]
) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(written[arch])
    document = flat(config(written[arch]))
    text = "Größe 42?\n  你好, the capital 🙂"
    prompt = tokenizer.apply_chat_template(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}],
        tokenize=False,
        add_generation_prompt=True,
    )

    assert len(tokenizer) == document["vocab_size"]
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.bos_token_id == document["bos_token_id"]
    assert tokenizer.eos_token_id == document["eos_token_id"]
    assert text in prompt
    assert "Be brief." in prompt
    assert tokenizer.decode(tokenizer(prompt)["input_ids"]) == prompt


def digests(out: Path) -> dict[str, str]:
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(out.iterdir())
    }


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    first, again, other = (
        make(tmp_path / name, "--arch", "deepseek_v4", "--seed", seed)
        for name, seed in (("first", "1"), ("again", "1"), ("other", "2"))
    )

    assert digests(first) == digests(again)
    assert raw(first, "embed.weight").tobytes() != raw(other, "embed.weight").tobytes()
    assert (first / "tokenizer.json").read_bytes() == (other / "tokenizer.json").read_bytes()


def test_heavy_tails_have_the_deviation_of_the_normal_ones_and_far_more_outliers(
    tmp_path: Path, written: dict[str, Path]
) -> None:
    out = make(
        tmp_path / "tails", "--arch", "llama", "--scale", "30MB", "--seed", "7", "--heavy-tailed"
    )
    name = "model.layers.0.mlp.up_proj.weight"
    tails, normal = bf16(raw(out, name)), bf16(raw(written["llama"], name))

    assert tails.std() == pytest.approx(normal.std(), rel=0.02)
    assert kurtosis(normal) == pytest.approx(3, abs=0.1)
    assert kurtosis(tails) > 6
    assert (bf16(raw(out, "model.norm.weight")) == 1).all()
    heads = [bf16(raw(place, "lm_head.weight")) for place in (out, written["llama"])]
    assert heads[0].std() == pytest.approx(2 * heads[1].std(), rel=0.02)


def kurtosis(numbers: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    return float(np.mean(numbers**4) / numbers.var() ** 2)


def bf16(data: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return (data.view("<u2").astype("<u4") << 16).view("<f4").astype(np.float64)


def test_a_wider_model_of_a_size_has_larger_experts() -> None:
    module = configs()
    narrow, wide = (module.grown("deepseek_v41", 3 * 10**9, width) for width in (1, 8))

    assert module.bytes_of(wide) == pytest.approx(3e9, rel=0.1)
    assert flat(wide)["hidden_size"] == 2048
    assert flat(wide)["moe_intermediate_size"] == 4 * flat(narrow)["moe_intermediate_size"]


def test_a_skewed_router_picks_experts_as_often_as_plans_take_them_to_be_picked(
    tmp_path: Path,
) -> None:
    """Of scores of random inputs, as those of a router are whose rows have the length of one."""
    from localrun.plan.hits import picked

    document = configs().grown("deepseek_v41", 40_000_000)
    bench("synthetic_checkpoint").write(tmp_path / "out", document, 0, False, router_skew=1.15)
    bias = raw(tmp_path / "out", "layers.3.ffn.gate.bias").view("<f4")
    drawn = np.random.default_rng(0).standard_normal((4000, len(bias)))
    scores = np.sqrt(np.log1p(np.exp(drawn))) + bias
    used = flat(document)["num_experts_per_tok"]
    chosen = np.argsort(-scores, axis=1)[:, :used]
    often = np.sort(np.bincount(chosen.reshape(-1), minlength=len(bias)))[::-1] / len(drawn)

    assert often == pytest.approx(picked(len(bias), used, 1.15), abs=0.06)
    assert often[0] > 4 * often[len(bias) // 2]
    other = raw(tmp_path / "out", "layers.4.ffn.gate.bias").view("<f4")
    assert np.argsort(other).tolist() != np.argsort(bias).tolist()


def test_experts_differ_from_one_another(written: dict[str, Path]) -> None:
    one, two = (
        raw(written["deepseek_v4"], f"layers.1.ffn.experts.{number}.w1.weight").tobytes()
        for number in (0, 1)
    )

    assert one != two


def e4m3(codes: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """F8_E4M3 by its definition, without a table."""
    exponent, mantissa = ((codes >> 3) & 15).astype(float), (codes & 7).astype(float)
    size = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2 ** (exponent - 7))
    return np.where(codes & 128, -size, size)


@pytest.mark.parametrize(
    ("arch", "name", "columns"),
    [
        ("deepseek_v4", "layers.0.attn.wq_a", 256),
        ("deepseek_v41", "layers.1.engram.wkv", 768),
        ("deepseek_v41", "layers.1.ffn.shared_experts.w2", 128),
    ],
)
def test_block_scaled_matrices_keep_activations_at_their_size(
    arch: str, name: str, columns: int, written: dict[str, Path]
) -> None:
    block = 128 if arch == "deepseek_v4" else 32
    codes = raw(written[arch], f"{name}.weight").reshape(-1, columns)
    scales = raw(written[arch], f"{name}.scale").reshape(-(-len(codes) // block), -1)
    spread = np.repeat(np.repeat(2.0 ** (scales - 127.0), block, 0), block, 1)

    decoded = e4m3(codes) * spread[: len(codes), :columns]

    assert not np.any((codes & 127) == 127)
    assert 0.5 <= decoded.std() * columns**0.5 <= 2
    assert abs(decoded.mean()) < decoded.std() / 10


def test_float_scales_keep_activations_at_their_size(written: dict[str, Path]) -> None:
    out, name = written["deepseek_v32"], "model.layers.0.self_attn.o_proj"
    codes = raw(out, f"{name}.weight").reshape(256, 256)
    scales = raw(out, f"{name}.weight_scale_inv").view("<f4").reshape(2, 2)

    decoded = e4m3(codes) * np.repeat(np.repeat(scales, 128, 0), 128, 1)

    assert 0.5 <= decoded.std() * 16 <= 2


def test_packed_experts_keep_activations_at_their_size(written: dict[str, Path]) -> None:
    levels = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    values = np.concatenate([levels, -levels])
    out, name = written["deepseek_v41"], "layers.3.ffn.experts.2.w1"
    codes = raw(out, f"{name}.weight").reshape(128, 128)
    scales = 2.0 ** (raw(out, f"{name}.scale").reshape(128, 8) - 127.0)

    decoded = values[np.stack([codes & 15, codes >> 4], axis=2).reshape(128, 256)]
    decoded = decoded * np.repeat(scales, 32, 1)

    assert 0.5 <= decoded.std() * 16 <= 2
    assert len(np.unique(scales)) > 1


def test_norms_are_one_and_plain_matrices_finite(written: dict[str, Path]) -> None:
    norm = raw(written["llama"], "model.layers.0.input_layernorm.weight").view("<u2")
    matrix = raw(written["llama"], "model.layers.0.mlp.down_proj.weight").view("<u2")
    floats = (matrix.astype("<u4") << 16).view("<f4").reshape(256, -1)

    assert set(norm.tolist()) == {0x3F80}
    assert np.isfinite(floats).all()
    assert floats.std() * floats.shape[1] ** 0.5 == pytest.approx(1, rel=0.05)


def test_layers_that_route_by_token_give_each_token_different_experts(
    written: dict[str, Path],
) -> None:
    out = written["deepseek_v4"]
    document = config(out)
    chosen = raw(out, "layers.2.ffn.gate.tid2eid").view("<i8").reshape(-1, 4)

    assert len(chosen) == document["vocab_size"]
    assert chosen.min() >= 0
    assert chosen.max() < document["n_routed_experts"]
    assert all(len(set(row)) == 4 for row in chosen.tolist())


def test_parts_of_engram_tables_begin_at_the_primes_of_the_release() -> None:
    parts = bench("synthetic_architectures").engram_primes(released())

    assert (parts[0][0], parts[0][-1]) == (16000057, 16000463)
    assert (parts[1][0], parts[1][-1]) == (16000477, 16000889)
    assert [sum(layer) for layer in parts] == [384006168, 384016682]


def test_rows_of_a_grown_engram_table_are_the_sum_of_its_primes(
    written: dict[str, Path],
) -> None:
    document = config(written["deepseek_v41"])
    text = document["text_config"]
    parts = bench("synthetic_architectures").engram_primes(document)

    assert text["engram_num_embeddings"] == [sum(layer) for layer in parts]
    assert len({prime for layer in parts for prime in layer}) == 24
    assert min(map(min, parts)) >= text["engram_vocab_size"]


def test_tokens_alike_but_for_case_accents_and_space_are_one_class() -> None:
    from tokenizers import Tokenizer, decoders, models

    names = ["the", "The", "THE", "Ġthe", "Ġ", "Ċ", "ĠĠ", "Ã©", "e", "É", "Ã"]
    vocabulary = {name: place for place, name in enumerate(names)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.decoder = decoders.ByteLevel()

    # the four spellings; three kinds of white space; é beside e; and two halves of characters
    assert bench("synthetic_tokenizer").compressed_vocabulary(made.to_str()) == 5


def test_a_configuration_says_how_many_classes_its_tokenizer_has(
    written: dict[str, Path],
) -> None:
    out = written["deepseek_v41"]
    classes = config(out)["text_config"]["engram_compressed_vocab_size"]

    assert classes == bench("synthetic_tokenizer").compressed_vocabulary(
        (out / "tokenizer.json").read_text()
    )
    assert 500 < classes < 1024


def test_each_engram_table_has_a_shard_of_its_own(written: dict[str, Path]) -> None:
    weights: dict[str, str] = json.loads((written["deepseek_v41"] / INDEX).read_text())[
        "weight_map"
    ]
    table = {name for name, file in weights.items() if file == max(weights.values())}

    assert table == {"layers.4.engram.embed.weight", "layers.4.engram.embed.scale"}


def test_the_released_flash_of_v41_is_headers_of_its_exact_size_on_almost_no_disk(
    tmp_path: Path,
) -> None:
    given = tmp_path / "given.json"
    given.write_text(json.dumps({**released(), "_note": "not a field"}))

    out = make(tmp_path / "out", "--arch", "deepseek_v41", "--config", str(given), "--headers-only")

    shards = list(out.glob("*.safetensors"))
    found = header(out)
    assert len(found.tensors) == 96_085
    assert found.tensor_bytes == 510_286_023_000
    assert len(shards) == 48
    assert sum(shard.stat().st_size for shard in shards) > 510_286_023_000
    assert sum(file.stat().st_blocks * 512 for file in out.iterdir()) < 50_000_000
    assert "_note" not in config(out)


def test_a_given_configuration_keeps_its_widths_and_follows_the_scale_with_experts_and_rows(
    tmp_path: Path,
) -> None:
    module = configs()
    document = released()

    resized = module.resized(document, 50 * 10**9)

    assert module.bytes_of(resized) == pytest.approx(50e9, rel=0.1)
    assert resized["text_config"]["hidden_size"] == 5120
    assert resized["text_config"]["num_hidden_layers"] == 40
    assert resized["text_config"]["n_routed_experts"] < 384
    assert document["text_config"]["n_routed_experts"] == 384


def refused(capsys: pytest.CaptureFixture[str], out: Path, *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        make(out, *arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_a_place_that_holds_something_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "weights").write_text("mine")

    assert "is not empty" in refused(capsys, tmp_path, "--arch", "llama")
    assert [file.name for file in tmp_path.iterdir()] == ["weights"]


def bad_arguments(tmp_path: Path) -> Iterator[tuple[str, list[str], str]]:
    dense, other, broken = (tmp_path / name for name in ("dense", "other", "broken"))
    dense.write_text(json.dumps(configs().base("llama")))
    other.write_text(json.dumps(configs().base("qwen3_moe")))
    broken.write_text("{")
    yield "no such size", ["--arch", "llama", "--scale", "3 bananas"], "3 bananas"
    yield "too small", ["--arch", "deepseek_v41", "--scale", "1MB"], "--scale 1000000"
    yield "no experts", ["--arch", "llama", "--config", str(dense), "--scale", "1GB"], "experts"
    yield "another", ["--arch", "llama", "--config", str(other)], "no configuration of llama"
    yield "no JSON", ["--arch", "llama", "--config", str(broken)], "--config"
    yield "absent", ["--arch", "llama", "--config", str(tmp_path / "absent")], "--config"
    yield "too large", ["--arch", "llama", "--scale", "900TB"], "no llama of about that size"
    yield "unknown", ["--arch", "bert"], "invalid choice"


def test_arguments_that_cannot_be_meant_are_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for case, arguments, words in bad_arguments(tmp_path):
        out = tmp_path / "out"

        assert words in refused(capsys, out, *arguments), case
        assert not out.exists() or not list(out.iterdir()), case


def test_a_disk_without_room_is_found_out_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nearly_full(place: Path) -> SimpleNamespace:
        return SimpleNamespace(free=5_000_000)

    monkeypatch.setattr(bench("synthetic_checkpoint").shutil, "disk_usage", nearly_full)
    out = tmp_path / "out"

    words = refused(capsys, out, "--arch", "llama")

    assert "5771776 bytes are needed, 5000000 are free" in words
    assert not list(out.iterdir())


def test_a_checkpoint_that_was_not_finished_has_no_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> Iterator[bytes]:
        raise OSError("no space left")

    monkeypatch.setattr(bench("synthetic_checkpoint"), "values", full)

    with pytest.raises(OSError, match="no space left"):
        make(tmp_path / "out", "--arch", "llama")

    assert not (tmp_path / "out" / INDEX).exists()


def test_values_come_in_pieces_of_bounded_size() -> None:
    module = bench("synthetic_values")
    document = configs().grown("deepseek_v41", 10**9)
    layout = {tensor.name: tensor for tensor in layout_of(document)}
    table = layout["layers.1.engram.embed.weight"]

    pieces = module.values(table, table.name, 0, module.Given(layout))

    assert table.bytes > 10 * module.CHUNK
    assert len(next(pieces)) == len(next(pieces)) == module.CHUNK


def test_a_type_no_release_has_is_refused() -> None:
    from dataclasses import replace

    from localrun.formats.types import SAFETENSORS_TYPES

    tensor = next(iter(layout_of(configs().base("llama"))))
    odd = replace(tensor, type=SAFETENSORS_TYPES["F6_E2M3"])

    module = bench("synthetic_values")

    with pytest.raises(UsageError, match="F6_E2M3"):
        next(module.values(odd, odd.name, 0, module.Given({})))
