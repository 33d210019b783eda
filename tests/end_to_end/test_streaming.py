"""Models of which not all experts have room: from the command line to the same bytes.

The checkpoint is a small DeepSeek-V4.1 with n-gram tables. How much memory a plan needs is asked
of plans, so that a budget says how many experts have none.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bench.confined import group
from localrun.cli.loading import prepare
from localrun.plan.plan import Plan, PlanRequest
from tests import deepseek, streams
from tests.command_lines import Runner

pytest.importorskip("torch", reason="torch is not installed")
ROOT = Path(__file__).parents[2]
LOCALRUN = [sys.executable, "-P", "-m", "localrun.cli"]
TORCH = ("--backend", "torch", "--threads", "1")
TOKENS = [1, *(7 * at * at % 983 + 8 for at in range(39))]
IDS = ",".join(map(str, TOKENS))
N_CTX = len(TOKENS)
DEADLINE_S = 120
MB = 10**6


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return deepseek.write(tmp_path_factory.mktemp("streaming") / "flash", streams.config())


@pytest.fixture(scope="module")
def gguf(release: Path) -> Path:
    file = release.parent / "flash.gguf"
    line = [*LOCALRUN, "quantize", str(release), str(file), "--type", "MXFP4"]
    subprocess.run(line, check=True, capture_output=True, timeout=DEADLINE_S)
    return file


@pytest.fixture
def run(home: Path, capsys: pytest.CaptureFixture[str]) -> Runner:
    return Runner(capsys)


def planned(model: Path, numerics: str = "fast", **budgets: Any) -> Plan:
    request = PlanRequest(
        n_ctx=N_CTX, backend="torch", threads=1, numerics=numerics, kv_type=None, **budgets
    )
    return prepare(str(model), request).plan


@dataclass(frozen=True)
class Budget:
    """``short`` bytes of RAM less than all need, and ``vram`` that are declared a card."""

    short: int
    vram: int = 0

    def flags(self, model: Path, numerics: str = "fast") -> tuple[str, ...]:
        """What is typed. The plan for it keeps some experts, and reads others from disk."""
        whole = sum(each.total for each in planned(model, numerics).budgets if each.tier == "ram")
        asked = {"ram_bytes": whole - self.short, "vram_bytes": self.vram}
        told = planned(model, numerics, **asked).execution
        assert told.streams
        assert 0 < told.slots_per_layer < 24
        assert bool(told.gpu_layers) == bool(self.vram)
        return ("--ram", str(whole - self.short), "--vram", str(self.vram))


FEW, CARD = Budget(8 * MB), Budget(18 * MB, 12 * MB)


def logits(run: Runner, model: Path, *flags: str) -> bytes:
    out = model.parent / "logits.npy"
    ran = run(
        *("evaluate", "logits", str(model), "--tokens", IDS, "--output", str(out), "--force"),
        *TORCH,
        *flags,
    )
    assert ran.code == 0, ran.err
    return out.read_bytes()


@pytest.mark.parametrize("numerics", ["fast", "reference", "float32", "float32-qat"])
def test_a_release_that_streams_gives_the_bytes_of_one_in_memory(
    numerics: str, release: Path, run: Runner
) -> None:
    how = ("--numerics", numerics)
    wanted = logits(run, release, *how)

    for budget in (FEW, CARD):
        assert logits(run, release, *how, *budget.flags(release, numerics)) == wanted, budget


@pytest.mark.parametrize("numerics", ["fast", "float32"])
def test_a_gguf_file_that_streams_gives_the_bytes_of_one_in_memory(
    numerics: str, gguf: Path, run: Runner
) -> None:
    how = ("--numerics", numerics)
    wanted = logits(run, gguf, *how)

    for budget in (FEW, CARD):
        assert logits(run, gguf, *how, *budget.flags(gguf, numerics)) == wanted, budget


def test_what_a_run_spent_is_told_by_the_terms_of_its_plan(release: Path, run: Runner) -> None:
    sizes = ("-p", "16", "-n", "8", "-r", "1", "--ctx", str(N_CTX))
    ran = run("bench", str(release), *sizes, *TORCH, *FEW.flags(release), "--json")
    assert ran.code == 0, ran.err
    decode = next(test for test in json.loads(ran.out)["tests"] if test["test"] == "tg8")
    terms = {each["term"]: each for each in decode["terms"]}

    for name in ("ram dense", "ram experts", "disk"):
        assert terms[name]["measured_ms"] > 0, name
        assert terms[name]["measured_bytes"] > 0, name
    # Ten layers of which a token picks four experts each.
    picks = {each["tier"]: each["picks"] for each in decode["experts"]}
    assert set(picks) == {"ram", "disk"}
    assert sum(picks.values()) == pytest.approx(40)


def localrun(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*LOCALRUN, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )


def test_an_answer_is_that_of_the_model_in_memory(release: Path, home: Path) -> None:
    asked = ("run", str(release), "Hello", "--max-tokens", "8", "--ctx", str(N_CTX), *TORCH)
    greedy = ("--temperature", "0", "--seed", "1")
    said = []
    for flags in ((), FEW.flags(release)):
        process = localrun(*asked, *greedy, *flags)
        out, err = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0, err
        said.append(out)

    assert said[0] == said[1] != ""


def test_two_processes_stream_from_one_checkpoint(release: Path, home: Path, run: Runner) -> None:
    flags, outs = FEW.flags(release), [home / f"{name}.npy" for name in "ab"]
    asked = ("evaluate", "logits", str(release), "--tokens", IDS, *TORCH, *flags)
    processes = [localrun(*asked, "--output", str(out)) for out in outs]
    for process in processes:
        _, err = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0, err

    wanted = logits(run, release)
    assert [out.read_bytes() for out in outs] == [wanted, wanted]


BALLAST = """
import sys
from pathlib import Path
from typing import Any
Path("/proc/self/oom_score_adj").write_text("1000")
held = bytearray(int(sys.argv[1]))
held[::4096] = bytes(len(held[::4096]))
print("full", flush=True)
sys.stdin.readline()
"""
LIMIT, LEFT = 900 << 20, 52 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="control groups are Linux's")
def test_a_cache_shrinks_once_where_memory_gets_short_and_the_run_goes_on(
    release: Path, tmp_path: Path, home: Path
) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text(streams.streaming(release, 12).to_json())
    with group(LIMIT) as made:
        if made is None:
            pytest.skip("no control group can be made here")

        def inside(*line: str) -> subprocess.Popen[str]:
            return subprocess.Popen(
                [*made.command, sys.executable, *line],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
            )

        with inside("-m", "tests.stream_child", str(plan)) as child:
            assert line_of(child) == "ready"
            free = LIMIT - made.own()
            with inside("-c", BALLAST, str(free - LEFT)) as ballast:
                assert line_of(ballast) == "full"
                out, _ = child.communicate("go\n", timeout=DEADLINE_S)
                ballast.communicate("end\n", timeout=DEADLINE_S)
    assert child.returncode == 0
    found = json.loads(out)
    assert found["same"]
    assert len(found["notes"]) == 1
    assert "shrank from 120 to " in found["notes"][0]


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()
