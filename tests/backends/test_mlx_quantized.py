"""What ``localrun quantize`` writes for MLX runs like any other model."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from localrun.cli.app import execute
from localrun.config import Settings

pytest.importorskip("mlx_lm", reason="mlx_lm is not installed")


@pytest.mark.parametrize("type", ["mlx-4bit", "mlx-8bit", "mlx-mxfp4", "mlx-mxfp8"])
def test_weights_in_every_type_answer(
    here: Settings,
    smollm2_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    type: str,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    out = tmp_path / "out"
    assert execute(["quantize", str(smollm2_checkpoint), str(out), "--type", type]) == 0
    assert execute(["plan", str(out)]) == 0
    assert type in capsys.readouterr().out

    flags = ["--ctx", "128", "--max-tokens", "3", "--temperature", "0"]
    assert execute(["run", str(out), "Say a word.", *flags]) == 0
    assert capsys.readouterr().out
