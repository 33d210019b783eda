"""Builders for tests that run the mock model in a real child process."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from localrun.engine.request import GenerationRequest, SamplingParams
from localrun.plan.plan import Execution, Plan
from tests.plans import bare_plan

LOADER = "tests.mock_runner:load"
ROOT = Path(__file__).parent.parent


def plan(ref: str, *, n_ctx: int = 4096) -> Plan:
    """A plan whose ref says what the mock model does: see ``tests.mock_runner``."""
    execution = Execution(
        n_ctx=n_ctx,
        ubatch=512,
        kv_type="f16",
        threads=1,
        threads_max=1,
        mmap=False,
        gpu_layers=0,
    )
    return bare_plan(execution, ref=ref, architecture="mock", backend="mock")


def request(prompt: str = "hello", **fields: object) -> GenerationRequest:
    values: dict[str, object] = {
        "id": "r",
        "prompt": tuple(prompt.encode()),
        "sampling": SamplingParams(temperature=0),
    }
    return GenerationRequest(**(values | fields))  # type: ignore[arg-type]  # a builder of tests


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a child, which does not look into the current directory, import ``tests``."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def abort(plan: Plan) -> NoReturn:
    """A loader whose library aborts."""
    sys.stderr.write(f"{plan.ref}: last words\n")
    sys.stderr.flush()
    os.abort()


def never(plan: Plan) -> NoReturn:
    """A loader that does not come back."""
    while True:
        signal.pause()
