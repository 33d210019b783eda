"""What mlx says of itself, what it loads, and what it refuses, each with what to do next."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from localrun.backends.mlx import backend as mlx
from localrun.backends.mlx.architectures import MODULES
from localrun.engine.runner import BatchItem, ModelRunner
from localrun.errors import BackendMissingError, EngineError, HeaderError
from localrun.plan.plan import Execution
from tests.plans import bare_plan

LoadModel = Callable[..., ModelRunner]
EXECUTION = Execution(64, 32, "f32", 1, 1, True, gpu_layers=0)


@pytest.fixture
def copy(smollm2_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint of one's own, to be damaged; the weights are a link."""
    made = tmp_path / "model"
    made.mkdir()
    for file in smollm2_checkpoint.iterdir():
        if file.suffix == ".safetensors":
            (made / file.name).symlink_to(file)
        else:
            shutil.copy(file, made / file.name)
    return made


def load(directory: Path) -> ModelRunner:
    weights = sorted(directory.glob("*.safetensors"))
    return mlx.load(bare_plan(EXECUTION, [str(file) for file in weights], backend="mlx"))


def rewrite(directory: Path, **changes: Any) -> None:
    """config.json with other fields; None leaves one out."""
    path = directory / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: item for key, item in config.items() if item is not None}))


@pytest.mark.parametrize("name", ["mlx", "mlx_lm", "tokenizers"])
def test_an_absent_library_is_named_with_the_command_that_installs_it(
    name: str, monkeypatch: pytest.MonkeyPatch, copy: Path
) -> None:
    real = mlx.find_spec
    monkeypatch.setattr(mlx, "find_spec", lambda wanted: None if wanted == name else real(wanted))
    report = mlx.probe()

    assert not report.installed
    assert name.replace("_", "-") in str(report.problem)
    with pytest.raises(BackendMissingError, match=name.replace("_", "-")) as caught:
        load(copy)
    assert caught.value.hint == report.install
    words = shlex.split(report.install)
    assert words[1:4] == ["-m", "pip", "install"]
    assert words[4:] == ["mlx==0.32.4" if sys.platform == "darwin" else "mlx[cpu]==0.32.4",
                         "mlx-lm==0.32.2"]  # fmt: skip


def test_the_installed_library_shows_its_device() -> None:
    pytest.importorskip("mlx_lm", reason="mlx_lm is not installed")
    report = mlx.probe()

    assert report.problem is None
    assert report.version == "0.32.2 on mlx 0.32.4"
    assert report.optional == (sys.platform != "darwin")
    assert [device.kind for device in report.devices] == ["gpu" if report.has_gpu else "cpu"]


FRESH = """
import sys
from localrun.backends.mlx import library
library.model_module("llama")
print(*(name for name in ("mlx_lm", "transformers", "torch") if name in sys.modules))
import mlx_lm
print(mlx_lm.__version__, callable(mlx_lm.load))
"""


def test_a_models_class_is_loaded_without_what_the_package_would_bring() -> None:
    pytest.importorskip("mlx_lm", reason="mlx_lm is not installed")
    command = [sys.executable, "-W", "ignore", "-c", FRESH]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)

    assert done.stdout.splitlines() == ["", "0.32.2 True"]


def test_the_model_types_are_those_of_the_library() -> None:
    package = pytest.importorskip("mlx_lm", reason="mlx_lm is not installed")
    from mlx_lm.utils import MODEL_REMAPPING

    folder = Path(package.__file__).parent / "models"
    held = {path.stem for path in folder.glob("*.py") if "ModelArgs" in path.read_text()}

    assert MODULES.items() >= MODEL_REMAPPING.items()
    assert set(MODULES.values()) <= held
    shared = {"base", "pipeline", "Klear"}
    assert held - set(MODULES.values()) <= shared


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a model nobody wrote": ({"model_type": "nosuch"}, "no model of type 'nosuch'"),
    "a module that is no model": ({"model_type": "cache"}, "no model of type 'cache'"),
    "a path for a type": ({"model_type": "../x"}, "no model of type '../x'"),
    "no type": ({"model_type": None}, "no model of type 'None'"),
    "a number left out": ({"hidden_size": None}, "no 'llama' can be built of it: .*hidden_size"),
    "a text for a number": ({"hidden_size": "wide"}, "no 'llama' can be built of it"),
    "another width": ({"intermediate_size": 1024}, "its tensors are not those of a 'llama'"),
    "more layers than there are": ({"num_hidden_layers": 3}, "are not those of a 'llama'"),
    "another's quantization": (
        {"quantization_config": {"quant_method": "awq", "bits": 4}},
        "quantized as 'awq'",
    ),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_configuration_that_is_not_the_models_is_refused_by_name(
    changes: dict[str, Any], message: str, copy: Path
) -> None:
    rewrite(copy, **changes)

    with pytest.raises(EngineError, match=message) as caught:
        load(copy)
    assert caught.value.hint != EngineError.hint


def test_code_that_a_checkpoint_brings_is_not_run(copy: Path, tmp_path: Path) -> None:
    proof = tmp_path / "it ran"
    (copy / "model.py").write_text(f"open({str(proof)!r}, 'w')\n")
    rewrite(copy, model_file="model.py", auto_map={"AutoModel": "model.Model"})

    load(copy).close()

    assert not proof.exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_file_that_is_needed_and_absent_is_named(name: str, copy: Path) -> None:
    (copy / name).unlink()

    with pytest.raises(EngineError, match=f"no {name}") as caught:
        load(copy)
    assert "whole directory" in caught.value.hint


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json"])
def test_a_damaged_file_of_text_is_a_header_error(name: str, copy: Path) -> None:
    (copy / name).write_text('{"model_type": "llama", ')

    with pytest.raises(HeaderError, match=name.replace(".", r"\.")):
        load(copy)


@pytest.mark.parametrize("kept", [0, 7, 5000, -1], ids=["nothing", "no header", "half", "a byte"])
def test_torn_weights_are_a_header_error(kept: int, copy: Path) -> None:
    path = copy / "model.safetensors"
    size = path.stat().st_size
    with path.open("rb") as source:
        torn = source.read(kept if kept >= 0 else size + kept)
    path.unlink()
    path.write_bytes(torn)

    with pytest.raises(HeaderError, match=r"model\.safetensors"):
        load(copy)


def test_a_type_of_cache_that_mlx_has_not_is_refused(load_model: LoadModel) -> None:
    with pytest.raises(EngineError, match="--kv-type q8_0"):
        load_model(backend="mlx", kv="q8_0")


MODES = {"affine 4": (64, 4, "affine"), "affine 8": (32, 8, "affine"), "mxfp4": (32, 4, "mxfp4")}


@pytest.mark.parametrize(("group", "bits", "mode"), MODES.values(), ids=MODES.keys())
def test_quantized_weights_are_told_by_their_tensors(
    group: int, bits: int, mode: str, smollm2_checkpoint: Path, copy: Path
) -> None:
    """And they say nearly what the weights said that they were made of."""
    mx = pytest.importorskip("mlx.core", reason="mlx is not installed")
    weights = dict(mx.load(str(smollm2_checkpoint / "model.safetensors")))
    for name in [name for name, array in weights.items() if array.ndim == 2]:
        words, *beside = mx.quantize(weights[name], group_size=group, bits=bits, mode=mode)
        weights[name] = words
        for part, array in zip(("scales", "biases"), beside, strict=False):
            weights[f"{name.removesuffix('weight')}{part}"] = array
    (copy / "model.safetensors").unlink()
    mx.save_safetensors(str(copy / "model.safetensors"), weights, {"format": "mlx"})

    rows = []
    for directory in (smollm2_checkpoint, copy):
        runner = load(directory)
        row = runner.forward([BatchItem(runner.new_sequence(), [504, 3575, 282])]).numpy()[0]
        rows.append((row - row.mean()) / row.std())
        runner.close()

    assert (rows[0] * rows[1]).mean() > (0.99 if bits == 8 else 0.8)
