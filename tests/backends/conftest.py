"""One loaded default model for this folder's tests, and a way to load another."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from localrun.engine.runner import ModelRunner, SequenceId
from localrun.errors import EngineError
from localrun.plan.plan import Execution, KvType
from tests.plans import bare_plan


@pytest.fixture(scope="session")
def load_model(smollm2_path: Path) -> Callable[..., ModelRunner]:
    """Loads the default model, or the files given, on one thread: a busy machine slows it least."""
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("llama_cpp is not installed")
    from localrun.backends.llamacpp.backend import load

    def load_files(
        *files: Path,
        n_ctx: int = 256,
        ubatch: int = 64,
        kv: KvType = "f16",
        mmap: bool = True,
        parallel: int = 1,
        threads: int = 1,
        flash: bool = True,
    ) -> ModelRunner:
        paths = tuple(str(file) for file in files or (smollm2_path,))
        execution = Execution(
            n_ctx,
            ubatch,
            kv,
            threads,
            threads,
            mmap,
            gpu_layers=0,
            flash_attention=flash,
            parallel=parallel,
        )
        return load(bare_plan(execution, paths))

    return load_files


@pytest.fixture(scope="session")
def shared_runner(load_model: Callable[..., ModelRunner]) -> Iterator[ModelRunner]:
    runner = load_model()
    yield runner
    runner.close()


@pytest.fixture
def runner(shared_runner: ModelRunner) -> Iterator[ModelRunner]:
    """The shared model, with every sequence free again after the test."""
    yield shared_runner
    for at in range(shared_runner.capabilities.max_sequences):
        with suppress(EngineError):
            shared_runner.free(SequenceId(at))
