"""Rows D5 and F8 of the threat table: conversions that are killed or given damaged weights."""

from __future__ import annotations

import hashlib
import io
import json
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from localrun.cli.app import execute
from tests.encoders import Encoder, write_checkpoint

SLAB = 2048
TYPES = {"Q8_0": "out.gguf", "safetensors-bf16": "out"}
CHILD = [sys.executable, "-m", "tests.quantize_child"]


def child(folder: Path, out: Path, after: int, *types: str) -> tuple[int, int, int]:
    """(exit status, jobs, jobs that an earlier run had done)"""
    command = [*CHILD, str(folder), str(out), str(after), str(SLAB), *types]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    jobs, kept = map(int, done.stdout.split()) if done.returncode == 0 else (0, 0)
    return done.returncode, jobs, kept


def digests(place: Path) -> dict[str, str]:
    paths = [path for path in place.rglob("*") if path.is_file()] if place.is_dir() else [place]
    return {
        path.name if path != place else "": hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
    }


@pytest.mark.parametrize("type", TYPES)
def test_a_run_that_is_killed_at_half_keeps_that_half(tmp_path: Path, type: str) -> None:
    folder, out = write_checkpoint(tmp_path / "tiny"), tmp_path / TYPES[type]
    source = digests(folder)
    code, jobs, kept = child(folder, tmp_path / f"whole-{out.name}", -1, type)
    assert (code, kept) == (0, 0)
    assert child(folder, out, jobs // 2, type)[0] == -9
    assert not out.exists()
    code, _, kept = child(folder, out, -1, type)
    assert code == 0
    # Two workers: a slab of the other's may have been on its way.
    assert kept >= jobs // 2 - 1
    assert kept >= 0.45 * jobs
    assert digests(out) == digests(tmp_path / f"whole-{out.name}")
    assert digests(folder) == source


def killed_often(tmp_path: Path, times: int, seed: int) -> None:
    folder = write_checkpoint(tmp_path / "tiny")
    types = ("Q8_0", "F16", "safetensors-bf16")
    _, jobs, _ = child(folder, tmp_path / "whole", -1, *types)
    chance, kills = random.Random(seed), 0
    while kills < times:
        code, _, kept = child(folder, tmp_path / "out", chance.randrange(jobs // times + 2), *types)
        if code == 0:
            break
        assert not (tmp_path / "out").exists()
        kills += 1
    else:
        code, _, kept = child(folder, tmp_path / "out", -1, *types)
    assert (code, kills > times // 2) == (0, True)
    assert kept > 0
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "tiny", "whole"]


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bytes(tmp_path: Path) -> None:
    killed_often(tmp_path, 5, seed=0)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_a_run_that_is_killed_twenty_times_ends_with_the_same_bytes(
    tmp_path: Path, seed: int
) -> None:
    killed_often(tmp_path, 20, seed)


@pytest.fixture
def tiny(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    return write_checkpoint(home / "tiny")


def sharded(folder: Path) -> Path:
    """The weights in two shards with an index."""
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    halves = (names[: len(names) // 2], names[len(names) // 2 :])
    placed = {}
    for number, part in enumerate(halves, 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, folder / file)
        placed |= dict.fromkeys(part, file)
    (folder / "model.safetensors").unlink()
    index = {"metadata": {"total_size": 0}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def indexed(change: Callable[[dict[str, str]], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = sharded(folder) / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        change(index["weight_map"])
        path.write_text(json.dumps(index))

    return damage


def truncated(folder: Path) -> None:
    path = sharded(folder) / "model-00002-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def configured(**changes: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def planted(value: float, dtype: type[np.floating]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        changed = {name: each.astype(dtype) for name, each in weights.items()}
        changed["encoder.layer.0.output.dense.weight"][-1, -1] = value
        save_file(changed, folder / "model.safetensors")

    return damage


def lost(folder: Path) -> None:
    (sharded(folder) / "model-00001-of-00002.safetensors").unlink()


def renamed(index: dict[str, str]) -> None:
    index[next(iter(index))] = "../../secret.safetensors"


def missing(index: dict[str, str]) -> None:
    index[next(iter(index))] = "model-00009-of-00009.safetensors"


LAST = Encoder().tensors()["encoder.layer.0.output.dense.weight"].size - 1
DAMAGED: dict[str, tuple[Callable[[Path], None], set[int], str]] = {
    "a shard is cut": (truncated, {5}, "model-00002"),
    "a shard is gone": (lost, {2, 3, 5}, "model-00001"),
    "the index names a file that is not there": (indexed(missing), {3, 5}, "model-00009"),
    "the index names a file elsewhere": (indexed(renamed), {2, 5}, "secret"),
    "a quantization nobody reads": (
        configured(quantization_config={"quant_method": "gptq", "bits": 4}),
        {2, 5},
        "gptq",
    ),
    "a NaN": (planted(np.nan, np.float32), {5}, f"element {LAST} "),
    "an infinity in F16": (planted(np.inf, np.float16), {5}, f"element {LAST} "),
}


@pytest.mark.parametrize(("damage", "codes", "said"), DAMAGED.values(), ids=list(DAMAGED))
@pytest.mark.parametrize("type", TYPES)
def test_a_damaged_checkpoint_is_refused_by_name_and_resuming_works_once_it_is_whole(
    capsys: pytest.CaptureFixture[str],
    tiny: Path,
    damage: Callable[[Path], None],
    codes: set[int],
    said: str,
    type: str,
) -> None:
    out = tiny.parent / TYPES[type]
    shutil.copytree(tiny, whole := tiny.parent / "whole")
    damage(tiny)
    code = execute(["quantize", str(tiny), str(out), "--type", type])
    noted = capsys.readouterr().err
    assert code in codes
    assert said in noted
    assert "hint: " in noted
    assert "Traceback" not in noted
    assert not out.exists()

    shutil.rmtree(tiny)
    shutil.copytree(whole, tiny)
    assert execute(["quantize", str(tiny), str(out), "--type", type, "--resume"]) == 0
    assert out.exists()


def test_an_architecture_that_nobody_converts_is_named(
    capsys: pytest.CaptureFixture[str], tiny: Path
) -> None:
    configured(model_type="mamba", architectures=["MambaForCausalLM"])(tiny)
    out = tiny.parent / "out.gguf"
    assert execute(["quantize", str(tiny), str(out), "--type", "Q8_0"]) == 2
    noted = capsys.readouterr().err
    assert "mamba" in noted
    assert "LlamaForCausalLM" in noted
    assert not out.exists()


def test_no_permission_to_write_is_said_and_nothing_is_left(
    capsys: pytest.CaptureFixture[str], tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner of everything passes over modes, so the disk itself refuses here."""
    from localrun.store import disk

    class Forbidding(disk.Disk):
        def create(self, path: Path) -> int:
            raise PermissionError(13, "Permission denied")

    out = tiny.parent / "out.gguf"
    with monkeypatch.context() as context:
        context.setattr(disk, "DISK", Forbidding())
        code = execute(["quantize", str(tiny), str(out), "--type", "Q8_0"])
    noted = capsys.readouterr().err
    assert code == 1
    assert "Permission denied" in noted
    assert str(out) in noted
    assert not out.exists()
    assert execute(["quantize", str(tiny), str(out), "--type", "Q8_0", "--resume"]) == 0


def test_a_scale_that_no_block_can_hold_is_refused_by_its_tensor(
    capsys: pytest.CaptureFixture[str], tiny: Path
) -> None:
    name = "encoder.layer.1.attention.self.key.weight"
    weights = load_file(tiny / "model.safetensors")
    weights[name][3, 40] = 3e38
    save_file(weights, tiny / "model.safetensors")
    out = tiny.parent / "out.gguf"
    assert execute(["quantize", str(tiny), str(out), "--type", "Q8_0"]) == 5
    noted = capsys.readouterr().err
    assert name in noted
    assert "row 3" in noted
    assert not out.exists()
    assert execute(["quantize", str(tiny), str(out), "--type", "BF16"]) == 0


def test_a_header_that_lies_about_its_size_reads_nothing(
    capsys: pytest.CaptureFixture[str], tiny: Path
) -> None:
    path = tiny / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(struct.pack("<Q", 1 << 40) + data[8:])
    out = tiny.parent / "out.gguf"
    assert execute(["quantize", str(tiny), str(out), "--type", "Q8_0"]) == 5
    assert "model.safetensors" in capsys.readouterr().err
    assert not out.exists()
