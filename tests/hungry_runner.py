"""Knows no weights: a mock runner in a process whose memory is limited, as a container's is."""

from __future__ import annotations

import importlib
import resource
from collections.abc import Sequence

import psutil

from localrun.engine.rows import NumpyLogits
from localrun.engine.runner import BatchItem, ModelRunner
from localrun.plan.plan import Plan
from tests.mock_runner import MockRunner, echo

GREED = 1 << 30


class HungryRunner(MockRunner):
    """Echoes; a step over a comma takes a gibibyte."""

    def forward(self, batch: Sequence[BatchItem]) -> NumpyLogits:
        if any(ord(",") in item.tokens for item in batch):
            bytearray(GREED)
        return super().forward(batch)


def starving(plan: Plan) -> MockRunner:
    """For ``EngineProcess``: from here on the process may grow by half of what a comma takes."""
    _grow_by_at_most(GREED // 2)
    return HungryRunner(echo, n_ctx=plan.execution.n_ctx)


def crowded_llama(plan: Plan) -> ModelRunner:
    """llama.cpp in a process that may grow by as many MiB as ``plan.ref`` says."""
    from localrun.backends.llamacpp.backend import load

    importlib.import_module("llama_cpp")
    _grow_by_at_most(int(plan.ref) << 20)
    return load(plan)


def _grow_by_at_most(size: int) -> None:
    held = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (held + size, resource.RLIM_INFINITY))
