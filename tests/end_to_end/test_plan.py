"""``localrun plan`` as a person types it, of every kind of reference, with every flag."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from localrun.models.geometries import geometry
from localrun.store import catalogue
from localrun.store.catalogue import Entry
from tests.command_lines import CONFIG, Runner, checkpoint, small_gguf, written
from tests.gguf_builder import split_gguf
from tests.hub_stub import HubStub

LOCALRUN = [sys.executable, "-P", "-m", "localrun.cli"]


@pytest.fixture
def localrun(home: Path, capsys: pytest.CaptureFixture[str]) -> Runner:
    return Runner(capsys)


@pytest.fixture
def hub(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStub]:
    with HubStub() as stub:
        monkeypatch.setenv("HF_ENDPOINT", stub.endpoint)
        yield stub


def weights_in(place: Path) -> list[Path]:
    """What a download would leave."""
    suffixes = (".gguf", ".safetensors")
    return [
        path for path in place.rglob("*") if path.suffix in suffixes or path.stat().st_size > 2**20
    ]


# --- what a reference may be ----------------------------------------------------------------------


def test_a_config_json_of_any_name_is_planned_with_its_own_types_or_those_asked_for(
    localrun: Runner, tmp_path: Path
) -> None:
    config = written(tmp_path, "any name at all.JSON", geometry("llama-3-8b"))

    own = localrun.plan(config, "--json").plan()
    quantized = localrun.plan(config, "--quant", "Q4_K_M", "--json").plan()

    assert own.model.format == "safetensors"
    assert own.model.quantization == "BF16"
    assert own.model.total_bytes == 2 * own.model.parameters.total
    assert (quantized.model.format, quantized.backend) == ("gguf", "llama.cpp")
    assert quantized.model.quantization == "Q4_K_M"
    assert quantized.model.total_bytes < own.model.total_bytes * 0.35
    assert own.model.ref == quantized.model.ref == str(config)


def test_a_directory_with_nothing_but_a_config_is_what_the_config_says(
    localrun: Runner, tmp_path: Path
) -> None:
    config = written(tmp_path, "model/config.json", CONFIG)

    from_directory = localrun.plan(config.parent, "--json").plan()
    from_file = localrun.plan(config, "--json").plan()

    assert from_directory.model.total_bytes == from_file.model.total_bytes
    assert from_directory.placements == from_file.placements


def test_files_on_disk_are_planned_from_their_headers(
    localrun: Runner, smollm2_path: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name, data in checkpoint().items():
        (folder / name).write_bytes(data)

    gguf = localrun.plan(smollm2_path, "--json")
    safetensors = localrun.plan(folder, "--json")

    made = gguf.plan()
    assert (made.backend, made.model.tensors) == ("llama.cpp", 272)
    assert made.files == (str(smollm2_path),)
    assert gguf.err == ""
    split = safetensors.plan()
    assert (split.model.format, split.model.tensors) == ("safetensors", 21)
    assert [Path(path).name for path in split.files] == sorted(
        name for name in checkpoint() if name.endswith(".safetensors")
    )


def test_a_catalogue_name_that_is_here_is_planned_without_asking_anyone(
    smollm2_path: Path,
) -> None:
    """A whole process with the developer's own store, on this machine, in a pipe."""
    outcome = subprocess.run(
        [*LOCALRUN, "plan", "smollm2"], capture_output=True, text=True, timeout=120
    )

    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stderr == ""
    assert "smollm2" in outcome.stdout.splitlines()[0]
    assert "FITS" in outcome.stdout
    assert "\x1b" not in outcome.stdout


# --- on the hub -----------------------------------------------------------------------------------


def test_a_split_checkpoint_of_the_hub_is_planned_from_its_headers_and_nothing_is_downloaded(
    localrun: Runner, hub: HubStub, home: Path
) -> None:
    commit = hub.add("org/repo", checkpoint())

    ran = localrun.plan("org/repo", "--json")
    made = ran.plan()

    asked = [one.path.rpartition("/")[2] for one in hub.asked]
    shards = [name for name in checkpoint() if name.endswith(".safetensors")]
    assert sorted(asked) == sorted(["main", "config.json", *shards])
    ranges = [one.headers.get("range") for one in hub.asked if one.path.endswith(".safetensors")]
    assert all(ranges)
    read = sum(count for path, count in hub.sent if "/resolve/" in path)
    assert made.model.header_bytes_read == read
    assert f"{read / 1000:.1f} KB of headers in 3 requests" in ran.err
    assert "nothing else was downloaded" in ran.err
    assert weights_in(home) == []
    assert made.model.tensors == 21
    assert [file.path for file in made.model.files] == shards

    again = localrun.plan("org/repo", "--revision", commit, "--json")
    assert again.plan().model.total_bytes == made.model.total_bytes
    assert "read 0 B of headers in 0 requests, 3 from the cache" in again.err
    assert [one.path.rpartition("/")[2] for one in hub.asked[len(asked) :]] == [commit]


def test_a_revision_that_is_not_there_is_not_found(localrun: Runner, hub: HubStub) -> None:
    hub.add("org/repo", checkpoint())

    ran = localrun.plan("org/repo", "--revision", "v9", "--json")

    assert (ran.code, ran.out) == (3, "")
    assert "no such revision" in ran.err


def test_a_quant_that_the_repository_lacks_is_planned_as_it_would_be_and_says_so(
    localrun: Runner, hub: HubStub, home: Path
) -> None:
    hub.add("org/repo", checkpoint())

    ran = localrun.plan("org/repo", "--quant", "Q8_0", "--json")
    made = ran.plan()

    assert made.model.format == "gguf"
    assert made.model.quantization == "Q8_0"
    assert any("has no Q8_0 file: this is what it would be" in line for line in made.warnings)
    assert "of headers" in ran.err
    assert weights_in(home) == []
    unheard = localrun.plan("org/repo", "--quant", "Q9_Z", "--json")
    assert (unheard.code, unheard.out) == (2, "")
    assert "--quant Q9_Z: there is no such quantization" in unheard.err


def test_a_quant_chooses_among_the_files_of_a_repository(localrun: Runner, hub: HubStub) -> None:
    hub.add("org/quants", {"m-Q4_K_M.gguf": small_gguf(), "m-Q8_0.gguf": small_gguf(64)})

    chosen = localrun.plan("org/quants", "--quant", "q8_0", "--json").plan()
    tagged = localrun.plan("hf:org/quants:Q4_K_M", "--json").plan()
    absent = localrun.plan("org/quants", "--quant", "Q6_K", "--json")

    assert [file.path for file in chosen.model.files] == ["m-Q8_0.gguf"]
    assert [file.path for file in tagged.model.files] == ["m-Q4_K_M.gguf"]
    assert (absent.code, absent.out) == (3, "")
    assert "holds no Q6_K; it holds Q4_K_M, Q8_0" in absent.err


def test_a_split_gguf_is_one_model(localrun: Runner, hub: HubStub) -> None:
    parts = split_gguf(3, tensors_each=2)
    names = [f"m-Q4_K_M-{number:05}-of-00003.gguf" for number in (1, 2, 3)]
    hub.add("org/split", dict(zip(names, parts, strict=True)))

    made = localrun.plan("org/split", "--json").plan()

    assert made.model.tensors == 6
    assert [file.path for file in made.model.files] == names


def test_a_catalogue_name_that_is_not_here_is_planned_from_the_hub(
    localrun: Runner, hub: HubStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from localrun.ref import HubRef

    entry = Entry("tiny", HubRef("org", "quants"), "Q8_0", "MIT", "a model of the stub")
    monkeypatch.setattr(catalogue, "entries", lambda: {"tiny": entry})
    hub.add("org/quants", {"m-Q4_K_M.gguf": small_gguf(), "m-Q8_0.gguf": small_gguf(64)})

    made = localrun.plan("tiny", "--json").plan()

    assert [file.path for file in made.model.files] == ["m-Q8_0.gguf"]


# --- flags ----------------------------------------------------------------------------------------


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return written(tmp_path, "llama-3-8b.json", geometry("llama-3-8b"))


def test_every_flag_is_a_constraint_that_the_rest_is_solved_around(
    localrun: Runner, llama: Path
) -> None:
    flags = ["--quant", "Q8_0", "--ctx", "6000", "--parallel", "2", "--kv-type", "q8_0"]
    flags += ["--threads", "3", "--vram", "4GiB", "--ram", "20GB", "--disk-speed", "2GB"]
    flags += ["--workload", "3000:100", "--backend", "llama.cpp"]

    made = localrun.plan(llama, *flags, "--json").plan()

    told, asked = made.execution, made.request
    assert (told.n_ctx, told.parallel, told.kv_type, told.threads) == (6000, 2, "q8_0", 3)
    assert (asked.workload.prompt, asked.workload.output) == (3000, 100)
    assert asked.disk_read == 2 * 10**9
    limits = {budget.tier: budget for budget in made.budgets}
    assert limits["vram:0"].limit <= 4 << 30
    assert limits["ram"].limit <= 20 * 10**9
    assert all(budget.total <= budget.limit for budget in made.budgets)
    assert 0 < told.gpu_layers <= 32
    assert made.backend_reason == "asked for by --backend"


MACHINE = """
[ram]
gb = 64
ddr = "ddr5-6000x2"

[cpu]
cores = 12
"""


def test_a_machine_is_a_name_a_file_or_this_one(
    localrun: Runner, llama: Path, tmp_path: Path, smollm2_path: Path
) -> None:
    file = tmp_path / "workstation.toml"
    file.write_text(MACHINE)

    named = localrun.plan(llama, "--quant", "Q4_K_M", "--json", machine="m4-max-128").plan()
    from_file = localrun.plan(llama, "--quant", "Q4_K_M", "--json", machine=file).plan()
    here = localrun.plan(smollm2_path, "--json", machine="auto").plan()

    assert named.machine.tiers[0].tier == "unified"
    assert from_file.machine.name == "workstation"
    assert from_file.execution.threads == 12
    assert here.machine.name == "auto"
    assert {tier.tier for tier in here.machine.tiers} >= {"ram", "disk"}


def test_the_picture_is_also_drawn_in_a_file(localrun: Runner, llama: Path, tmp_path: Path) -> None:
    vector, page = tmp_path / "plan.svg", tmp_path / "plan.HTML"

    drawn = localrun.plan(llama, "--quant", "Q4_K_M", "--output", str(vector))
    beside = localrun.plan(llama, "--quant", "Q4_K_M", "--output", str(page), "--json")

    assert "FITS" in drawn.out
    assert ElementTree.fromstring(vector.read_text()).tag.endswith("svg")
    assert beside.plan().fits
    HTMLParser().feed(page.read_text())
    assert "</html>" in page.read_text()


@pytest.mark.parametrize("name", ["plan.png", "absent/plan.svg", "plan"])
def test_a_picture_that_cannot_be_written_is_refused_before_anything_is_read(
    name: str, localrun: Runner, hub: HubStub, tmp_path: Path
) -> None:
    hub.add("org/repo", checkpoint())

    ran = localrun.plan("org/repo", "--output", str(tmp_path / name), "--json")

    assert (ran.code, ran.out) == (2, "")
    assert "--output" in ran.err
    assert hub.asked == []


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1", "FORCE_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_colour_where_none_is_wanted(
    variables: dict[str, str], localrun: Runner, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    ran = localrun.plan(llama, "--quant", "Q4_K_M")

    assert ran.code == 0
    assert "\x1b" not in ran.out
    assert "vram:0" in ran.out


# --- no -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [[], ["--json"]], ids=["in words", "for programs"])
def test_what_does_not_fit_ends_with_4_the_shortfall_by_tier_and_what_would_fit(
    more: list[str], localrun: Runner, tmp_path: Path
) -> None:
    config = written(tmp_path, "big.json", geometry("llama-3-70b"))

    ran = localrun.plan(config, *more, machine="rtx-4090+ddr5-6000x2:64")

    assert (ran.code, ran.out) == (4, "")
    error, hint = ran.err.splitlines()
    assert "big.json does not fit: " in error
    told = re.search(r"ram lacks ([0-9.]+) GiB \(([0-9.]+) needed: .*; ([0-9.]+) usable\)", error)
    assert told is not None, error
    lacks, needed, usable = map(float, told.groups())
    assert lacks == pytest.approx(needed - usable, abs=0.02)
    smaller = re.fullmatch(r"hint: it would fit as (\w+), [0-9.]+ GB", hint)
    assert smaller is not None, hint
    fitting = localrun.plan(config, "--quant", smaller[1], *more, machine="rtx-4090+ddr5-6000x2:64")
    assert fitting.code == 0, fitting.err


def test_a_context_too_long_for_the_memory_is_told_the_one_that_fits(
    localrun: Runner, llama: Path
) -> None:
    asked = ["--quant", "Q4_K_M", "--ctx", "1000000"]

    ran = localrun.plan(llama, *asked, machine="cpu:8+ddr5-5600x2:32")
    assert ran.code == 4
    fitting = ran.err.rpartition("--ctx ")[2].strip()

    assert localrun.plan(llama, *asked[:3], fitting, machine="cpu:8+ddr5-5600x2:32").code == 0
