"""Knows no weights: a mock runner in a process whose memory is limited, as a container's is."""

from __future__ import annotations

import resource
from collections.abc import Sequence

import psutil

from localrun.engine.rows import NumpyLogits
from localrun.engine.runner import BatchItem
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
    held = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (held + GREED // 2, resource.RLIM_INFINITY))
    return HungryRunner(echo, n_ctx=plan.execution.n_ctx)
