"""Commands over a runner that counts: what they print of it, what they remember, and when not."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from localrun.backends import registry
from localrun.chat.messages import Message, ReplyOptions
from localrun.cli.app import execute
from localrun.cli.beside import Beside
from localrun.cli.doctor import _learned
from localrun.cli.exit_lines import Watched
from localrun.config import Settings, settings
from localrun.plan.plan import PlanRequest
from tests.counting_loader import HELD, LOADER, NOTE
from tests.engine_child import importable

__all__ = ["importable"]
PROMPT = "Where do the rivers of this country end?"
Command = Callable[..., tuple[str, str]]


@pytest.fixture
def command(
    home: Path,
    smollm2_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Command:
    """Run a command on a model whose runner counts; what it wrote to stdout and stderr."""
    request.getfixturevalue("importable")
    monkeypatch.setattr(registry, "loader", lambda name: LOADER)
    monkeypatch.setattr(sys, "stdin", None)  # nothing is piped in

    def run(name: str, *arguments: str) -> tuple[str, str]:
        code = execute([name, str(smollm2_path), *arguments])
        said = capfd.readouterr()
        assert code == 0, said.err
        return said.out, said.err

    return run


def learned() -> dict[str, str]:
    """What is remembered, by kind of file."""
    folder = settings().data / "learned"
    files = [*folder.glob("*.json")] if folder.exists() else []
    return {path.name.split(".")[-2]: path.read_text() for path in files}


FEW = ("-p", "12", "-n", "8", "-r", "2")


def measured(command: Command, *arguments: str) -> Any:
    return json.loads(command("bench", *FEW, "--json", *arguments)[0])


# --- bench ----------------------------------------------------------------------------------------


def test_bench_tells_each_term_of_a_token_predicted_and_measured(command: Command) -> None:
    document = measured(command, "--no-learn")

    prefill, decode = document["tests"]
    assert "terms" not in prefill
    found = {each["term"]: each for each in decode["terms"]}
    assert all(each.keys() == {"term", "predicted_ms", "measured_ms", "predicted_bytes",
                               "measured_bytes"} for each in found.values())  # fmt: skip
    for term, (time, size) in {
        "ram dense": (1.0, 1000),
        "ram experts": (2.0, 500),
        "disk": (3.0, 700),
    }.items():
        assert found[term]["measured_ms"] == pytest.approx(time)
        assert found[term]["measured_bytes"] == size
    assert found["ram dense"]["predicted_ms"] > 0
    assert found["ram dense"]["predicted_bytes"] > 0
    assert found["disk"]["predicted_ms"] is None
    assert found["step"]["measured_ms"] == pytest.approx(decode["measured_ms"]["step"])
    shares = {each["tier"]: each["share"] for each in decode["experts"]}
    assert shares == pytest.approx(dict.fromkeys(("vram:0", "ram", "disk"), 1 / 3))
    assert decode["read_ahead"] == {"experts": 2.0, "needed": 1.0}
    memory = {each["tier"]: each for each in document["memory"]}
    assert {tier: each["measured"] for tier, each in memory.items()} == HELD
    assert memory["ram"]["planned"] > 0


def test_bench_says_the_same_in_words_and_what_the_runner_noted(command: Command) -> None:
    out, err = command("bench", *FEW, "--no-learn")

    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert any(line.startswith("ram dense 1.00 ms, ") and "1.0 KB, " in line for line in lines)
    assert "disk 3.00 ms, nothing predicted; 700 B, nothing predicted" in lines
    assert "of 3.0 experts a token: 33.3% in vram:0, 33.3% in ram, 33.3% in disk" in lines
    assert "read ahead 2.0 experts a token, 50% of them needed" in lines
    assert any(line.startswith("vram:0 3.1 MB held") for line in lines)
    assert err.count(NOTE) == 1


def test_a_second_bench_is_planned_by_what_the_first_one_measured(command: Command) -> None:
    first = measured(command)
    second = measured(command)
    third = measured(command, "--no-learn")

    for before, after, bare in zip(first["tests"], second["tests"], third["tests"], strict=True):
        told, now = before["predicted_tps"], after["predicted_tps"]
        assert now["mid"] == pytest.approx(before["tps"], rel=1e-3)
        assert now["low"] < before["tps"] < now["high"]
        assert now["high"] / now["low"] <= told["high"] / told["low"] * (1 + 1e-3)
        assert bare["predicted_tps"] == told
    assert learned().keys() == {"runs"}
    [entry] = json.loads(learned()["runs"])["entries"]
    # Both against what was predicted before anything was learned.
    for at, document in enumerate((first, second)):
        test = document["tests"][1]
        bare_mid = first["tests"][1]["predicted_tps"]["mid"]
        assert entry["runs"]["decode"][at][1] == pytest.approx(bare_mid / test["tps"], rel=1e-3)


def test_a_run_whose_cache_shrank_teaches_nothing(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATER", "1")
    _, err = command("bench", *FEW)

    assert NOTE in err
    assert learned() == {}


def test_a_plan_is_made_with_what_was_learned_but_not_for_another_machine(command: Command) -> None:
    there = ("--machine", "cpu:8+ddr5-5600x2:64+nvme4", "--json", "--ctx", "512")
    here = ("--json", "--ctx", "512", "--workload", "12:8")

    def speed(*arguments: str) -> Any:
        return json.loads(command("plan", *arguments)[0])["prediction"]["decode_tps"]

    bare, elsewhere = speed(*here), speed(*there)
    measured(command)

    assert speed(*here) != bare
    assert speed(*here, "--no-learn") == bare
    assert speed(*there) == elsewhere


def test_a_saved_plan_is_measured_and_nothing_of_it_remembered(
    command: Command, tmp_path: Path
) -> None:
    path = tmp_path / "plan.json"
    path.write_text(command("plan", "--ctx", "600", "--json")[0])

    document = measured(command, "--plan", str(path))

    planned = json.loads(path.read_text())["prediction"]["decode_tps"]
    assert document["tests"][1]["predicted_tps"] == planned
    assert learned() == {}


@pytest.mark.parametrize("flags", [("--vram", "0"), ("--ram", "4GiB"), ("--disk-speed", "1GB"),
                                   ("--mirror", "."), ("--ctx", "600")])  # fmt: skip
def test_bench_takes_a_plan_or_its_flags(
    command: Command, flags: tuple[str, ...], smollm2_path: Path, tmp_path: Path
) -> None:
    path = tmp_path / "plan.json"
    path.write_text(command("plan", "--ctx", "600", "--json")[0])

    assert execute(["bench", str(smollm2_path), "--plan", str(path), *flags]) == 2


def test_a_damaged_file_is_said_and_replaced(command: Command) -> None:
    measured(command)
    [path] = (settings().data / "learned").glob("*.runs.json")
    path.write_text("{")

    _, err = command("bench", *FEW)

    assert f"{path}: what runs taught is left out" in err
    assert len(json.loads(path.read_text())["entries"]) == 1


# --- run ------------------------------------------------------------------------------------------


def test_run_tells_what_a_token_of_the_answer_took_and_not_what_the_prompt_did(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, begins = tmp_path / "gate", Watched.begins
    os.mkfifo(gate)
    monkeypatch.setenv("GATE", str(gate))

    async def begins_and_lets_go(watched: Watched) -> None:
        await begins(watched)
        if gate.exists():
            await asyncio.to_thread(gate.write_bytes, b"")
            gate.unlink()

    monkeypatch.setattr(Watched, "begins", begins_and_lets_go)
    out, err = command("run", PROMPT, "--temperature", "0", "--stats", "--ctx", "512")

    assert out == "an answer of some length\n"
    lines = [" ".join(line.split()) for line in err.splitlines()]
    at = lines.index("a token of the answer:")
    assert lines[at - 1].startswith("planned ")
    assert any(line.startswith("answer 25 tokens at ") for line in lines[:at])
    # 24 tokens were computed for the 24 behind the first: of the prompt's none is among them.
    assert any(line.startswith("ram dense 1.00 ms, ") and "; 1.0 KB, " in line for line in lines)
    assert "disk 3.00 ms, nothing predicted; 700 B, nothing predicted" in lines
    assert any(line.startswith("of 3.0 experts a token: ") for line in lines)


def test_without_stats_only_what_the_runner_noted_is_said(command: Command) -> None:
    _, err = command("run", PROMPT, "--temperature", "0", "--ctx", "512")

    assert NOTE in err.splitlines()
    assert "planned" not in err
    assert "experts a token" not in err


def test_run_remembers_how_often_experts_were_picked_and_nothing_of_the_text(
    command: Command,
) -> None:
    for _ in range(2):
        command("run", PROMPT, "--temperature", "0", "--ctx", "512")

    assert learned().keys() == {"picks"}
    document = json.loads(learned()["picks"])
    assert document.keys() == {"version", "model", "layers"}
    counts = document["layers"]
    each = counts["0"][0] // 2
    assert counts == {"0": [2 * each, 4 * each, 0], "3": [0, 0, 6 * each]}
    kept = "".join(path.read_text() for path in (settings().data / "learned").iterdir())
    for text in (PROMPT, "answer of", *PROMPT.split()):
        assert f"{text} " not in kept
        assert text not in document["model"]["ref"]


def test_who_wants_nothing_remembered_has_nothing_written(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    command("run", PROMPT, "--ctx", "512", "--no-learn")
    command("bench", *FEW, "--no-learn")
    file = settings().config_file
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("learn = false\n")
    command("run", PROMPT, "--ctx", "512")
    file.unlink()
    monkeypatch.setenv("LOCALRUN_LEARN", "0")
    command("run", PROMPT, "--ctx", "512")
    assert not (settings().data / "learned").exists()

    command("run", PROMPT, "--ctx", "512", "--learn")
    assert learned().keys() == {"picks"}


@pytest.mark.usefixtures("command")
@pytest.mark.parametrize("learn", [True, False])
async def test_a_served_model_is_remembered_when_it_is_unloaded(
    smollm2_path: Path, here: Settings, learn: bool
) -> None:
    asked = PlanRequest(n_ctx=512)
    for messages in ([], [Message("user", PROMPT)]):
        loaded = await Beside(str(smollm2_path), asked, here, learn=learn).beside([], [])()
        if messages:
            async for _ in loaded.model.reply(messages, ReplyOptions()):
                assert learned() == {}
        await loaded.model.close()
        # A model that answered nothing has nothing to teach.
        assert learned().keys() == ({"picks"} if learn and messages else set())


def test_a_folder_that_cannot_be_written_takes_no_answer_away(command: Command) -> None:
    settings().data.mkdir(parents=True)
    (settings().data / "learned").write_text("a file in its place")

    out, err = command("run", PROMPT, "--temperature", "0", "--ctx", "512")
    assert out == "an answer of some length\n"
    assert "picks of experts are not remembered: " in err
    _, err = command("bench", *FEW)
    assert "this run is not remembered: " in err


def test_a_mirror_is_a_directory_and_reaches_the_plan_in_full(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, smollm2_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "copies").mkdir()

    out, _ = command("plan", "--mirror", "copies", "--mirror", str(tmp_path / "copies"), "--json")
    assert json.loads(out)["request"]["mirrors"] == [str(tmp_path / "copies")]
    monkeypatch.chdir(smollm2_path.parent)
    shared, _ = command("plan", "--mirror", ".", "--json")
    assert any("on the disk of the model" in each for each in json.loads(shared)["warnings"])
    assert execute(["plan", str(smollm2_path), "--mirror", "absent"]) == 2


def test_the_doctor_says_where_it_lies(here: Settings) -> None:
    folder = here.data / "learned"
    folder.mkdir(parents=True)
    for name in ("a.runs.json", "a.picks.json", "b.runs.json", ".lock"):
        (folder / name).touch()

    assert _learned(here).detail == f"from runs of 2 models, under {folder}"
