"""Experts that stream say bit by bit what experts in memory say, however they are stored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from localrun.backends.mlx import backend as mlx
from localrun.cli.app import execute
from localrun.config import Settings
from localrun.engine.runner import BatchItem, ModelRunner
from localrun.errors import EngineError
from localrun.plan.plan import Execution
from tests import deepseek
from tests.plans import bare_plan

pytest.importorskip("mlx_lm", reason="mlx_lm is not installed")
EXECUTION = Execution(64, 32, "f32", 1, 1, True, gpu_layers=0)
TEXT = [5, 900, 33, 7, 412, 8, 8, 60, 77, 301, 2, 640]


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture in BF16, a tensor for each expert."""
    return deepseek.write(tmp_path_factory.mktemp("moe") / "bf16", deepseek.base("qwen3_moe"))


def load(folder: Path, **changes: Any) -> ModelRunner:
    files = [str(file) for file in sorted(folder.glob("*.safetensors"))]
    return mlx.load(bare_plan(replace(EXECUTION, **changes), files, backend="mlx"))


def said(folder: Path, **changes: Any) -> NDArray[np.float32]:
    runner = load(folder, **changes)
    sequence = runner.new_sequence()
    parts = [TEXT[:9], *([token] for token in TEXT[9:])]
    rows = [runner.forward([BatchItem(sequence, part, "all")]).numpy().copy() for part in parts]
    runner.close()
    return np.concatenate(rows)


@pytest.mark.parametrize("slots", [1, 3, 5])
def test_experts_of_a_release_stream(released: Path, slots: int) -> None:
    expected = said(released)

    assert np.array_equal(said(released, streams=True, slots_per_layer=slots), expected)


@pytest.mark.parametrize("type", ["mlx-4bit", "mlx-mxfp4", "mlx-mxfp8"])
def test_experts_that_mlx_packed_stream(
    here: Settings, released: Path, tmp_path: Path, type: str
) -> None:
    """One tensor for all experts of a layer; on a CPU scales are widened in their places too."""
    out = tmp_path / type
    assert execute(["quantize", str(released), str(out), "--type", type]) == 0

    assert np.array_equal(said(out, streams=True, slots_per_layer=3), said(out))


def test_an_expert_that_is_there_is_not_read_again(released: Path) -> None:
    runner = load(released, streams=True, slots_per_layer=64)
    assert not any(use.picks for use in runner.stats().experts.values())
    told = []
    for _ in range(2):
        runner.forward([BatchItem(runner.new_sequence(), TEXT, "all")])
        told.append(runner.stats())
    runner.close()

    first, second = told
    assert second.experts["disk"] == first.experts["disk"]
    assert second.bytes_read["disk"] == first.bytes_read["disk"]
    assert second.terms_bytes["disk"] == first.terms_bytes["disk"] > 0
    picks = sum(map(sum, first.picks.values()))
    assert sum(use.picks for use in first.experts.values()) == picks
    assert second.experts["ram"].picks - first.experts["ram"].picks == picks


@pytest.mark.parametrize("slots", [0, -1])
def test_a_plan_without_places_is_refused(released: Path, slots: int) -> None:
    with pytest.raises(EngineError, match="streams experts"):
        load(released, streams=True, slots_per_layer=slots)


def test_a_model_without_experts_does_not_stream(smollm2_checkpoint: Path) -> None:
    with pytest.raises(EngineError, match=r"streams experts.*none"):
        load(smollm2_checkpoint, streams=True, slots_per_layer=2)


def test_a_form_that_mlx_changes_when_it_loads_is_refused(tmp_path: Path) -> None:
    """DeepSeek-V3's FP8 in tiles of 128 becomes BF16."""
    folder = deepseek.write(tmp_path / "v32", deepseek.base("deepseek_v32"))

    with pytest.raises(EngineError, match="does not stream with mlx") as caught:
        load(folder, streams=True, slots_per_layer=2)
    assert "another backend" in caught.value.hint


def test_nothing_of_torch_is_loaded_with_it() -> None:
    import subprocess
    import sys

    code = "import sys, localrun.backends.mlx.on_disk; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
