"""What a sequence keeps and reads, by context and KV type."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localrun.models.cache import KvType, by_layer, cache_bytes, growth, read_bytes
from localrun.models.describe import describe_config
from localrun.models.geometries import geometry, names
from localrun.models.spec import ModelSpec

SPECS = {name: describe_config(geometry(name)) for name in names()}
TYPES: tuple[KvType, ...] = ("native", "f32", "f16", "bf16", "q8_0", "q4_0")


@pytest.mark.parametrize(
    ("name", "kv_type", "expected"),
    [
        ("deepseek-v4-flash", "native", 3514.25),
        ("deepseek-v4-pro", "native", 5031.4375),
        ("deepseek-v4.1-flash", "native", 890),
        ("deepseek-v4-flash", "bf16", 6880),
        ("deepseek-v4-pro", "bf16", 9848),
        ("deepseek-v4.1-flash", "bf16", 3200),
        ("llama-3-8b", "f16", 131_072),
        ("llama-3-8b", "native", 131_072),
        ("llama-3-8b", "f32", 262_144),
        ("llama-3-8b", "q8_0", 131_072 * 17 / 32),
        ("llama-3-8b", "q4_0", 131_072 * 9 / 32),
        ("gemma-3-12b", "f16", 8 * 2 * 8 * 256 * 2),
        ("gpt-oss-120b", "f16", 18 * 2 * 8 * 64 * 2),
        ("deepseek-v3", "bf16", 61 * 576 * 2),
        ("qwen3-coder-next-80b-a3b", "f16", 12 * 2 * 2 * 256 * 2),
        ("qwen3.8-flash-next", "f16", 12 * (2 * 2 * 256 + 128) * 2),
    ],
)
def test_a_context_grows_by_so_much_a_token(name: str, kv_type: KvType, expected: float) -> None:
    assert growth(SPECS[name], kv_type) == expected


@pytest.mark.parametrize("name", ["llama-3-8b", "gemma-3-12b", "deepseek-v4-flash", "kimi-k3"])
def test_the_figure_of_the_spec_is_the_16_bit_growth(name: str) -> None:
    assert SPECS[name].kv_bytes_per_token == int(growth(SPECS[name], "f16"))


def test_windows_stop_growing() -> None:
    spec = SPECS["gemma-3-12b"]
    full, near = 8 * 2 * 8 * 256 * 2, 40 * 2 * 8 * 256 * 2

    assert cache_bytes(spec, 1000, "f16") == 1000 * (full + near)
    assert cache_bytes(spec, 100_000, "f16") == 100_000 * full + 1024 * near


def test_linear_layers_keep_a_state_whatever_the_length() -> None:
    spec = SPECS["qwen3-coder-next-80b-a3b"]
    recurrent, convolution = 32 * 128 * 128 * 4, 8192 * 3 * 4

    assert dict(spec.state_bytes)[0] == recurrent + convolution
    assert sum(size for _, size in spec.state_bytes) == 36 * (recurrent + convolution)
    assert cache_bytes(spec, 0, "f16") == 36 * (recurrent + convolution)
    assert 3 not in dict(spec.state_bytes)


def test_an_ngram_layer_keeps_its_convolution_and_the_last_tokens_too() -> None:
    states = dict(SPECS["qwen3.8-flash-next"].state_bytes)

    assert states[1] - states[0] == 3 * 3 * 4 * 2560 * 4 + 2 * 8


def test_an_index_reads_all_its_keys_and_attention_what_it_chose() -> None:
    spec = SPECS["qwen3.8-flash-next"]
    states = sum(size for _, size in spec.state_bytes)
    kv, keys = 2 * 2 * 256 * 2, 128 * 2

    assert read_bytes(spec, 100_000, "f16") - states == 12 * (2051 * kv + 100_000 * keys)
    assert read_bytes(spec, 1000, "f16") - states == 12 * 1000 * (kv + keys)


def test_a_decoded_token_reads_the_whole_plain_cache() -> None:
    spec = SPECS["llama-3-8b"]

    assert read_bytes(spec, 5000, "q8_0") == cache_bytes(spec, 5000, "q8_0")


def specs() -> st.SearchStrategy[ModelSpec]:
    return st.sampled_from(sorted(SPECS)).map(SPECS.__getitem__)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(specs(), st.sampled_from(TYPES), st.integers(0, 2**21), st.integers(0, 2**21))
def test_layers_add_up_and_more_context_never_costs_less(
    spec: ModelSpec, kv_type: KvType, first: int, second: int
) -> None:
    short, long = sorted((first, second))
    layers = by_layer(spec, short, kv_type)

    assert sum(layers.values()) == cache_bytes(spec, short, kv_type)
    assert all(0 <= layer < spec.layers for layer in layers)
    assert cache_bytes(spec, short, kv_type) <= cache_bytes(spec, long, kv_type)
    assert 0 <= read_bytes(spec, short, kv_type) <= read_bytes(spec, long, kv_type)


@pytest.mark.parametrize("name", names())
def test_every_layer_keeps_something_or_reads_another_s(name: str) -> None:
    spec = SPECS[name]
    kept = by_layer(spec, 4096, "f16")

    assert sorted(kept) == list(range(spec.layers))
    assert min(kept.values()) > 0
