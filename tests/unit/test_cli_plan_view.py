"""The picture of a plan: what stands in it at any width, and what its files never hold."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.cells import cell_len
from rich.console import Console

from localrun.cli.plan_bars import KINDS, Segment, apportion, parts_of, segments
from localrun.cli.plan_view import export, one_line, render, show
from localrun.errors import UsageError
from localrun.plan.plan import (
    Budget,
    EngramUse,
    Execution,
    Parameters,
    Placement,
    Plan,
    PlannedMachine,
    PlannedModel,
    PlannedTier,
    Prediction,
    Range,
    Shares,
    WhatIf,
)

GIB = 2**30


def execution(**changes: object) -> Execution:
    usual = Execution(
        n_ctx=32768, ubatch=512, kv_type="f16", threads=8, threads_max=16, mmap=True, gpu_layers=0
    )
    return replace(usual, **changes)


def dense() -> Plan:
    """Llama 3 8B in 4 bits, all of it on one card."""
    placed = [("embedding", 0.25), ("attention", 1.1), ("dense_ffn", 3.0), ("head", 0.4)]
    weights = sum(int(size * GIB) for _, size in placed)
    return Plan(
        model=PlannedModel(
            ref="hf:bartowski/Meta-Llama-3-8B-Instruct-GGUF:Q4_K_M",
            architecture="llama",
            total_bytes=4_920_734_272,
            tensors=291,
            layers=32,
            quantization="Q4_K_M",
            parameters=Parameters(8_030_261_248, 8_030_261_248, 0),
            shares=Shares(0.0, 0.0, 1.0),
        ),
        backend="llama.cpp",
        execution=execution(n_ctx=8192, gpu_layers=33),
        machine=PlannedMachine(
            "rtx-3060-12gb+ddr4-3200x2:32+nvme3",
            (
                PlannedTier("vram:0", 12 * GIB, 11 * GIB, 360, "specified", "RTX 3060 12GB"),
                PlannedTier("ram", 32 * GIB, 28 * GIB, 36, "assumed"),
            ),
        ),
        placements=tuple(Placement(name, "vram:0", int(size * GIB), 32) for name, size in placed),
        budgets=(
            Budget("vram:0", weights, GIB, 300 << 20, 11 * GIB, overhead=400 << 20),
            Budget("ram", 0, 0, 50 << 20, 28 * GIB),
        ),
        bytes_per_token={"vram:0": 4_650_000_000},
        prediction=Prediction(
            decode_tps=Range(48, 55, 61),
            prefill_tps=Range(1500, 1900, 2300),
            ttft_s=Range(0.9, 1.1, 1.4),
            cold=Range(48, 55, 61),
            steady=Range(48, 55, 61),
            bound_by="vram:0",
            terms_ms={"vram:0": 17.2, "sync": 1.0},
        ),
        what_if=(WhatIf("a second rtx-3060-12gb", 55), WhatIf("Q3_K_M", 66.5)),
        verdict="All of it fits the card with room for a context of 8192: 55 tokens a second.",
    )


def engram() -> Plan:
    """DeepSeek-V4.1-Flash on a 24 GB card, 128 GiB of RAM and a disk."""
    vram = [
        ("embedding", 1_323_827_200),
        ("attention", 5_070_000_000),
        ("indexer", 82_000_000),
        ("shared_experts", 1_417_000_000),
        ("router", 157_000_000),
        ("hyper_connections", 157_000_000),
        ("head", 1_323_827_200),
    ]
    on_card = sum(size for _, size in vram)
    experts, tables = 288_778_000_000, 203_073_000_000
    return Plan(
        model=PlannedModel(
            ref="hf:deepseek-ai/DeepSeek-V4.1-Flash",
            architecture="deepseek_v41",
            format="safetensors",
            total_bytes=510_286_023_000,
            tensors=96_085,
            layers=40,
            quantization="fp8 + fp4 experts",
            parameters=Parameters(748_494_684_784, 16_130_588_784, 196_613_849_600),
            shares=Shares(0.26, 0.73, 0.01),
            header_bytes_read=9_120_000,
        ),
        backend="torch",
        backend_reason="llama.cpp does not run deepseek_v41",
        execution=execution(kv_type="native", ubatch=4096, slots_per_layer=138, mmap=False),
        machine=PlannedMachine(
            "rtx-4090+ddr5-6000x2:128+nvme4",
            (
                PlannedTier("disk", 2000 * GIB, 1900 * GIB, 6.2, "assumed", "nvme4"),
                PlannedTier("ram", 128 * GIB, 118 * GIB, 67, "specified", "DDR5-6000 x2"),
                PlannedTier("vram:0", 24 * GIB, int(22.5 * GIB), 1008, "specified", "RTX 4090"),
            ),
        ),
        placements=(
            *(Placement(name, "vram:0", size, 40) for name, size in vram),
            Placement("experts", "disk", experts, 384 * 40),
            Placement("experts", "ram", 103_800_000_000, 5521),
            Placement("experts", "vram:0", 8_500_000_000, 452),
            Placement("engram", "disk", tables, 2),
        ),
        budgets=(
            Budget("disk", experts + tables, 0, 0, 1900 * GIB),
            Budget("ram", 0, 0, 2 * GIB, 118 * GIB, expert_cache=103_800_000_000, overhead=GIB),
            Budget(
                "vram:0",
                on_card,
                32_000_000,
                2 * GIB,
                int(22.5 * GIB),
                expert_cache=8_500_000_000,
                overhead=600 << 20,
            ),
        ),
        bytes_per_token={"vram:0": 9_100_000_000, "ram": 1_900_000_000, "disk": 2_012_000_000},
        engram=EngramUse("disk", 48, 12_672, 96),
        prediction=Prediction(
            decode_tps=Range(1.6, 2.4, 3.7),
            prefill_tps=Range(110, 160, 210),
            ttft_s=Range(9.8, 12.8, 18.6),
            cold=Range(1.2, 1.5, 1.9),
            steady=Range(2.0, 2.9, 3.7),
            bound_by="disk",
            terms_ms={
                "vram:0 weights": 9.4,
                "vram:0 launches": 2.0,
                "ram weights": 37.1,
                "handover": 8.0,
                "n-gram rows": 0.4,
                "disk": 352.0,
                "hidden behind computing": -30.5,
            },
        ),
        warnings=("decode varies with the topic: experts are read from disk on a miss",),
        what_if=(
            WhatIf("64 GiB more RAM", 3.4),
            WhatIf("a PCIe 5 SSD", 3.6),
            WhatIf("a second rtx-4090", 2.6),
            WhatIf("a 2-bit quantization of the experts", 6.1),
            WhatIf("context 8192 instead of 32768", 2.4),
        ),
        verdict="It runs from disk at about 2.4 tokens a second; the disk binds, Engram costs "
        "nothing where it lies.",
    )


def unified() -> Plan:
    """Qwen3-30B-A3B in 4 bits on a Mac."""
    weights = 18_600_000_000
    return Plan(
        model=PlannedModel(
            ref="local:qwen/qwen3-30b",
            architecture="qwen3_moe",
            total_bytes=weights,
            tensors=579,
            layers=48,
            quantization="Q4_K_M",
            parameters=Parameters(30_532_122_624, 3_041_867_776, 0),
            shares=Shares(0.0, 0.95, 0.05),
        ),
        backend="mlx",
        execution=execution(gpu_layers=49),
        machine=PlannedMachine(
            "m4-max-64",
            (PlannedTier("unified", 64 * GIB, 48 * GIB, 546, "specified", "M4 Max"),),
        ),
        placements=(
            Placement("attention", "unified", 1_600_000_000, 48),
            Placement("experts", "unified", 17_000_000_000, 6144),
        ),
        budgets=(Budget("unified", weights, 3 * GIB, GIB, 48 * GIB),),
        bytes_per_token={"unified": 2_100_000_000},
        prediction=Prediction(
            decode_tps=Range(75, 90, 104), bound_by="unified", terms_ms={"unified": 9.0}
        ),
        verdict="All of it fits the unified memory.",
    )


def refusal() -> Plan:
    """Llama 3 70B where nothing near it fits."""
    return Plan(
        model=PlannedModel("hf:org/llama-3-70b:Q4_K_M", "llama", total_bytes=42_500_000_000),
        backend="llama.cpp",
        execution=execution(gpu_layers=12),
        machine=PlannedMachine(
            "rtx-3060-12gb+ddr4-3200x2:16+nvme3",
            (PlannedTier("vram:0", 12 * GIB, 11 * GIB, 360, "specified"),),
        ),
        fits=False,
        placements=(Placement("attention", "ram", 4 * GIB, 80),),
        budgets=(
            Budget("vram:0", 9 * GIB, GIB, GIB, 11 * GIB),
            Budget("ram", 30 * GIB, 2 * GIB, 0, 13 * GIB),
        ),
        verdict="It needs 19 GiB more RAM; the nearest that fits is Q2_K with a context of 4096.",
    )


PLANS: dict[str, Callable[[], Plan]] = {
    "dense": dense,
    "engram": engram,
    "unified": unified,
    "refusal": refusal,
}
every_plan = pytest.mark.parametrize("plan", [make() for make in PLANS.values()], ids=PLANS)


def drawn(plan: Plan, width: int = 80, **options: object) -> str:
    """The picture as text."""
    stream = io.StringIO()
    settings: dict[str, object] = {"color_system": None, "force_terminal": True} | options
    Console(file=stream, width=width, legacy_windows=False, **settings).print(render(plan))
    return stream.getvalue()


def bars(picture: str) -> list[str]:
    return [line for line in picture.splitlines() if line.startswith("│")]


@every_plan
@pytest.mark.parametrize("width", [60, 80, 120])
def test_every_line_keeps_within_the_width_and_every_bar_fills_it(plan: Plan, width: int) -> None:
    picture = drawn(plan, width)

    assert max(cell_len(line) for line in picture.splitlines()) <= width
    assert [cell_len(bar) for bar in bars(picture)] == [width] * len(plan.budgets)


def test_a_wider_terminal_gets_no_wider_picture() -> None:
    assert drawn(engram(), 300) == drawn(engram(), 120)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_picture_says_what_the_plan_says(width: int) -> None:
    words = " ".join(drawn(engram(), width).split())

    for fact in (
        "hf:deepseek-ai/DeepSeek-V4.1-Flash",
        "rtx-4090+ddr5-6000x2:128+nvme4",
        "510.3 GB",
        "96,085 tensors",
        "748 B parameters",
        "16.1 B active a token",
        "RTX 4090 1008 GB/s specified",
        "6.2 GB/s assumed",
        "of 22.5 GiB (24.0 GiB in all)",
        "15,360 experts 268.9 GiB",
        "Engram 189.1 GiB",
        "5,521 cached experts 96.7 GiB",
        "disk 2.0 GB 352 ms",
        "weights 9.4 ms · launches 2.0 ms",
        "hidden behind computing -30.5 ms",
        "Engram: 48 rows, 12,672 B in 96 reads a token from disk",
        "2048 tokens in, 512 out",
        "decode 2.4 tokens/s 1.6–3.7",
        "cold 1.5 tokens/s 1.2–1.9",
        "steady 2.9 tokens/s 2.0–3.7",
        "prefill 160 tokens/s 110–210",
        "first token 12.8 s 9.8–18.6",
        "bound by disk, 86% of the work on a token",
        "a PCIe 5 SSD 3.6 tokens/s +50%",
        "! decode varies with the topic",
        "FITS It runs from disk at about 2.4 tokens a second;",
    ):
        assert fact in words, fact


@pytest.mark.parametrize(("runs", "said"), [(1, "as one run of it"), (7, "as 7 runs of it")])
def test_what_a_prediction_owes_to_earlier_runs_is_said(runs: int, said: str) -> None:
    plan = engram()
    corrected = replace(plan, prediction=replace(plan.prediction, runs=runs))

    assert f"{said} on this machine showed" in drawn(corrected)
    assert "on this machine showed" not in drawn(plan)


def test_tiers_stand_in_the_order_of_their_speed() -> None:
    picture = drawn(engram())

    assert picture.index("\nvram:0") < picture.index("\nram ") < picture.index("\ndisk ")


def test_cold_and_steady_are_left_out_where_nothing_is_cached() -> None:
    assert "steady" not in drawn(dense())


def test_what_was_not_predicted_is_not_printed() -> None:
    bare = Plan(PlannedModel("m", "llama"), "llama.cpp", execution())

    picture = drawn(bare)

    assert "tokens/s" not in picture
    assert "parameters" not in picture
    assert "tokens/s" not in one_line(bare)


def test_a_refusal_names_what_each_tier_lacks_and_marks_its_limit() -> None:
    picture = drawn(refusal())

    assert "DOES NOT FIT  It needs 19 GiB more RAM; the nearest that fits is Q2_K" in picture
    assert "ram is 19.0 GiB short: 32.0 GiB are needed, 13.0 GiB may be taken" in picture
    assert "▲ 19.0 GiB more than the limit of 13.0 GiB" in picture
    assert "vram:0 is" not in picture
    assert "does not fit" in one_line(refusal())


@every_plan
def test_no_escape_reaches_a_terminal_that_wants_no_colour(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes the stream for a terminal
    monkeypatch.setenv("COLUMNS", "80")

    show(plan)

    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert printed == drawn(plan, 80)


@every_plan
def test_colour_adds_nothing_to_the_text(plan: Plan) -> None:
    coloured = drawn(plan, color_system="truecolor")

    assert "\x1b[" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == drawn(plan)


def test_a_terminal_without_unicode_gets_letters() -> None:
    class Plain(io.StringIO):
        encoding = "ascii"

    stream = Plain()
    Console(file=stream, width=80, color_system=None, force_terminal=True).print(render(engram()))
    picture = stream.getvalue()

    assert picture.isascii()
    assert "|EEEEEEEEEEENNNNNNNN" in picture
    assert "E 15,360 experts 268.9 GiB" in picture


def test_names_of_strangers_bring_no_control_characters_and_break_no_line() -> None:
    evil = "hf:org/\x1b]52;c;aGk=\x07[red]name\u202e\r\n模型" + "模型" * 40
    plan = engram()
    plan = replace(
        plan,
        model=replace(plan.model, ref=evil, architecture=evil),
        verdict=evil,
        warnings=(evil,),
        what_if=(WhatIf(evil, 2.0),),
    )

    picture = drawn(plan)

    assert not set(picture + one_line(plan)) & {"\x1b", "\x07", "\u202e", "\r"}
    assert "\n" not in one_line(plan)
    assert "[red]name" in picture
    assert max(cell_len(line) for line in picture.splitlines()) <= 80


def test_one_line_says_memory_speed_and_what_binds() -> None:
    assert one_line(engram()) == (
        "hf:deepseek-ai/DeepSeek-V4.1-Flash fp8 + fp4 experts · torch · "
        "vram:0 19.4 GiB of 22.5 GiB · ram 99.7 GiB of 118.0 GiB · disk 458.1 GiB of 1900 GiB · "
        "context 32768 · 2.4 tokens/s predicted (1.6–3.7), bound by disk"
    )


def test_a_quantization_that_the_reference_names_is_said_once() -> None:
    assert one_line(dense()).count("Q4_K_M") == 1


@every_plan
def test_the_parts_of_a_tier_add_up_to_its_budget(plan: Plan) -> None:
    for budget in plan.budgets:
        parts = parts_of(budget, plan.placements)

        assert sum(part.bytes for part in parts) == budget.total


def test_cached_experts_are_counted_once() -> None:
    budget = Budget("ram", 30, 0, 0, 100, expert_cache=20)
    placed = [Placement("attention", "ram", 30, 1), Placement("experts", "ram", 20, 4)]

    parts = parts_of(budget, placed)

    assert [(part.kind.name, part.bytes, part.count) for part in parts] == [
        ("attention", 30, 0),
        ("cached experts", 20, 4),
    ]


def test_layers_of_one_kind_are_one_part() -> None:
    budget = Budget("ram", 30, 0, 0, 100)
    placed = [Placement("experts[0]", "ram", 10, 4), Placement("experts[1]", "ram", 20, 4)]

    (part,) = parts_of(budget, placed)

    assert (part.kind.name, part.bytes, part.count) == ("experts", 30, 8)


@pytest.mark.parametrize(
    ("amounts", "cells", "expected"),
    [
        ([1, 1], 10, [5, 5]),
        ([1, 0, 999], 10, [1, 0, 9]),
        ([0, 0], 10, [0, 0]),
        ([1, 1, 1], 10, [4, 3, 3]),
        ([10**12, 1, 1, 1], 6, [3, 1, 1, 1]),
    ],
)
def test_cells_are_whole_and_leave_out_nothing_that_is_there(
    amounts: list[int], cells: int, expected: list[int]
) -> None:
    assert apportion(amounts, cells) == expected


def test_a_tier_over_its_limit_has_no_free_cell() -> None:
    budget = Budget("ram", 30, 0, 0, 10)

    assert segments(parts_of(budget, ()), 10, 40) == (Segment(KINDS["weights"], 40),)


def test_letters_and_patterns_tell_kinds_apart_without_colour() -> None:
    for marks in ("letter", "pattern"):
        assert len({getattr(kind, marks) for kind in KINDS.values()}) == len(KINDS)


@every_plan
def test_an_exported_svg_is_well_formed_and_loads_nothing(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "plan.svg"

    export(plan, path)

    text = path.read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    shown = "".join(root.itertext()).replace("\xa0", " ")
    assert re.findall(r"https?:[^\"' )]*", text) == ["http://www.w3.org/2000/svg"]
    assert not re.search(r"@import|@font-face|url\((?!#)|href|<script", text)
    assert plan.budgets[0].tier in shown
    assert ("DOES NOT FIT" in shown) is not plan.fits


@every_plan
def test_an_exported_page_stands_alone(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "plan.html"

    export(plan, path)

    text = path.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>")
    assert not re.search(r"https?:|@import|@font-face|url\(|href|src=|<script", text)
    assert plan.budgets[0].tier in text


def test_markup_of_strangers_is_text_in_both_files(tmp_path: Path) -> None:
    plan = replace(dense(), verdict="<script>alert(1)</script>")

    for name in ("plan.svg", "plan.html"):
        export(plan, tmp_path / name)
        assert "<script" not in (tmp_path / name).read_text(encoding="utf-8")


def test_a_file_is_in_colour_whatever_the_terminal_wants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")

    export(engram(), tmp_path / "plan.svg")

    assert KINDS["experts"].colour in (tmp_path / "plan.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["plan.png", "plan", "plan.svg.gz", "absent/plan.svg", "d.html"])
def test_a_file_that_cannot_be_written_is_refused_by_the_flag(tmp_path: Path, name: str) -> None:
    (tmp_path / "d.html").mkdir()

    with pytest.raises(UsageError, match=r"--output .*" + re.escape(name)):
        export(engram(), tmp_path / name)

    assert [path.name for path in tmp_path.iterdir()] == ["d.html"]


def test_an_existing_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "plan.html"
    path.write_text("what was there before")

    export(engram(), path)

    assert "what was there before" not in path.read_text(encoding="utf-8")
    assert [each.name for each in tmp_path.iterdir()] == ["plan.html"]
