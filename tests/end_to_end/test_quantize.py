"""``localrun quantize`` as a person types it, and what the file is good for afterwards."""

from __future__ import annotations

import hashlib
import io
import json
import re
import sys
from pathlib import Path

import pytest

from localrun.cli.app import execute
from tests.encoders import write_checkpoint


@pytest.fixture
def tiny(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    return write_checkpoint(home / "tiny")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = execute(arguments)
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_checkpoint_is_converted_and_said_to_be(
    capsys: pytest.CaptureFixture[str], tiny: Path
) -> None:
    out = tiny.parent / "tiny.gguf"
    code, said, noted = run(capsys, "quantize", str(tiny), str(out), "--type", "f16")

    assert code == 0
    assert said.startswith(f"{out}: {out.stat().st_size / 1000:.1f} KB in ")
    assert re.search(r"^F16 +F16 +13 ", noted, re.MULTILINE)
    assert "same tokens as the release's" in noted


def test_json_says_what_was_written(capsys: pytest.CaptureFixture[str], tiny: Path) -> None:
    out = tiny.parent / "tiny.gguf"
    arguments = ("quantize", str(tiny), str(out), "--type", "F32", "--json")
    told = json.loads(run(capsys, *arguments, "--dry-run")[1])
    assert (told["written"], told["seconds"], out.exists()) == (False, None, False)
    assert told["outputs"][0]["files"][0]["sha256"] is None

    done = json.loads(run(capsys, *arguments)[1])

    data = out.read_bytes()
    (made,) = done["outputs"]
    sha256 = hashlib.sha256(data).hexdigest()
    assert made["files"] == [{"path": str(out), "bytes": len(data), "sha256": sha256}]
    assert (done["bytes"], done["architecture"], made["type"]) == (len(data), "bert", "F32")
    assert sum(each["bytes"] for each in made["tensors"].values()) < len(data)
    changing = {"written", "seconds", "slabs_kept", "outputs", "predicted_seconds"}
    assert {key: done[key] for key in done.keys() - changing} == {
        key: told[key] for key in told.keys() - changing
    }


def test_the_file_is_shown_and_planned_as_an_encoder(
    capsys: pytest.CaptureFixture[str], tiny: Path
) -> None:
    out = tiny.parent / "tiny.gguf"
    run(capsys, "quantize", str(tiny), str(out), "--type", "F32")

    shown = json.loads(run(capsys, "show", str(out), "--json")[1])
    assert (shown["architecture"], shown["encoder"], shown["guessed"]) == ("bert", True, False)
    assert "embeddings only" in run(capsys, "show", str(out))[1]
    planned = json.loads(run(capsys, "plan", str(out), "--json")[1])
    assert planned["model"]["encoder"]
    assert (planned["execution"]["n_ctx"], planned["execution"]["ubatch"]) == (32, 32)
    picture = run(capsys, "plan", str(out))[1]
    assert "texts of 32 tokens" in picture
    assert "decode" not in picture
    code, _, said = run(capsys, "plan", str(out), "--ctx", "64")
    assert (code, "positions for 32 tokens" in said) == (2, True)


def test_it_does_not_answer(capsys: pytest.CaptureFixture[str], tiny: Path) -> None:
    out = tiny.parent / "tiny.gguf"
    run(capsys, "quantize", str(tiny), str(out), "--type", "F32")
    code, said, noted = run(capsys, "run", str(out), "Hello")

    assert (code, said) == (2, "")
    assert "makes embeddings only" in noted
    assert "/v1/embeddings" in noted


def test_a_checkpoint_that_cannot_run_yet_says_how_it_will(
    capsys: pytest.CaptureFixture[str], tiny: Path
) -> None:
    code, _, said = run(capsys, "run", str(tiny), "Hello")
    assert (code, "localrun quantize SRC OUT.gguf --type F16" in said) == (2, True)


REFUSED = {
    "no type": ([], 2, "--type"),
    "no such type": (["--type", "Q9_9"], 2, "Q9_9"),
    "no such checkpoint": (["--type", "F32"], 3, "no such file"),
}


@pytest.mark.parametrize(("flags", "code", "said"), REFUSED.values(), ids=list(REFUSED))
def test_what_cannot_be_meant_is_said(
    capsys: pytest.CaptureFixture[str], tiny: Path, flags: list[str], code: int, said: str
) -> None:
    source = tiny if code == 2 else tiny.parent / "none"
    found = run(capsys, "quantize", str(source), str(tiny.parent / "out.gguf"), *flags)
    assert (found[0], said in found[2]) == (code, True), found
    assert not (tiny.parent / "out.gguf").exists()


def test_a_file_that_is_there_is_kept_unless_force_says_so(
    capsys: pytest.CaptureFixture[str], tiny: Path
) -> None:
    out = tiny.parent / "tiny.gguf"
    out.write_bytes(b"mine")
    arguments = ("quantize", str(tiny), str(out), "--type", "F32")
    code, _, said = run(capsys, *arguments)
    assert (code, "--force" in said, out.read_bytes()) == (2, True, b"mine")

    assert run(capsys, *arguments, "--force")[0] == 0
    assert out.read_bytes()[:4] == b"GGUF"
