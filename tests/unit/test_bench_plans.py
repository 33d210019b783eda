"""The table of plans: bytes a token by a second arithmetic, written here from published geometry.

Nothing below asks localrun what a model holds. Shapes are those of the models' papers and
configurations, bytes those of the formats' blocks, in plain products.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

BENCH = str(Path(__file__).parents[2] / "bench")
# The prompt of the planner's default workload: what a decoded token finds in the cache.
DEPTH = 2048
# Between mixed work and one long session (planner's documented skews 0.9 and 1.3).
SKEW = 1.15
# Bytes a weight.
BF16, F32, HALF = 2, 4, 2
FP8_128 = 1 + 1 / 128**2  # one scale byte for a block of 128 x 128
FP8_32 = 1 + 1 / 32**2
MXFP4 = 17 / 32  # 32 weights of 4 bits and one scale byte
Q4_K, Q5_0, Q5_K, Q6_K = 144 / 256, 22 / 32, 176 / 256, 210 / 256
ROW = 256 + 8  # of an n-gram table: FP8 and a scale byte for every 32


def bench(name: str) -> Any:
    if BENCH not in sys.path:
        sys.path.append(BENCH)
    return import_module(name)


@cache
def table() -> tuple[Any, ...]:
    return tuple(bench("plans").rows())


def q4_k_m(layer: int, layers: int) -> float:
    """Bytes a weight of values and down projections: six bits in the first and the last eighth of
    the layers, and in every third between."""
    first, last = layers // 8, 7 * layers // 8
    more = layer < first or layer >= last or (layer - first) % 3 == 2
    return Q6_K if more else Q4_K


def v4(layers: int, hidden: int, q_rank: int, mixing: int, fp8: float) -> float:
    """Projections of attention, shared expert, router and hyper-connections of V4's layers."""
    width, out = 64 * 512, 8 * 1024
    attention = hidden * q_rank + hidden * 512 + q_rank * width + out * hidden
    # What multiplies groups of heads is unpacked; two sides of 24 mixing rows over four streams.
    return layers * (attention * fp8 + width * 1024 * BF16 + 2 * mixing * 4 * hidden * F32)


def v41_flash() -> tuple[float, float]:
    """Bytes a token without n-gram rows, and those of them that are routed experts."""
    layers, hidden, expert = 40, 5120, 3 * 5120 * 2304
    routed = layers * 6 * expert * MXFP4
    dense = v4(layers, hidden, 1280, 24, FP8_32)
    dense += layers * (expert * FP8_32 + 384 * hidden * F32)
    dense += (4 + 3) * 512 * hidden * F32  # compressors of layers 2, 8, 14, 20
    dense += 8 * (64 * 64 * 1280 * FP8_32 + 32 * hidden * BF16)  # indexers
    dense += 2 * 25600 * 6144 * FP8_32  # keys and values of the two n-gram layers
    dense += 129280 * hidden * BF16
    windows = layers * 128 * 528
    # 38 layers attend to 512 compressed rows; 3 and 5 layers score one key in 2 and one a token.
    rows = 38 * 512 * 288 + (3 * DEPTH // 2 + 5 * DEPTH) * 68
    return routed + dense + windows + rows, routed


def v4_flash() -> tuple[float, float]:
    layers, hidden, expert = 43, 4096, 3 * 4096 * 2048
    routed = layers * 6 * expert * MXFP4
    dense = v4(layers, hidden, 1024, 24, FP8_128)
    dense += layers * (expert * FP8_128 + 256 * hidden * F32)
    # 21 layers compress 4 tokens and index them, 20 compress 128.
    dense += 21 * (2 * 1024 * hidden * F32 + 2 * 256 * hidden * F32)
    dense += 21 * (64 * 128 * 1024 * FP8_128 + 64 * hidden * BF16)
    dense += 20 * 2 * 512 * hidden * F32
    dense += 129280 * hidden * BF16
    rows = layers * 128 * 584 + 21 * (DEPTH // 4) * (584 + 68) + 20 * (DEPTH // 128) * 584
    # What a group of tokens has gathered so far, values and gates in 32 bits.
    tails = 21 * (8 * 1024 + 8 * 256) * 2 * F32 + 20 * 128 * 512 * 2 * F32
    return routed + dense + rows + tails, routed


def v3() -> tuple[float, float]:
    layers, hidden, heads = 61, 7168, 128
    attention = hidden * 1536 + 1536 * heads * 192 + hidden * 576 + heads * 128 * hidden
    keys, values = heads * 128 * 512 * Q5_0, 512 * heads * 128 * Q4_K  # 128 is half a block of Q4_K
    dense = layers * (attention * Q4_K + keys + values) + 129280 * hidden * Q6_K
    routed = 0.0
    for layer in range(layers):
        down = q4_k_m(layer, layers)
        if layer < 3:
            dense += hidden * 18432 * (2 * Q4_K + down)
            continue
        expert = hidden * 2048 * (2 * Q4_K + down)
        routed += 8 * expert
        dense += expert + 256 * hidden * F32
    return routed + dense + layers * DEPTH * 576 * HALF, routed


def gpt_oss() -> tuple[float, float]:
    layers, hidden = 36, 2880
    routed = layers * 4 * (3 * hidden * hidden * MXFP4 + 3 * hidden * BF16)
    attention = 2 * hidden * 64 * 64 + 2 * hidden * 8 * 64
    dense = layers * (attention + 128 * hidden) * BF16 + 201088 * hidden * BF16
    return routed + dense + 18 * (DEPTH + 128) * 2 * 8 * 64 * HALF, routed


def qwen3() -> tuple[float, float]:
    layers, hidden = 48, 2048
    dense, routed = 151936 * hidden * Q6_K, 0.0
    for layer in range(layers):
        down = q4_k_m(layer, layers)
        routed += 8 * hidden * 768 * (2 * Q4_K + down)
        dense += hidden * (2 * 32 + 4) * 128 * Q4_K + hidden * 4 * 128 * down
        dense += 128 * hidden * F32
    return routed + dense + layers * DEPTH * 2 * 4 * 128 * HALF, routed


def llama3() -> tuple[float, float]:
    layers, hidden, kv = 80, 8192, 8 * 128
    dense = 128256 * hidden * Q6_K
    for layer in range(layers):
        down = q4_k_m(layer, layers)
        values = Q6_K if down == Q6_K else Q5_K
        dense += hidden * (2 * hidden + kv) * Q4_K + hidden * kv * values
        dense += hidden * 28672 * (2 * Q4_K + down)
    return dense + layers * DEPTH * 2 * kv * HALF, 0.0


# Bytes a token, those of routed experts, experts of a layer and picked ones, what may be off.
ARITHMETIC: dict[str, tuple[Callable[[], tuple[float, float]], int, int, float]] = {
    "DeepSeek-V4.1-Flash": (v41_flash, 384, 6, 0.001),
    "DeepSeek-V4-Flash-0731": (v4_flash, 256, 6, 0.001),
    "DeepSeek-V3-671B Q4_K_M": (v3, 256, 8, 0.01),
    "gpt-oss-120b MXFP4": (gpt_oss, 128, 4, 0.001),
    "Qwen3-30B-A3B Q4_K_M": (qwen3, 128, 8, 0.01),
    "Llama-3-70B Q4_K_M": (llama3, 0, 0, 0.01),
}


def missed(slots: int, experts: int, picked: int) -> float:
    """The share of picks that an LRU of ``slots`` does not hold, by Che's approximation: a token's
    picks are drawn by rank to the minus ``SKEW`` until there are enough, which is a product of
    chances not to be drawn; the number of draws and the time are found by halving."""
    if not 0 < slots < experts:
        return 0.0
    weights = [rank**-SKEW for rank in range(1, experts + 1)]
    few, many = 0.0, 1e9
    for _ in range(200):
        draws = (few + many) / 2
        distinct = sum(1 - math.exp(-draws * weight) for weight in weights)
        few, many = (draws, many) if distinct < picked else (few, draws)
    odds = [1 - math.exp(-few * weight) for weight in weights]
    low, high = 0.0, 1e9
    for _ in range(200):
        time = (low + high) / 2
        held = sum(1 - (1 - pick) ** time for pick in odds)
        low, high = (time, high) if held < slots else (low, time)
    return sum(pick * (1 - pick) ** low for pick in odds) / picked


def fitting() -> list[Any]:
    return [row for row in table() if row.plan is not None]


def named(row: Any) -> str:
    return f"{row.model} on {row.machine}"


def the(model: str, machine: str) -> Any:
    return next(row for row in table() if (row.model, row.machine) == (model, machine))


def test_the_table_has_six_models_on_five_machines_a_mac_and_a_plain_cpu_among_them() -> None:
    models, machines = ({getattr(row, key) for row in table()} for key in ("model", "machine"))

    assert models == set(ARITHMETIC)
    assert len(table()) == len(models) * len(machines) == 30
    assert {"m4-max-128", "cpu:16+ddr5-5600x2:64+nvme4"} < machines


@pytest.mark.parametrize("model", ARITHMETIC)
def test_bytes_a_token_in_memory_are_those_of_a_second_arithmetic(model: str) -> None:
    arithmetic, _, _, tolerance = ARITHMETIC[model]
    expected, _ = arithmetic()
    found = {
        row.machine: sum(size for tier, size in row.plan.bytes_per_token.items() if tier != "disk")
        for row in fitting()
        if row.model == model
    }

    assert len(found) >= 4
    assert found == pytest.approx(dict.fromkeys(found, expected), rel=tolerance)


@pytest.mark.parametrize("model", ARITHMETIC)
def test_bytes_a_token_from_disk_are_n_gram_rows_and_what_the_cache_misses(model: str) -> None:
    arithmetic, experts, picked, tolerance = ARITHMETIC[model]
    _, routed = arithmetic()
    rows = 48 * ROW if "V4.1" in model else 0
    found, expected = {}, {}
    for row in fitting():
        if row.model == model:
            share = missed(row.plan.execution.slots_per_layer, experts, picked)
            found[row.machine] = row.plan.bytes_per_token.get("disk", 0)
            # A read is a page, and two as often as it has bytes to go over an edge.
            pages = row.plan.engram.reads_per_token * (4096 - 1) if rows else 0
            expected[row.machine] = rows + pages + share * routed

    assert found == pytest.approx(expected, rel=tolerance, abs=1)


def test_the_flagship_has_tables_on_disk_dense_weights_on_the_card_and_its_experts_split() -> None:
    made = the("DeepSeek-V4.1-Flash", "rtx-4090+ddr5-6000x2:128+nvme4").plan
    tiers: dict[str, set[str]] = {}
    for placement in made.placements:
        tiers.setdefault(placement.group, set()).add(placement.tier)

    assert made.model.total_bytes == 510_286_023_000
    assert made.model.tensors == 96_085
    assert (made.engram.tier, made.engram.rows_per_token, made.engram.bytes_per_token) == (
        "disk",
        48,
        12_672,
    )
    assert tiers["engram"] == {"disk"}
    assert tiers["attention"] == tiers["shared_experts"] == tiers["head"] == {"vram:0"}
    assert tiers["experts"] == {"vram:0", "ram", "disk"}
    assert made.prediction.bound_by == "disk"
    assert 0 < made.prediction.decode_tps.low < made.prediction.decode_tps.mid
    assert made.prediction.decode_tps.mid < made.prediction.decode_tps.high


def test_the_smaller_release_reproduces_its_published_bytes() -> None:
    made = the("DeepSeek-V4-Flash-0731", "m4-max-128").plan

    assert (made.model.tensors, made.model.total_bytes) == (72_317, 166_878_536_440)


@pytest.mark.parametrize("row", fitting(), ids=named)
def test_no_tier_is_planned_beyond_its_limit(row: Any) -> None:
    assert row.plan.budgets
    for budget in row.plan.budgets:
        assert 0 <= budget.total <= budget.limit


def test_llama_cpp_refuses_what_memory_cannot_hold_and_slots_are_planned_instead() -> None:
    rows = [row for row in table() if row.model == "DeepSeek-V3-671B Q4_K_M"]

    for row in rows:
        (shortfall,) = row.shortfalls["llama.cpp"].values()
        assert shortfall > 100e9
        assert row.plan.backend == "torch"
        assert row.plan.execution.slots_per_layer > 8


def test_what_does_not_fit_says_what_it_lacks() -> None:
    row = the("gpt-oss-120b MXFP4", "cpu:16+ddr5-5600x2:64+nvme4")
    experts = 36 * 128 * (3 * 2880 * 2880 * MXFP4 + 3 * 2880 * BF16)
    attention = 36 * (2 * 2880 * 64 * 64 + 2 * 2880 * 8 * 64) * BF16
    files = experts + attention + 2 * 201088 * 2880 * BF16
    usable = 60 * 2**30  # all but 4 GiB

    assert row.plan is None
    # Beside the files a cache and buffers of the smallest context: a few hundred megabytes.
    assert files - usable < row.shortfalls["llama.cpp"]["ram"] < files - usable + 0.5e9


def test_the_table_prints_and_its_json_is_one_document(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = bench("plans")
    monkeypatch.setattr(module, "rows", lambda: iter(table()))
    monkeypatch.setattr(sys, "argv", ["plans.py", "--json"])
    module.main()
    document = json.loads(capsys.readouterr().out)
    monkeypatch.setattr(sys, "argv", ["plans.py"])
    module.main()
    printed = capsys.readouterr().out

    assert len(document) == 30
    assert {row["fits"] for row in document} == {True, False}
    for row in document:
        assert row["model"] in printed
        if row["fits"]:
            assert row["decode_tps"]["low"] <= row["decode_tps"]["mid"] <= row["decode_tps"]["high"]
            assert row["bytes_per_token"]
            assert row["bound_by"]
        else:
            assert row["shortfalls"]
    assert printed.count("does not fit") == 6
