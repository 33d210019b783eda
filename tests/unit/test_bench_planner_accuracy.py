"""The planner's accuracy: rows in, errors out, and nothing of an answer in a prediction."""

from __future__ import annotations

import csv
import json
import re
import sys
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from localrun.errors import UsageError
from localrun.plan.constants import BANDS, FITTED

BENCH = str(Path(__file__).parents[2] / "bench")
COLUMNS = (
    "id", "model_key", "model", "quant", "file_size_gb", "bits_per_weight_experts", "engine",
    "engine_date", "machine_kind", "gpu_key", "gpu_count", "vram_gb", "ram_gb",
    "ram_gbps_theoretical", "ram_gbps_measured", "cpu", "cpu_cores", "disk_gbps", "placement",
    "placement_value", "placement_unit", "expert_cache_gb", "hit_rate", "engram_placement",
    "n_ctx", "n_depth", "ubatch", "speculative", "batch", "prefill_tps", "decode_tps",
    "vram_used_gb", "confidence", "trap", "source_url", "notes",
)  # fmt: skip


def bench(name: str) -> Any:
    if BENCH not in sys.path:
        sys.path.append(BENCH)
    return import_module(name)


def row(id: str, **said: object) -> dict[str, str]:
    """A run of Llama-3-8B on one card, with what is ``said`` otherwise."""
    usual = {
        "id": id,
        "model_key": "llama-3-8b",
        "quant": "Q4_K_M",
        "engine": "llama.cpp",
        "machine_kind": "gpu",
        "gpu_key": "rtx-3090",
        "gpu_count": 1,
        "placement": "all_gpu",
        "n_ctx": 4096,
        "n_depth": 0,
        "batch": "single",
        "speculative": "none",
        "decode_tps": 100,
        "trap": "no",
        "source_url": "https://example.org/runs",
    }
    return {name: str((usual | said).get(name, "")) for name in COLUMNS}


HOST = {"ram_gb": 64, "ram_gbps_theoretical": 89.6, "cpu": "Ryzen 7 9700X", "cpu_cores": 8}
CPU = {"machine_kind": "cpu", "gpu_key": "none", "placement": "cpu", **HOST}
MAC = {"machine_kind": "unified", "gpu_key": "m4-max-40c", "ram_gb": 128, "placement": "resident"}
ONE, OTHER = "https://example.org/a", "https://github.com/someone/else/issues/7"
# Speeds invented, near enough to be possible.
GOOD = (
    row("g1", decode_tps=120, prefill_tps=4000, source_url=ONE),
    row("g2", quant="F16", decode_tps=46, source_url=OTHER),
    row("u1", **MAC, decode_tps=70, prefill_tps=700, source_url=ONE),
    row("u2", **MAC, model_key="gpt-oss-20b", quant="MXFP4", decode_tps=90, source_url=OTHER),
    row(
        "h1",
        **HOST,
        machine_kind="hybrid",
        model_key="qwen3-30b-a3b",
        gpu_key="rtx-3060-12gb",
        placement="ncmoe",
        placement_value=30,
        placement_unit="layers",
        decode_tps=40,
        source_url=OTHER,
    ),
    row("c1", **CPU, decode_tps=12, source_url=OTHER),
    row(
        "s1",
        **{**CPU, "placement": "streaming", "ram_gb": 96},
        model_key="glm-5.2",
        quant="int4",
        file_size_gb=370,
        engine="colibri",
        disk_gbps=6.5,
        decode_tps=0.4,
        source_url=ONE,
    ),
    row(
        "e1",
        **{**MAC, "placement": "streaming"},
        model_key="deepseek-v4.1-flash",
        quant="q2-mixed",
        file_size_gb=366,
        engine="ds4",
        engram_placement="disk_sync",
        decode_tps=12,
        source_url=ONE,
    ),
)
# Runs that went wrong for a reason: what a warning has to speak of.
TRAPS = {
    "more than the card, the rest on the CPU": (
        {**HOST, "model_key": "mistral-small-24b", "gpu_key": "rtx-4070", "machine_kind": "hybrid"}
        | {"placement": "layer_split_cpu"},
        "stay with the CPU",
    ),
    "nearly all layers on the CPU": (
        {**HOST, "model_key": "llama-3-70b", "machine_kind": "hybrid", "placement": "ngl"}
        | {"placement_value": 6, "placement_unit": "layers"},
        "larger than the GPU's memory",
    ),
    "a file larger than memory, mapped": (
        {**HOST, "model_key": "gpt-oss-120b", "quant": "MXFP4", "machine_kind": "hybrid"}
        | {"placement": "ncmoe", "placement_value": 27, "file_size_gb": 66},
        "mapped, they page",
    ),
    "a cache that memory cannot hold": (
        {**MAC, "model_key": "glm-5.2", "quant": "int4", "engine": "colibri", "file_size_gb": 370}
        | {"placement": "streaming", "expert_cache_gb": 120},
        "does not fit",
    ),
    "a card beside a disk that sets the pace": (
        {**HOST, "model_key": "glm-5.2", "quant": "int4", "engine": "colibri", "file_size_gb": 370}
        | {"machine_kind": "hybrid", "placement": "streaming", "disk_gbps": 3.5},
        "a faster GPU would not",
    ),
    "weights beyond all cards": (
        {"model_key": "llama-3-70b", "quant": "F16", "gpu_count": 2, "machine_kind": "multi_gpu"},
        "does not fit",
    ),
    "a slow unified pool that is too small": (
        {**MAC, "gpu_key": "m4", "ram_gb": 16, "model_key": "qwen3-32b"},
        "does not fit",
    ),
    "a host of unknown speed": (
        {"model_key": "qwen3-30b-a3b", "machine_kind": "hybrid", "placement": "experts_cpu"}
        | {"gpu_key": "rtx-3060-12gb"},
        "is assumed",
    ),
}
BAD = {
    "nothing measured": ({"decode_tps": ""}, "nothing was measured"),
    "a prompt of unknown length alone": (
        {"decode_tps": "", "prefill_tps": 500, "n_depth": ""},
        "length of the prompt",
    ),
    "no model": ({"model_key": ""}, "no geometry is known"),
    "an unknown model": ({"model_key": "gpt-7-ultra"}, "no geometry is called 'gpt-7-ultra'"),
    "a model that is a path": ({"model_key": "../../etc/passwd"}, "no geometry is called"),
    "an unknown engine": ({"engine": "magic"}, "engine 'magic' has no traits"),
    "no engine": ({"engine": ""}, "engine '' has no traits"),
    "an unknown quant": ({"quant": "wizardry"}, "states neither bits nor size"),
    "no quant": ({"quant": ""}, "states neither bits nor size"),
    "an unknown GPU": ({"gpu_key": "rtx-9999"}, "no part is called 'rtx-9999'"),
    "no GPU": ({"gpu_key": ""}, "the GPU is not stated"),
    "several kinds of GPU": ({"gpu_key": "rtx-3090+rtx-3060-12gb"}, "each kind of GPU"),
    "a thousand GPUs": ({"gpu_count": 1000}, "gpu_count"),
    "a Mac where a card is meant": ({"gpu_key": "m4-max-40c"}, "no part is called"),
    "a card where a Mac is meant": ({**MAC, "gpu_key": "rtx-3090"}, "no part is called"),
    "a Mac of unknown memory": ({**MAC, "ram_gb": ""}, "memory is not stated"),
    "streaming into unknown memory": (
        {**CPU, "placement": "streaming", "ram_gb": ""},
        "memory is not stated",
    ),
    "many at once": ({"batch": "throughput"}, "batch is throughput"),
    "drafts": ({"speculative": "mtp"}, "speculative decoding (mtp)"),
    "a word for a number": ({"n_ctx": "4k"}, "n_ctx: '4k' is no number"),
    "a speed that is none": ({"decode_tps": "n/a"}, "decode_tps: 'n/a'"),
    "not a number": ({"ram_gb": "nan"}, "ram_gb: 'nan'"),
    "infinity": ({"file_size_gb": "inf"}, "file_size_gb: 'inf'"),
    "less than nothing": ({"n_depth": -5}, "n_depth: '-5'"),
    "a context beyond all": ({"n_ctx": 10**12}, "n_ctx"),
    "a figure beyond all": ({"expert_cache_gb": "1e400"}, "expert_cache_gb"),
    "experts that the model has not": (
        {"placement": "ncmoe", "placement_value": 3, "placement_unit": "layers"},
        "no routed experts",
    ),
    "tables that the model has not": ({"engram_placement": "ram"}, "no n-gram tables"),
    "more than the card holds": ({"model_key": "llama-3-70b"}, "does not fit: vram:0 lacks"),
    "a host of unknown speed": (
        {"machine_kind": "hybrid", "placement": "ngl", "placement_value": 4},
        "neither RAM speed nor CPU is stated",
    ),
}


def planned(*lines: dict[str, str]) -> Any:
    return bench("planner_accuracy").sorted_out(lines)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "runs.csv"
    traps = [row(name, **said, trap="yes") for name, (said, _) in TRAPS.items()]
    bad = [row(name, **said) for name, (said, _) in BAD.items()]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows([*GOOD, *traps, *bad])
    return path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["planner_accuracy.py", *map(str, arguments)])
    bench("planner_accuracy").main()


@pytest.mark.parametrize("name", BAD)
def test_a_row_that_cannot_be_planned_is_skipped_with_the_reason(name: str) -> None:
    said, reason = BAD[name]
    found = planned(row(name, **said))

    assert (found.cases, found.traps) == ([], [])
    assert found.skipped[0][0] == name
    assert reason in found.skipped[0][1]


@pytest.mark.parametrize("name", TRAPS)
def test_a_trap_draws_a_warning_and_counts_in_no_error(name: str) -> None:
    said, warned = TRAPS[name]
    found = planned(row(name, **said, trap="yes"))

    assert (found.cases, found.skipped) == ([], [])
    assert any(warned in line for line in found.traps[0][1])


@pytest.mark.parametrize("good", GOOD, ids=lambda good: good["id"])
def test_a_run_is_the_same_whatever_was_measured_or_noted(good: dict[str, str]) -> None:
    runs = bench("published_runs")
    blank = {name: text for name, text in good.items() if name in runs.INPUTS}
    other = good | {name: "1" for name in COLUMNS if name not in runs.INPUTS}

    assert runs.read(good) == runs.read(blank) == runs.read(other)
    assert not set(runs.INPUTS) & {*runs.MEASURED, "id", "notes", "trap", "confidence", "model"}


def test_a_prediction_is_the_same_whatever_was_measured() -> None:
    slow = [good | {"decode_tps": "0.5"} for good in GOOD]

    fast, other = (
        [case.predicted(FITTED) for case in planned(*each).cases] for each in (GOOD, slow)
    )

    assert fast == other
    assert len(fast) == len(GOOD)


def test_every_class_is_told_by_where_the_bytes_lie() -> None:
    assert [case.run.kind for case in planned(*GOOD).cases] == [
        "all-gpu", "all-gpu", "unified", "unified", "hybrid", "cpu", "streaming", "engram",
    ]  # fmt: skip


def test_columns_that_a_table_leaves_out_are_empty(tmp_path: Path) -> None:
    path = tmp_path / "short.csv"
    path.write_text(
        "\ufeffid,model_key,engine,quant,machine_kind,gpu_key,placement,decode_tps\n"
        "x,llama-3-8b,llama.cpp,Q4_K_M,gpu,rtx-3090,all_gpu,100,more,than,the,header\n"
        "y,llama-3-8b\n",
        encoding="utf-8",
    )

    found = planned(*bench("published_runs").rows(path))

    assert [case.id for case in found.cases] == ["x"]
    assert [id for id, _ in found.skipped] == ["y"]


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "\x00\x01"], ids=["empty", "another", "binary"])
def test_a_file_that_is_no_such_table_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.csv"
    path.write_text(text)

    with pytest.raises(UsageError, match=r"--runs .*other\.csv"):
        bench("published_runs").rows(path)


def test_a_file_that_is_not_there_ends_the_script_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, "--runs", tmp_path / "none.csv")

    assert ended.value.code == 2
    assert "none.csv" in capsys.readouterr().err


def test_json_has_errors_by_class_the_skipped_rows_and_the_traps(
    table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "--runs", table, "--json", "--quick")
    found = json.loads(capsys.readouterr().out)

    assert list(found["classes"]) == ["all-gpu", "unified", "hybrid", "cpu", "streaming", "engram"]
    for speeds in found["classes"].values():
        assert set(speeds) == {"decode", "prefill"}
        for values in speeds.values():
            assert {"count", "median_abs_error", "p90_abs_error", "bias"} <= set(values)
    counts = {kind: speeds["decode"]["count"] for kind, speeds in found["classes"].items()}
    assert counts == {
        "all-gpu": 2, "unified": 2, "hybrid": 1, "cpu": 1, "streaming": 1, "engram": 1,
    }  # fmt: skip
    assert found["classes"]["cpu"]["prefill"]["median_abs_error"] is None
    assert {each["id"] for each in found["skipped"]} == set(BAD)
    assert all(each["reason"] for each in found["skipped"])
    assert all(each["warnings"] for each in found["traps"])
    assert len(found["rows"]) == 8 + 2


def test_text_says_the_same_and_the_plot_is_written(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "--runs", table, "--quick", "--plot", tmp_path / "plot.svg")
    printed = capsys.readouterr().out

    assert printed.count("skipped ") == len(BAD)
    assert printed.count("trap ") == len(TRAPS)
    assert "NO WARNING" not in printed
    assert printed.count(" predicted ") == 10
    assert ElementTree.parse(tmp_path / "plot.svg").getroot().tag.endswith("svg")


def test_errors_are_fractions_of_what_was_measured() -> None:
    accuracy = bench("planner_accuracy")
    (case,) = planned(GOOD[0]).cases
    decode, prefill = case.predicted(FITTED)
    told = GOOD[0] | {"decode_tps": str(decode / 1.1), "prefill_tps": str(prefill / 0.75)}

    found = accuracy.document(planned(told), None)["classes"]["all-gpu"]

    assert found["decode"]["bias"] == found["decode"]["median_abs_error"] == 0.1
    assert (found["prefill"]["bias"], found["prefill"]["p90_abs_error"]) == (-0.25, 0.25)


def test_statistics_are_those_of_the_signed_errors() -> None:
    found = bench("planner_accuracy")._statistics([0.1, -0.3, 0.2, -0.4, 0.5], [0.2, -0.6])

    assert found == {
        "count": 5,
        "median_abs_error": 0.3,
        "p80_abs_error": 0.4,
        "p90_abs_error": 0.5,
        "bias": 0.02,
        "left_out_median_abs_error": 0.4,
    }


def test_a_source_is_predicted_without_what_it_measured() -> None:
    fit = bench("planner_fit")
    lines = [good for good in GOOD if good["id"] in ("g1", "g2", "u1", "u2", "c1")]
    wrong = [
        line | {"decode_tps": str(float(line["decode_tps"]) * 3)}
        if line["source_url"] == ONE
        else line
        for line in lines
    ]

    def predictions(said: list[dict[str, str]]) -> dict[str, float]:
        cases = planned(*said).cases
        found = fit.left_out(cases, lambda _: None).decode
        return {
            case.id: case.decode * (1 + found[case.id])
            for case in cases
            if case.run.source == "example.org"
        }

    assert predictions(lines) == pytest.approx(predictions(wrong))
    assert set(predictions(lines)) == {"g1", "u1"}


def test_a_fit_is_nearer_to_the_rows_and_within_what_is_physical() -> None:
    fit = bench("planner_fit")
    cases = planned(*GOOD).cases
    found = fit.fitted(cases)

    assert fit.loss(cases, found) < fit.loss(cases, fit.KNOWN)
    assert all(getattr(found, name) <= most for name, most in fit._MOST.items())
    assert len(fields(FITTED)) == 12


def test_every_class_has_a_band() -> None:
    assert set(BANDS) == set(bench("planner_accuracy").CLASSES)
    assert all(0.05 <= band <= 1 for band in BANDS.values())


QUANTS = {
    # Bits a weight of the experts of Qwen3-30B-A3B.
    "Q4_K_M": (4.5, 5.3),
    "UD-Q4_K_XL": (4.5, 5.3),
    "Q4": (4.5, 5.3),
    "Q3_K_XL": (3.4, 4.6),
    "UD-IQ2_XXS": (2.0, 2.7),
    "i1-IQ3_M": (3.3, 4.0),
    "IQ4_XS": (4.2, 4.9),
    "Q8_0": (8.5, 8.5),
    "Q8_K_XL": (8.5, 8.5),
    "fp16": (16.0, 16.0),
    "BF16": (16.0, 16.0),
    "4bit": (4.5, 4.5),
    "8bit-affine": (8.5, 8.5),
    "mlx-6bit": (6.5, 6.5),
    "4-bit DWQ": (4.5, 4.5),
    "2bit-mlx-reap": (2.5, 2.5),
    "AWQ": (4.0, 4.3),
    "GPTQ-Int4": (4.0, 4.3),
    "w4a16": (4.0, 4.3),
    "FP8": (8.0, 8.0),
    "NVFP4": (4.5, 4.5),
    "EXL2 4.25bpw": (4.25, 4.25),
    "exl3-3.0bpw": (3.0, 3.0),
    "IQ3_KS": (3.19, 3.19),
    "IQ2_KS_R4": (2.19, 2.19),
    "VQ3": (2.8, 2.8),
}


def bits(spec: Any, kind: str) -> float:
    size = sum(group.bytes for group in spec.of(kind))
    return float(8 * size / sum(group.parameters for group in spec.of(kind)))


@pytest.mark.parametrize("name", QUANTS)
def test_a_name_of_a_quantization_tells_its_bits(name: str) -> None:
    low, high = QUANTS[name]
    spec = bench("published_weights").weights("qwen3-30b-a3b", name, None, None)

    assert low - 0.01 <= bits(spec, "experts") <= high + 0.01
    assert bits(spec, "attention") >= bits(spec, "experts") - 0.6


@pytest.mark.parametrize("name", [*(name for name in QUANTS if "reap" not in name), "wizardry", ""])
def test_a_stated_size_is_the_models_size(name: str) -> None:
    spec = bench("published_weights").weights("qwen3-30b-a3b", name, 19.0, None)

    assert spec.tensor_bytes == sum(group.bytes for group in spec.groups)
    assert spec.tensor_bytes == pytest.approx(19e9, rel=0.02)


def test_stated_bits_hold_for_experts_and_the_size_gives_the_rest() -> None:
    find = bench("published_weights").weights
    spec = find("qwen3-30b-a3b", "homemade", 12.0, 3.0)

    assert bits(spec, "experts") == pytest.approx(3.0, rel=0.01)
    assert spec.tensor_bytes == pytest.approx(12.0e9, rel=0.01)


def test_pruned_experts_are_fewer_and_a_token_reads_as_many_bytes() -> None:
    find = bench("published_weights").weights
    whole = find("qwen3-30b-a3b", "4bit", None, None)
    pruned = find("qwen3-30b-a3b", "4bit-reap", 10.0, None)

    assert pruned.tensor_bytes == pytest.approx(10e9, rel=0.02)
    assert pruned.of("experts")[0].experts.count < whole.of("experts")[0].experts.count == 128
    assert [group.active_bytes for group in pruned.groups] == [
        group.active_bytes for group in whole.groups
    ]


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("llama.cpp b9000", "llama.cpp"),
        ("llama-server", "llama.cpp"),
        ("Ollama", "ollama"),
        ("LM Studio", "lmstudio"),
        ("ExLlamaV2", "exllama"),
        ("mlx-lm", "mlx-lm"),
        ("vLLM", "vllm"),
        ("SGLang", "sglang"),
        ("ik_llama.cpp", "ik_llama.cpp"),
    ],
)
def test_engines_are_known_by_the_names_they_are_given(said: str, name: str) -> None:
    assert bench("published_runs").read(row("x", engine=said)).engine.name == name


def test_what_streams_from_an_engine_without_slots_goes_through_the_page_cache() -> None:
    streamed = row(
        "x",
        **{**CPU, "placement": "streaming"},
        model_key="deepseek-v3",
        file_size_gb=404,
    )
    (case,) = planned(streamed).cases

    assert case.run.kind == "streaming"
    assert case.run.engine.streams == "pages"
    assert case.solution.assignment.streams


def straight(mark: ElementTree.Element) -> bool:
    """Whether its first side runs along an axis."""
    numbers = [
        float(text) for text in re.findall(r"[0-9.]+", mark.get("points") or mark.get("d") or "")
    ]
    return len(numbers) > 3 and (numbers[0] == numbers[2] or numbers[1] == numbers[3])


def test_the_plot_marks_every_figure_once_and_each_class_by_a_shape_of_its_own() -> None:
    drawing = bench("accuracy_plot")
    kinds = bench("planner_accuracy").CLASSES
    points = [drawing.Point(f"<{kind}>", kind, "decode", 10.0, 10.0) for kind in kinds]
    points.append(drawing.Point("p", "cpu", "prefill", 100.0, 50.0))

    root = ElementTree.fromstring(drawing.plot(points))
    svg = "{http://www.w3.org/2000/svg}"
    marks = [group for group in root.iter(f"{svg}g") if group.find(f"{svg}title") is not None]
    shapes = {
        (
            mark[1].tag,
            len((mark[1].get("points") or mark[1].get("d") or "").split()),
            straight(mark[1]),
        )
        for mark in marks[: len(kinds)]
    }

    assert [mark.find(f"{svg}title").text.split()[0] for mark in marks] == [  # type: ignore[union-attr]  # found above
        *(f"<{kind}>" for kind in kinds),
        "p",
    ]
    assert len(shapes) == len(kinds)
    (circle,) = (mark[1] for mark in marks if mark[1].tag == f"{svg}circle")
    assert float(circle.get("cx") or 0) + float(circle.get("cy") or 0) == drawing._SIDE


def test_a_plot_of_nothing_is_an_empty_frame() -> None:
    root = ElementTree.fromstring(bench("accuracy_plot").plot([]))

    assert root.tag.endswith("svg")
