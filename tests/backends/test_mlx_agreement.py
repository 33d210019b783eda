"""The same weights in BF16 say the same through mlx and through llama.cpp."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from localrun.engine.runner import BatchItem, ModelRunner
from tests.llama_checkpoints import write_checkpoint

LoadModel = Callable[..., ModelRunner]
TEXT = Path(__file__).parents[2] / "README.md"


@pytest.fixture(scope="module")
def bf16_gguf(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default model's numbers, each rounded to BF16 by llama.cpp."""
    llama = pytest.importorskip("llama_cpp", reason="llama_cpp is not installed").llama_cpp
    path = tmp_path_factory.mktemp("bf16") / "bf16.gguf"
    wanted = llama.llama_model_quantize_default_params()
    wanted.ftype = llama.LLAMA_FTYPE_MOSTLY_BF16
    wanted.allow_requantize = True
    assert llama.llama_model_quantize(str(smollm2_path).encode(), str(path).encode(), wanted) == 0
    return path


def compared(
    load_model: LoadModel, smollm2_path: Path, gguf: Path, directory: Path, count: int
) -> tuple[float, float]:
    """The share of ``count`` positions with the same pick, and the mean distance of logits."""
    write_checkpoint(smollm2_path, directory)
    rows = []
    tokens: list[int] = []
    for backend, file in (("llama.cpp", gguf), ("mlx", directory / "model.safetensors")):
        runner = load_model(file, backend=backend, n_ctx=count, ubatch=count, threads=2)
        found = runner.tokenize(TEXT.read_text(), add_special=False, parse_special=False)[:count]
        assert tokens in ([], found)
        tokens = found
        wanted = [BatchItem(runner.new_sequence(), tokens, "all")]
        rows.append(runner.forward(wanted).numpy().copy())
        runner.close()
    picks = [each.argmax(axis=1) for each in rows]
    return float((picks[0] == picks[1]).mean()), float(np.abs(rows[0] - rows[1]).mean())


def test_picks_and_logits_are_llama_cpps(
    load_model: LoadModel, smollm2_path: Path, bf16_gguf: Path, tmp_path: Path
) -> None:
    same, distance = compared(load_model, smollm2_path, bf16_gguf, tmp_path, 32)

    assert same >= 31 / 32
    # Of logits that lie 3 to 4 apart; with rows of q and k turned wrongly it is above 1.
    assert distance < 0.1


@pytest.mark.long
def test_256_picks_are_llama_cpps(
    load_model: LoadModel, smollm2_path: Path, bf16_gguf: Path, tmp_path: Path
) -> None:
    same, _ = compared(load_model, smollm2_path, bf16_gguf, tmp_path, 256)

    assert same >= 0.99
