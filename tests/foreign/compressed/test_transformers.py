"""transformers reads our compressed-tensors checkpoints as we do: the same logits, to the bit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

WRITTEN = Path(os.environ.get("COMPRESSED", ".venv-clients/checkpoints"))
TYPES = ("fp8-block", "w4a16", "mxfp4-ct")
# transformers 5.23 multiplies an expert in FP8 by its scales as if each row had one.
MODELS = [
    *(("llama", type) for type in TYPES),
    ("qwen3_moe", "w4a16"),
    ("qwen3_moe", "mxfp4-ct"),
    pytest.param("qwen3_moe", "fp8-block", marks=pytest.mark.xfail(raises=RuntimeError)),
]
# What torch and compressed-tensors warn of is theirs.
pytestmark = pytest.mark.filterwarnings("ignore")


def logits(name: str, **settings: Any) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(WRITTEN / name, **settings)
    tokens = torch.arange(64)[None] * 7 % model.config.vocab_size
    with torch.no_grad():
        return model(tokens).logits.float()


def lost(theirs: Any, ours: Any) -> float:
    return float((theirs - ours).norm() / ours.norm())


@pytest.mark.parametrize(("model", "type"), MODELS)
@pytest.mark.parametrize("floats", ["float32", "bfloat16"])
def test_weights_that_transformers_dequantizes_are_those_of_our_own_reading(
    model: str, type: str, floats: str
) -> None:
    import torch
    from transformers.utils.quantization_config import CompressedTensorsConfig

    ours = logits(f"{model}/{type}/{floats}-numbers", dtype=torch.float32)
    theirs = logits(
        f"{model}/{type}/{floats}",
        dtype=torch.float32,
        quantization_config=CompressedTensorsConfig(dequantize=True),
    )

    assert ours.std() > 0.1
    # With scales in BF16 it multiplies in BF16, which rounds every weight once more, and experts
    # in FP4 are multiplied in BF16 in any case.
    rounded = floats == "bfloat16" or (model, type) == ("qwen3_moe", "mxfp4-ct")
    assert lost(theirs, ours) <= (0.02 if rounded else 0.0)


# fp8-block quantizes the activations of every layer too.
@pytest.mark.parametrize(
    ("type", "most"), [("fp8-block", 0.2), ("w4a16", 0.05), ("mxfp4-ct", 0.05)]
)
def test_a_checkpoint_runs_as_it_is_stored(type: str, most: float) -> None:
    import torch

    ours = logits(f"llama/{type}/bfloat16-numbers", dtype=torch.float32)
    theirs = logits(f"llama/{type}/bfloat16", dtype=torch.bfloat16)

    assert lost(theirs, ours) < most


@pytest.mark.parametrize("type", TYPES)
def test_what_is_quantized_is_what_the_configuration_says(type: str) -> None:
    import json

    from compressed_tensors.quantization import QuantizationConfig
    from safetensors import safe_open

    config = json.loads((WRITTEN / "llama" / type / "bfloat16" / "config.json").read_text())[
        "quantization_config"
    ]
    found = QuantizationConfig.model_validate(config)
    with safe_open(WRITTEN / "llama" / type / "bfloat16" / "model.safetensors", "pt") as file:
        names = set(file.keys())

    layers = {name.rpartition(".")[0] for name in names if name.endswith("_proj.weight_scale")}
    kept = {name.rpartition(".")[0] for name in names if name.endswith("_proj.weight")} - layers
    assert layers
    assert layers.isdisjoint(found.ignore or ())
    assert kept <= set(found.ignore or ())
