"""A directory of safetensors is run like any other model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from localrun.cli.app import execute
from localrun.config import Settings
from localrun.engine.runner import ModelRunner

pytest.importorskip("mlx_lm", reason="mlx_lm is not installed")


def test_a_directory_answers_through_its_own_template(
    here: Settings, smollm2_checkpoint: Path
) -> None:
    flags = ["--ctx", "256", "--max-tokens", "4", "--temperature", "0", "--stats"]
    command = [sys.executable, "-m", "localrun.cli", "run", str(smollm2_checkpoint), "Say a word."]
    done = subprocess.run(
        [*command, *flags],
        capture_output=True,
        text=True,
        timeout=200,
        stdin=subprocess.DEVNULL,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    # As many as the GGUF of this model has with its template around the three words.
    assert "prompt 34 tokens" in done.stderr
    assert "answer 4 tokens" in done.stderr


def test_an_import_is_found_by_its_name_and_planned_for_mlx(
    here: Settings, smollm2_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(["import", str(smollm2_checkpoint), "--name", "me/small"]) == 0
    capsys.readouterr()

    assert execute(["plan", "local:me/small", "--machine", "m4-max-64", "--json"]) == 0

    made = json.loads(capsys.readouterr().out)
    assert (made["backend"], made["model"]["quantization"]) == ("mlx", "BF16")
    assert made["prediction"]["bound_by"].startswith("unified")


def test_a_closed_model_gives_its_memory_back(load_model: object) -> None:
    import mlx.core as mx

    assert callable(load_model)
    before = mx.get_active_memory()
    runner: ModelRunner = load_model(backend="mlx")
    held = runner.stats().memory_parts["ram"]["weights"]
    assert held > 50 << 20
    assert mx.get_active_memory() - before >= held * 0.99
    runner.close()
    del runner

    assert mx.get_active_memory() - before < held * 0.1
