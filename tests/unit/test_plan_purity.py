"""Planning does no I/O, imports no backend, and asks a bounded number of questions."""

from __future__ import annotations

import builtins
import io
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from localrun.errors import DoesNotFitError
from localrun.plan import task
from localrun.plan.placement import Assignment
from localrun.plan.plan import PlanRequest
from localrun.plan.planner import plan
from tests.planned import machine_of, planned, source, spec_of

MOST_PLACINGS = 400


@pytest.fixture
def placings(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One entry for each assignment that was worked out."""
    made: list[None] = []
    place: Callable[..., Assignment] = task.place

    def counted(*arguments: Any) -> Assignment:
        made.append(None)
        return place(*arguments)

    monkeypatch.setattr(task, "place", counted)
    return made


def test_planning_opens_nothing_and_connects_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, machine = spec_of("deepseek-v4.1-flash"), machine_of("rtx-4090+ddr5-6000x2:128+nvme4")
    before = plan(spec, machine, PlanRequest(), source("torch"), explore=True)

    def refused(*arguments: Any, **named: Any) -> Any:
        raise AssertionError(f"I/O while planning: {arguments} {named}")

    for module, name in (
        *((builtins, "open"), (io, "open"), (os, "open"), (os, "stat"), (os, "listdir")),
        *((socket, "socket"), (subprocess, "Popen")),
    ):
        monkeypatch.setattr(module, name, refused)
    made = plan(spec, machine, PlanRequest(), source("torch"), explore=True)
    monkeypatch.undo()

    assert made == before


def test_planning_imports_no_backend_and_nothing_heavy() -> None:
    """In a program of its own: this one has imported everything."""
    code = (
        "import sys\n"
        "from tests.planned import planned\n"
        "planned('qwen3-30b-a3b', 'rtx-4090+ddr5-6000x2:64', quant='Q4_K_M')\n"
        "heavy = ('llama_cpp', 'torch', 'numpy', 'pydantic', 'httpx2', 'localrun.backends')\n"
        "print(sorted(name for name in sys.modules if name.startswith(heavy)))\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert told.stdout.strip() == "[]"


def test_the_same_question_has_the_same_answer() -> None:
    for backend in ("llama.cpp", "torch"):
        first, second = (
            planned("deepseek-v2-lite", "rtx-3060-12gb+ddr5-6000x2:64", backend=backend)
            for _ in range(2)
        )
        assert first == second
        assert first.to_json() == second.to_json()


@pytest.mark.parametrize(
    ("model", "quant", "machine", "backend"),
    [
        ("deepseek-v4.1-flash", None, "rtx-4090+ddr5-6000x2:128+nvme4", "torch"),
        ("deepseek-v4-pro", None, "4xrtx-4090+ddr5-6000x8:512+nvme4", "torch"),
        ("llama-3.1-405b", "Q4_K_M", "8xrtx-3090+ddr5-5600x8:512", "llama.cpp"),
        ("qwen3-30b-a3b", "Q4_K_M", "rtx-3060-12gb+ddr5-6000x2:64", "llama.cpp"),
    ],
)
def test_a_plan_takes_few_placings(
    model: str, quant: str | None, machine: str, backend: str, placings: list[None]
) -> None:
    planned(model, machine, quant=quant, backend=backend)
    assert 0 < len(placings) <= MOST_PLACINGS


def test_a_checkpoint_of_96085_tensors_takes_as_few(placings: list[None]) -> None:
    """Its groups are placed, not its tensors."""
    spec = spec_of("deepseek-v4.1-flash")
    assert spec.tensors > 90_000
    assert len(spec.groups) < 1000
    planned("deepseek-v4.1-flash", "rtx-4090+ddr5-6000x2:64+nvme4", backend="torch")
    assert 0 < len(placings) <= MOST_PLACINGS


def test_a_refusal_takes_few_placings_too(placings: list[None]) -> None:
    with pytest.raises(DoesNotFitError):
        planned("deepseek-v3", "rtx-4090+ddr5-5600x2:128", quant="Q4_K_M")
    assert 0 < len(placings) <= 2 * MOST_PLACINGS
