"""Builders for tests that run the mock model in a real child process."""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import psutil
import pytest

from localrun.engine.request import GenerationRequest, SamplingParams
from localrun.engine.rows import NumpyLogits
from localrun.engine.runner import BatchItem
from localrun.plan.plan import Execution, Plan
from tests.mock_runner import MockRunner
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


def broken(plan: Plan) -> NoReturn:
    """A loader with an error that is none of ours."""
    raise ZeroDivisionError(plan.ref)


def crowded(plan: Plan) -> NoReturn:
    """A loader in a process that may not grow as much as it wants to."""
    held = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (held + (64 << 20), resource.RLIM_INFINITY))
    raise AssertionError(len(bytearray(1 << 30)))


def batching(plan: Plan) -> MockRunner:
    """Four sequences at once that echo. A step over ``?`` fails: in the prompt, or in the answer to
    ``say``."""

    def say(prompt: str) -> str:
        return "a?b" if prompt == "say" else prompt

    return MockRunner(
        say,
        n_ctx=plan.execution.n_ctx,
        max_sequences=4,
        cursed=ord("?"),
    )


class _Stuck(MockRunner):
    """A forward that never returns, whoever asks; ``alone`` keeps the interpreter to itself."""

    alone = False

    def forward(self, batch: Sequence[BatchItem]) -> NumpyLogits:
        pause = ctypes.PyDLL(None).pause if self.alone else signal.pause
        while True:
            pause()


def stuck(plan: Plan) -> MockRunner:
    return _Stuck(n_ctx=plan.execution.n_ctx)


def stuck_alone(plan: Plan) -> MockRunner:
    runner = _Stuck(n_ctx=plan.execution.n_ctx)
    runner.alone = True
    return runner


class _Mapped(MockRunner):
    """Says ``x`` and reads a mapped file in every forward, as a library reads weights."""

    def __init__(self, plan: Plan) -> None:
        super().__init__("x" * 10_000, n_ctx=plan.execution.n_ctx)
        with open(plan.ref, "rb") as file:
            self._weights = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def forward(self, batch: Sequence[BatchItem]) -> NumpyLogits:
        self.read()
        return super().forward(batch)

    def read(self) -> int:
        return sum(self._weights[:: mmap.PAGESIZE])


def mapped(plan: Plan) -> MockRunner:
    return _Mapped(plan)


def mapping(plan: Plan) -> NoReturn:
    """A loader that reads a mapped file until it is truncated, and says when it has begun."""
    runner = _Mapped(plan)
    Path(f"{plan.ref}.begun").touch()
    while True:
        runner.read()
