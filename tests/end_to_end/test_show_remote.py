"""``localrun show``: what is inside a model, on the hub by its headers alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from localrun.models.geometries import geometry
from tests.command_lines import Runner, checkpoint, small_gguf, written
from tests.hub_stub import HubStub

BENCH = str(Path(__file__).parents[2] / "bench")
# What a program may rely on (DESIGN section 3), and what the issue adds to it.
KEYS = {
    *("ref", "architecture", "files", "parameters", "active_parameters", "bytes", "tensors"),
    *("shares", "tables", "experts", "experts_used", "layers", "context", "notes", "place"),
    *("bytes_read", "requests", "kv_bytes_per_token", "kv_native_bytes_per_token"),
}


@pytest.fixture
def localrun(home: Path, capsys: pytest.CaptureFixture[str]) -> Runner:
    return Runner(capsys)


@pytest.fixture
def hub(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStub]:
    with HubStub() as stub:
        monkeypatch.setenv("HF_ENDPOINT", stub.endpoint)
        yield stub


@pytest.fixture(scope="module")
def flash(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DeepSeek-V4.1 with every feature, as small as it gets."""
    if BENCH not in sys.path:
        sys.path.append(BENCH)
    out = tmp_path_factory.mktemp("v41") / "model"
    arguments = [str(out), "--arch", "deepseek_v41", "--headers-only"]
    import_module("synthetic_checkpoint").main(arguments)
    return out


def shown(localrun: Runner, *arguments: str) -> Any:
    ran = localrun("show", *arguments, "--json")
    assert ran.code == 0, ran.err
    document = json.loads(ran.out)
    assert document.keys() >= KEYS
    return document


def test_the_shares_of_memory_experts_and_dense_stand_beside_the_best(
    localrun: Runner, hub: HubStub, flash: Path, home: Path
) -> None:
    hub.add("org/flash", {path.name: path.read_bytes() for path in flash.iterdir()})

    ran = localrun("show", "org/flash")

    assert ran.code == 0, ran.err
    assert "% memory, " in ran.out
    assert "% experts, " in ran.out
    assert "% dense" in ran.out
    assert "20% to 25% was best in the Engram paper" in ran.out
    read = sum(count for path, count in hub.sent if "/resolve/" in path)
    assert f"read {read / 1e6:.1f} MB of headers in 6 requests; nothing else" in ran.err
    ranges = [one.headers.get("range") for one in hub.asked if one.path.endswith(".safetensors")]
    assert len(ranges) == 4
    assert all(ranges)
    assert not [path for path in home.rglob("*.safetensors") if "v41" not in str(path)]


def test_shares_are_of_parameters_and_of_bytes_and_add_up(
    localrun: Runner, hub: HubStub, flash: Path
) -> None:
    hub.add("org/flash", {path.name: path.read_bytes() for path in flash.iterdir()})

    remote = shown(localrun, "org/flash")
    local = shown(localrun, str(flash))

    for measure in ("parameters", "bytes"):
        parts = remote["shares"][measure]
        assert parts.keys() == {"memory", "experts", "dense"}
        assert sum(parts.values()) == pytest.approx(1)
        assert all(0 < share < 1 for share in parts.values())
    # Tables are stored wider than experts, which are packed to four bits.
    assert remote["shares"]["bytes"]["memory"] > remote["shares"]["parameters"]["memory"]
    assert all(table["rows_per_token"] > 0 for table in remote["tables"])
    apart = {"ref", "place", "files", "bytes_read", "requests"}
    assert {key for key in remote if remote[key] != local[key]} == apart
    assert {file["path"] for file in remote["files"]} == {None}
    assert all(file["sha256"] for file in remote["files"] if file["role"] == "weights")


def test_the_released_flash_is_shown_from_its_config_alone(
    localrun: Runner, tmp_path: Path
) -> None:
    config = written(tmp_path, "flash.json", geometry("deepseek-v4.1-flash"))

    document = shown(localrun, str(config))

    assert document["tensors"] == 96_085
    assert document["bytes"] == document["tensor_bytes"] == 510_286_023_000
    assert document["kv_native_bytes_per_token"] == 890
    memory, experts = (document["shares"]["parameters"][name] for name in ("memory", "experts"))
    said = localrun("show", str(config)).out
    assert f"{memory / (memory + experts):.1%} of tables and experts together" in said


def test_a_model_without_experts_has_no_shares_to_tell(localrun: Runner, hub: HubStub) -> None:
    hub.add("org/repo", checkpoint(), licence="mit")

    said = localrun("show", "org/repo").out
    document = shown(localrun, "org/repo")

    assert "% dense" not in said
    assert document["shares"]["parameters"] == {"memory": 0, "experts": 0, "dense": 1}
    assert document["licence"] == "mit"


def test_a_gguf_of_the_hub_is_shown_as_the_same_file_on_disk(
    localrun: Runner, hub: HubStub, tmp_path: Path
) -> None:
    path = tmp_path / "m-Q8_0.gguf"
    path.write_bytes(small_gguf())
    hub.add("org/quants", {path.name: small_gguf()})

    remote, local = shown(localrun, "org/quants"), shown(localrun, str(path))

    apart = {"ref", "place", "files", "bytes_read", "requests"}
    assert {key for key in remote if remote[key] != local[key]} == apart
    assert (remote["bytes_read"], local["bytes_read"]) == (len(small_gguf()), 0)


def test_a_model_on_disk_is_shown_without_a_word_of_reading(
    localrun: Runner, smollm2_path: Path
) -> None:
    ran = localrun("show", str(smollm2_path))

    assert (ran.code, ran.err) == (0, "")
    assert "134.5" in ran.out or "0.135 B" in ran.out
    assert "shares" not in ran.out
