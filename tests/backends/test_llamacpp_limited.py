"""Real weights in a process that may not grow: its parent is told, whatever the library does."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from localrun.engine.process.engine_process import EngineProcess
from localrun.errors import EngineCrashedError, OutOfMemoryError
from localrun.plan.plan import Execution
from tests.engine_child import importable
from tests.plans import bare_plan

__all__ = ["importable"]
pytestmark = [
    pytest.mark.usefixtures("importable"),
    pytest.mark.skipif(not importlib.util.find_spec("llama_cpp"), reason="llama_cpp is missing"),
]
EXECUTION = Execution(8192, 64, "f16", 1, 1, True, gpu_layers=0)


@pytest.mark.parametrize("mebibytes", [16, 150, 300])
async def test_a_load_without_the_memory_it_needs_is_a_typed_error_of_status_503(
    mebibytes: int, smollm2_path: Path
) -> None:
    made = bare_plan(EXECUTION, (str(smollm2_path),), ref=str(mebibytes))
    loader = "tests.hungry_runner:crowded_llama"

    # The first allocations are told; a later one the library answers by an abort.
    with pytest.raises((OutOfMemoryError, EngineCrashedError)) as caught:
        await EngineProcess.start(made, loader=loader, chat_template=None)

    assert caught.value.http_status == 503
    if mebibytes < 200:
        assert isinstance(caught.value, OutOfMemoryError)
