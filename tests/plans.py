"""Plans for tests that load or pass one on: nothing in them was computed."""

from __future__ import annotations

from collections.abc import Sequence

from localrun.plan.plan import Execution, Plan, PlannedFile, PlannedModel


def bare_plan(
    execution: Execution,
    files: Sequence[str] = (),
    *,
    ref: str = "test",
    architecture: str = "llama",
    backend: str = "llama.cpp",
) -> Plan:
    """A plan of these files and this execution, everything else empty."""
    found = tuple(PlannedFile(path, 0) for path in files)
    return Plan(PlannedModel(ref, architecture, files=found), backend, execution)
