"""Every byte of what ``localrun quantize`` writes is llama.cpp's own, and runs as its file does.

The chain: what is written in floats is what llama.cpp's converter writes (recorded by
`make test-oracle`), and each type is what ``llama_model_quantize`` makes of those floats.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from localrun.cli.app import execute as command
from localrun.engine.embeddings import EmbeddingJob
from localrun.engine.request import EmbeddingRequest
from localrun.engine.runner import ModelRunner
from localrun.evaluate.divergence import compare_with_saved
from localrun.evaluate.logits_file import LogitsWriter, open_logits
from localrun.evaluate.perplexity import perplexity
from localrun.evaluate.statistics import Divergence
from localrun.evaluate.windows import TextWindows, cut
from localrun.plan.plan import Execution
from tests.encoders import POOLING, Encoder, write_checkpoint
from tests.foreign.oracle import recorded
from tests.plans import bare_plan
from tests.quantized import SIX, by_llama_cpp, by_us, keys, shortened, tensors

pytest.importorskip("llama_cpp", reason="llama_cpp is not installed")

PROSE = Path(__file__).parents[1] / "prose.txt"
BENCH = str(Path(__file__).parents[2] / "bench")
N_CTX = 128
LAYERS = 2
# Of sentence-transformers' MiniLM, whose rows are no whole blocks of 256 either.
MINILM = Encoder(width=384, heads=12, ffn=1536, vocabulary=256)
Load = Callable[..., ModelRunner]


@dataclass(frozen=True)
class Made:
    """Our files by type; ``floats`` is the one that has the checkpoint's own numbers."""

    floats: Path
    files: Mapping[str, Path]
    theirs: Path


def made(checkpoint: Path, place: Path, floats: str = "BF16") -> Made:
    theirs = place / f"theirs-{checkpoint.name}"
    theirs.mkdir()
    types = list(dict.fromkeys((*SIX, floats)))
    files = by_us(checkpoint, place / f"ours-{checkpoint.name}", types)
    return Made(files[floats], files, theirs)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Every file here is removed at the end: they are large."""
    folder = tmp_path_factory.mktemp("equal")
    yield folder
    for path in folder.rglob("*.gguf"):
        path.unlink()


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path, place: Path) -> Made:
    """The first layers of SmolLM2, which our own tool made floats of: rows of 576."""
    return made(shortened(smollm2_path, place / "smollm2", LAYERS), place)


@pytest.fixture(scope="module")
def dense(place: Path) -> Made:
    """A random model of heavy-tailed weights, whose rows are whole blocks of 256."""
    synthetic(place / "dense", "llama")
    return made(place / "dense", place)


@pytest.fixture(scope="module")
def experts(place: Path) -> Made:
    """A random mixture of experts, which MXFP4 is for."""
    synthetic(place / "experts", "qwen3_moe")
    return made(place / "experts", place)


@pytest.fixture(scope="module")
def encoder(place: Path) -> Made:
    """A BERT of MiniLM's widths, stored as F32."""
    pooling = {**POOLING, "word_embedding_dimension": MINILM.width}
    files = {"1_Pooling/config.json": pooling}
    return made(write_checkpoint(place / "encoder", MINILM, files=files), place, "F32")


def synthetic(folder: Path, arch: str) -> None:
    if BENCH not in sys.path:
        sys.path.append(BENCH)
    config = import_module("synthetic_configs").base(arch)
    import_module("synthetic_checkpoint").write(folder, config, 0, False, heavy_tailed=True)


@pytest.fixture
def model(request: pytest.FixtureRequest) -> Made:
    found: Made = request.getfixturevalue(request.param)
    return found


every_model = pytest.mark.parametrize(
    "model", ["smollm2", "dense", "experts", "encoder"], indirect=True
)
every_type = pytest.mark.parametrize("mixture", SIX)


def their(found: Made, mixture: str) -> Path:
    """llama.cpp's file; made when it is first asked for."""
    out = found.theirs / f"{mixture}.gguf"
    return out if out.exists() else by_llama_cpp(found.floats, out, mixture)


def require_equal(ours: Path, theirs: Path) -> None:
    assert tensors(ours) == tensors(theirs)
    assert keys(ours) == keys(theirs)
    assert ours.stat().st_size == theirs.stat().st_size


@every_model
@every_type
def test_each_type_is_what_llama_cpp_makes_of_the_floats(model: Made, mixture: str) -> None:
    require_equal(model.files[mixture], their(model, mixture))


@pytest.mark.parametrize("model", ["smollm2", "dense"], indirect=True)
def test_a_type_that_is_asked_for_by_name_is_llama_cpps_too(model: Made, place: Path) -> None:
    """What is no expert becomes MXFP4 so alone."""
    source = place / model.floats.parent.name.removeprefix("ours-")
    out, flag = place / f"named-{source.name}", "ffn_(gate|up)=MXFP4"

    files = by_us(source, out, ["Q4_K_M", "Q6_K"], "--tensor-type", flag)

    for mixture, ours in files.items():
        theirs = place / f"theirs-{ours.name}"
        require_equal(ours, by_llama_cpp(model.floats, theirs, mixture, [flag]))
        kinds = [kind for name, (kind, _, _) in tensors(ours).items() if "ffn_up" in name]
        assert set(kinds) == {"MXFP4"}


def test_the_floats_of_smollm2_are_those_of_llama_cpps_converter(smollm2: Made) -> None:
    assert recorded.summary(smollm2.floats) == recorded.read(recorded.MODELS)["smollm2"]


@pytest.mark.parametrize("model", ["smollm2", "dense", "experts"], indirect=True)
@every_type
def test_the_file_predicts_a_text_as_llama_cpps_does(
    model: Made, mixture: str, load_model: Load
) -> None:
    ours = predicted(model.files[mixture], load_model)
    theirs = predicted(their(model, mixture), load_model)

    assert ours == pytest.approx(theirs, rel=1e-3)


def predicted(path: Path, load_model: Load) -> float:
    """The perplexity of two windows of prose."""
    with closing(load_model(path, n_ctx=N_CTX, ubatch=N_CTX)) as runner:
        return perplexity(runner, prose(runner, 2)).perplexity.value


def prose(runner: ModelRunner, windows: int | None = None) -> TextWindows:
    text = PROSE.read_text(encoding="utf-8").removesuffix("\n")
    return cut(runner.tokenize(text, add_special=True, parse_special=False), N_CTX, windows)


@every_type
def test_an_encoders_file_embeds_a_text_as_llama_cpps_does(encoder: Made, mixture: str) -> None:
    ours, theirs = (embedded(path) for path in (encoder.files[mixture], their(encoder, mixture)))

    np.testing.assert_array_equal(ours, theirs)
    assert np.linalg.norm(ours) == pytest.approx(1, abs=1e-3)


def embedded(path: Path) -> NDArray[np.float32]:
    from localrun.backends.llamacpp.backend import load

    plan = bare_plan(Execution(32, 32, "f16", 1, 1, True, gpu_layers=0), [str(path)])
    with closing(load(replace(plan, model=replace(plan.model, architecture="bert")))) as runner:
        tokens = tuple(runner.tokenize("the cat sat.", add_special=True, parse_special=False))
        size = len(runner.vocabulary().tokens)
        job = EmbeddingJob(
            EmbeddingRequest("e", (tokens,)), runner.capabilities, vocabulary_size=size
        )
        while not job.step(runner):
            pass
        return job.vectors


@pytest.mark.long
def test_the_whole_of_smollm2_diverges_as_llama_cpps_files_do(
    smollm2_path: Path, place: Path, load_model: Load, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = place / "whole"
    arguments = ["quantize", str(smollm2_path), str(checkpoint), "--type", "safetensors-bf16"]
    assert command(arguments) == 0
    capsys.readouterr()

    whole = made(checkpoint, place)

    assert "180 of 272 tensors fall back, since their rows of 576" in capsys.readouterr().err
    assert recorded.summary(whole.floats) == recorded.read(recorded.MODELS)["whole"]
    logits = place / "whole.kld"
    with closing(load_model(whole.floats, n_ctx=N_CTX, ubatch=N_CTX)) as runner:
        windows = prose(runner)
        with logits.open("wb") as file:
            perplexity(runner, windows, writer=LogitsWriter(file, logits, windows))
    for mixture in SIX:
        require_equal(whole.files[mixture], their(whole, mixture))
        ours = diverged(whole.files[mixture], logits, load_model)
        theirs = diverged(their(whole, mixture), logits, load_model)
        assert abs(ours.kld.value - theirs.kld.value) <= ours.kld.stderr, mixture
        ratio = ours.perplexity.value / theirs.perplexity.value
        assert ratio == pytest.approx(1, abs=1e-3), mixture
        assert (ours.kld.value > 1e-4) == (mixture != "BF16"), mixture


def diverged(path: Path, logits: Path, load_model: Load) -> Divergence:
    with (
        closing(load_model(path, n_ctx=N_CTX, ubatch=N_CTX)) as runner,
        open_logits(logits) as reference,
    ):
        return compare_with_saved(reference, runner, reference)


@pytest.mark.long
def test_the_whole_of_minilm_is_llama_cpps_in_each_type(
    minilm_checkpoint: Path, place: Path
) -> None:
    checkpoint = place / "minilm"
    checkpoint.symlink_to(minilm_checkpoint)

    whole = made(checkpoint, place, "F32")

    written = recorded.summary(whole.files["BF16"])["tensors"]
    assert written == recorded.read(recorded.MODELS)["minilm"]["tensors"]
    for mixture in SIX:
        require_equal(whole.files[mixture], their(whole, mixture))
