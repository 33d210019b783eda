"""What runs taught: ratios and counts, bounded and private; a damaged file costs nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localrun.hardware.machine import Compute, Speed
from localrun.hardware.measurements import Key
from localrun.learned import files, histograms, residuals
from localrun.learned.files import MOST_FILES
from localrun.learned.histograms import ENOUGH_TOKENS, MOST_PICKS, Histogram, added
from localrun.learned.identity import Identity, Kind, identity_of, kind_of
from localrun.learned.residuals import MOST_RUNS, Ratios, Runs, ratios, residual
from localrun.plan.plan import (
    Budget,
    Execution,
    PlannedMachine,
    PlannedModel,
    PlannedTier,
    PlanRequest,
)
from tests.planned import machine_of
from tests.plans import bare_plan

ROOT = Path(__file__).parents[2]
MODEL = Identity("hf:org/Model:Q4_K_M", 1 << 40, "Q4_K_M")
MACHINE = Key("AMD Ryzen 9", 32, 64, ("NVIDIA GeForce RTX 4090",), "580.65", "llama.cpp 0.3.36")
KIND = Kind("torch", "fast", 16, True, ("disk measured", "ram measured"), "0123")
PLAIN = Execution(512, 512, "f16", 1, 1, False, 0)
measured = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=5)
counts = st.lists(st.integers(0, MOST_PICKS), min_size=1, max_size=12)
picked = st.dictionaries(st.integers(0, 60), counts.map(tuple), max_size=6)


def remembered(folder: Path, *pairs: tuple[float, float], **other: object) -> None:
    place = {"model": MODEL, "machine": MACHINE, "kind": KIND} | other
    for decode, prefill in pairs:
        residuals.add(folder, decode=even(decode), prefill=even(prefill), **place)  # type: ignore[arg-type]


def even(ratio: float) -> Ratios:
    """Of a run whose repetitions all took the same time."""
    return (ratio, ratio, ratio)


def of(decode: Sequence[float], prefill: Sequence[float]) -> Runs:
    return Runs(tuple(map(even, decode)), tuple(map(even, prefill)))


def known(folder: Path, model: Identity = MODEL, machine: Key = MACHINE, kind: Kind = KIND) -> Runs:
    found = residuals.load(folder, model, machine)
    assert found.note == ""
    return found.of(kind)


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix == ".json")


# --- ratios ---------------------------------------------------------------------------------------


def test_a_run_is_found_again_by_its_model_its_machine_and_its_kind(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "learned"
    remembered(folder, (1.2, 0.9), (1.3, 0.8))

    assert known(folder) == of((1.2, 1.3), (0.9, 0.8))
    for other in (
        {"model": replace(MODEL, ref="hf:org/model:Q4_K_M")},
        {"model": replace(MODEL, total_bytes=1)},
        {"model": replace(MODEL, quantization="Q8_0")},
        {"machine": replace(MACHINE, driver="590.1")},
        {"kind": replace(KIND, backend="mlx")},
        {"kind": replace(KIND, numerics="reference")},
        {"kind": replace(KIND, threads=8)},
        {"kind": replace(KIND, streams=False)},
        {"kind": replace(KIND, tiers=("ram measured",))},
    ):
        assert known(folder, **other) == Runs()  # type: ignore[arg-type]
        remembered(folder, (2.0, 2.0), **other)
        assert known(folder, **other) == of((2.0,), (2.0,))  # type: ignore[arg-type]
    assert known(folder) == of((1.2, 1.3), (0.9, 0.8))


def test_only_the_last_runs_and_the_last_kinds_are_kept(tmp_path: Path) -> None:
    remembered(tmp_path, *((float(at), 1.0) for at in range(1, MOST_RUNS + 6)))
    assert known(tmp_path).decode == tuple(even(float(at)) for at in range(6, MOST_RUNS + 6))

    others = [replace(KIND, threads=threads) for threads in range(100, 170)]
    for other in others:
        remembered(tmp_path, (2.0, 2.0), kind=other)

    assert known(tmp_path) == known(tmp_path, kind=others[0]) == Runs()
    assert known(tmp_path, kind=others[-1]) == of((2.0,), (2.0,))


def test_the_middle_counts_and_the_later_half_says_how_sure_it_is() -> None:
    assert residual([]) is None
    first = residual([even(1.25)])
    assert first is not None
    assert (first.ratio, first.spread, first.count) == (1.25, 0.0, 1)
    # The first run was on a cold disk: it moves neither.
    settled = residual([even(9.0), even(1.0), even(1.0), even(1.1)])
    assert settled is not None
    assert settled.ratio == pytest.approx(1.05)
    assert settled.spread == pytest.approx(0.05)
    uneven = residual([ratios(20.0, [10.0, 8.0, 16.0])])
    assert uneven is not None
    assert (uneven.ratio, uneven.spread) == (2.0, pytest.approx(0.6))


def test_of_a_few_runs_that_disagree_the_band_holds_all() -> None:
    for runs in ([3.0, 1.0], [1.0, 3.0], [1.0, 1.0, 3.0]):
        told = residual([even(each) for each in runs])
        assert told is not None
        for each in runs:
            assert told.ratio / (1 + told.spread) <= each <= told.ratio * (1 + told.spread)


@given(st.lists(measured, min_size=1, max_size=MOST_RUNS))
def test_the_band_of_what_is_learned_holds_the_later_half(runs: list[list[float]]) -> None:
    told = residual([ratios(1.0, each) for each in runs])

    assert told is not None
    assert told.count == len(runs)
    for tps in (tps for each in runs[len(runs) // 2 :] for tps in each):
        assert told.ratio / (1 + told.spread) <= 1 / tps * (1 + 1e-9)
        assert 1 / tps <= told.ratio * (1 + told.spread) * (1 + 1e-9)


@pytest.mark.parametrize("ratio", [0.0, -1.0, float("nan"), float("inf")])
def test_what_is_no_ratio_is_never_written(tmp_path: Path, ratio: float) -> None:
    remembered(tmp_path, (1.0, 1.0))
    for pair in ((ratio, 1.0), (1.0, ratio)):
        with pytest.raises(ValueError, match="no ratios"):
            remembered(tmp_path, pair)

    assert known(tmp_path) == of((1.0,), (1.0,))


def test_a_kind_of_plan_names_the_tiers_that_hold_something_and_what_their_speed_rests_on() -> None:
    tiers = [PlannedTier(name, 1, 1, 1.0, basis) for name, basis in
             (("vram:0", "measured"), ("ram", "specified"), ("disk", "assumed"))]  # fmt: skip
    told = Execution(512, 512, "f16", 7, 8, False, 0, numerics="fast", streams=True)
    plan = replace(
        bare_plan(told, backend="torch"),
        machine=PlannedMachine(tiers=tuple(tiers)),
        budgets=(
            Budget("ram", 5, 0, 0, 9),
            Budget("vram:0", 0, 0, 0, 9),
            Budget("disk", 1, 0, 0, 9),
        ),
    )

    machine = machine_of("cpu:16+ddr5-6000x2:64+nvme4")
    found = kind_of(plan, machine)
    tiers_used = "disk assumed", "ram specified"
    assert found == Kind("torch", "fast", 7, True, tiers_used, found.figures)


def test_what_was_learned_of_other_figures_is_not_of_this_kind() -> None:
    machine, plan = machine_of("cpu:16+ddr5-6000x2:64+nvme4"), bare_plan(PLAIN)
    again = replace(machine, compute=Compute(16, gemv={"Q8_0": Speed(9.0, "measured")}))
    told = replace(plan, request=PlanRequest(disk_read=10**9))

    kinds = [kind_of(plan, machine), kind_of(plan, again), kind_of(told, machine)]
    assert len(set(kinds)) == 3
    assert kind_of(plan, replace(machine)) == kinds[0]


# --- counts ---------------------------------------------------------------------------------------


@given(picked, picked)
def test_counts_of_runs_add_up(
    first: dict[int, Sequence[int]], then: dict[int, Sequence[int]]
) -> None:
    both = added(added({}, first), then)

    assert both.keys() == first.keys() | then.keys()
    for layer, counts in both.items():
        assert sum(counts) <= MOST_PICKS
        known, new = first.get(layer, ()), then.get(layer, ())
        whole = new or known
        if len(known) == len(new):
            whole = [old + more for old, more in zip(known, new, strict=True)]
        if sum(known) <= MOST_PICKS and sum(whole) <= MOST_PICKS:
            assert counts == tuple(whole)


@given(picked, st.integers(1, 8))
def test_shares_fall_and_sum_to_the_experts_used(
    layers: dict[int, tuple[int, ...]], used: int
) -> None:
    shares = Histogram(layers).shares(used)

    enough = [counts for counts in layers.values() if sum(counts) >= ENOUGH_TOKENS * used]
    assert bool(shares) == bool(enough)
    assert list(shares) == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(used if enough else 0)
    assert len(shares) == max(map(len, enough), default=0)


def test_the_order_of_experts_does_not_matter_and_layers_with_few_tokens_do_not_count() -> None:
    many, few = (0, 30_000, 10_000, 20_000), (1, 0, 0, 0)

    assert Histogram({0: many, 1: many[::-1], 7: few}).shares(2) == (1.0, 2 / 3, 1 / 3, 0.0)
    assert Histogram({0: many}).shares(13) == ()
    assert Histogram({}).shares(2) == Histogram({0: ()}).shares(0) == ()


def test_the_latest_texts_outweigh_old_ones() -> None:
    old, new = (MOST_PICKS, 0), (0, MOST_PICKS)
    known = added({}, {0: old})
    for _ in range(3):
        known = added(known, {0: new})

    assert known[0][1] > 5 * known[0][0]
    assert sum(known[0]) <= MOST_PICKS


def test_a_layer_that_has_other_experts_now_begins_anew() -> None:
    assert added({0: (5, 5)}, {0: (1, 2, 3)}) == {0: (1, 2, 3)}


def test_a_histogram_is_found_again_by_its_model(tmp_path: Path) -> None:
    histograms.add(tmp_path, MODEL, {3: (1, 2), 60: (0, 0)})
    histograms.add(tmp_path, MODEL, {3: (1, 0)})

    assert histograms.load(tmp_path, MODEL) == Histogram({3: (2, 2), 60: (0, 0)})
    assert histograms.load(tmp_path, replace(MODEL, quantization="Q8_0")) == Histogram({})


# --- files ----------------------------------------------------------------------------------------


def test_files_and_their_folders_are_their_owners_alone_and_nothing_is_left_beside(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "data" / "learned"
    old = os.umask(0)
    try:
        remembered(folder, (1.0, 1.0))
        histograms.add(folder, MODEL, {0: (1, 2)})
    finally:
        os.umask(old)

    assert [path.name.partition(".")[2] for path in files_of(folder)] == ["picks.json", "runs.json"]
    assert {path.name for path in folder.iterdir()} == {path.name for path in files_of(folder)} | {
        ".lock"
    }
    for path in (*folder.iterdir(), folder, folder.parent):
        assert path.stat().st_mode & 0o077 == 0, path


def test_without_files_nothing_is_known_and_nothing_said_or_made(tmp_path: Path) -> None:
    folder = tmp_path / "learned"

    assert known(folder) == Runs()
    assert histograms.load(folder, MODEL) == Histogram({})
    assert not folder.exists()


def entry(**changes: object) -> str:
    """A whole file of one run, in which one field was changed."""
    key = {"cpu": "c", "cores": 1, "memory_gib": 1, "gpus": [], "driver": "", "library": ""}
    kind = {"backend": "b", "numerics": "", "threads": 1, "streams": False, "tiers": []}
    kind["figures"] = ""
    runs = {"decode": [[1.0] * 3], "prefill": [[1.0] * 3]} | changes
    model = {"ref": MODEL.ref, "total_bytes": MODEL.total_bytes, "quantization": "Q4_K_M"}
    entries = [{"machine": key, "kind": kind, "runs": runs}]
    return json.dumps({"version": 1, "model": model, "entries": entries})


def layers(counts: object) -> str:
    model = {"ref": MODEL.ref, "total_bytes": MODEL.total_bytes, "quantization": "Q4_K_M"}
    return json.dumps({"version": 1, "model": model, "layers": counts})


DAMAGED = {
    "empty": ("", "Invalid JSON"),
    "cut": ('{"version": 1, "mod', "Invalid JSON"),
    "no text": ("\x00\x01", "Invalid JSON"),
    "a list": ("[]", "an object"),
    "deep": ("[" * 100_000, "Invalid JSON"),
    "a field too much": (entry(texts=["hello"]), "texts: "),
    "a word for a ratio": (entry(decode=[["slow", 1.0, 1.0]]), "decode.0.0: "),
    "no ratio": (entry(decode=[[0.0, 1.0, 1.0]]), "no ratios"),
    "not a number": (entry(prefill=[[1.0, float("nan"), 2.0]]), "no ratios"),
    "in disorder": (entry(decode=[[1.0, 3.0, 2.0]]), "1.0, 3.0, 2.0 are no ratios"),
    "half a run": (entry(decode=[[1.0, 2.0]]), "decode.0.2: "),
    "a layer that is none": (layers({"first": [1]}), "layers.first"),
    "fewer than none": (layers({"0": [4, -1]}), "layer 0 was picked -1 times"),
    "half a pick": (layers({"0": [0.5]}), "layers.0.0: "),
    "too long": (" " * (files.LARGEST_FILE + 1), "more than "),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_left_out_with_a_note_and_written_anew(tmp_path: Path, case: str) -> None:
    text, said = DAMAGED[case]
    remembered(tmp_path, (1.0, 1.0))
    histograms.add(tmp_path, MODEL, {0: (1, 2)})
    for path in files_of(tmp_path):
        path.write_text(text)

    ratios, counts = residuals.load(tmp_path, MODEL, MACHINE), histograms.load(tmp_path, MODEL)
    notes = [ratios.note, counts.note]

    assert any(said in note for note in notes), notes
    assert all(str(tmp_path) in note and "left out" in note for note in notes if note)
    assert ratios.by_kind == ()
    assert counts.layers == {}
    remembered(tmp_path, (3.0, 3.0))
    histograms.add(tmp_path, MODEL, {0: (5, 5)})
    assert known(tmp_path) == of((3.0,), (3.0,))
    assert histograms.load(tmp_path, MODEL) == Histogram({0: (5, 5)})


def test_a_file_of_another_version_or_another_model_is_not_believed(tmp_path: Path) -> None:
    remembered(tmp_path, (1.0, 1.0))
    (path,) = files_of(tmp_path)
    path.write_text(path.read_text().replace('"version": 1', '"version": 2'))
    assert "version 2" in residuals.load(tmp_path, MODEL, MACHINE).note

    other = replace(MODEL, ref="hf:org/other:Q4_K_M")
    remembered(tmp_path, (1.0, 1.0), model=other)
    (tmp_path / f"{other.stem}.runs.json").rename(path)
    assert residuals.load(tmp_path, MODEL, MACHINE).by_kind == ()


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="nobody is refused")
def test_a_folder_that_cannot_be_written_is_said_by_the_system(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match=str(tmp_path)):
        remembered(tmp_path / "learned", (1.0, 1.0))


def test_a_full_disk_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remembered(tmp_path, (1.0, 1.0))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        remembered(tmp_path, (2.0, 2.0))
    monkeypatch.undo()

    assert known(tmp_path) == of((1.0,), (1.0,))
    assert len(files_of(tmp_path)) == len([*tmp_path.iterdir()]) - 1


def test_the_folder_keeps_the_models_that_were_used_last(tmp_path: Path) -> None:
    for at in range(MOST_FILES + 3):
        path = tmp_path / f"model-{at:04}.runs.json"
        path.touch()
        os.utime(path, (at, at))

    remembered(tmp_path, (1.0, 1.0))

    held = files_of(tmp_path)
    assert len(held) == MOST_FILES
    assert not (tmp_path / "model-0000.runs.json").exists()
    assert known(tmp_path) == of((1.0,), (1.0,))


ADDS = """
import sys
from pathlib import Path
from localrun.learned import histograms
from localrun.learned.identity import Identity
for _ in range(25):
    histograms.add(Path(sys.argv[1]), Identity("m", 1, "Q"), {0: (1, 0, 2)})
"""


def test_two_processes_that_end_at_once_lose_no_count(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", ADDS, str(tmp_path)], cwd=ROOT) for _ in range(2)
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0]

    assert histograms.load(tmp_path, Identity("m", 1, "Q")).layers == {0: (50, 0, 100)}


def test_a_process_that_never_gives_way_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import filelock

    monkeypatch.setattr(files, "LOCK_S", 0.05)
    with filelock.FileLock(tmp_path / ".lock"), pytest.raises(OSError, match="another process"):
        remembered(tmp_path, (1.0, 1.0))


@pytest.mark.parametrize("ref", ["/a/../b\n", "x" * 5000, "", "größe", "\udcff.gguf"])
def test_whatever_a_model_is_called_its_files_lie_in_the_folder(tmp_path: Path, ref: str) -> None:
    model = identity_of(PlannedModel(ref, "llama", total_bytes=5))
    folder = tmp_path / "learned"

    remembered(folder, (1.5, 1.5), model=model)

    assert known(folder, model=model) == of((1.5,), (1.5,))
    assert [path.parent for path in files_of(tmp_path / "learned")] == [folder]
    assert [*tmp_path.iterdir()] == [folder]
