"""A runner for a child that counts as one with experts on disk does: so much for each token.

``GATE`` names a pipe: an answer stops after a few tokens until somebody has written to it.
``LATER`` lets its cache shrink while it runs, not before.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from localrun.engine.rows import NumpyLogits
from localrun.engine.runner import BatchItem, ExpertUse, RunnerStats
from localrun.plan.plan import Plan
from tests.mock_runner import MockRunner

LOADER = "tests.counting_loader:load"
NOTE = "the cache of experts shrank"
HELD = {"ram": 5 << 20, "vram:0": 3 << 20}


def counted(tokens: int) -> RunnerStats:
    """A prompt's tokens count like any other: whoever wants an answer's has to look when it begins.

    Of three experts a token one lies on each tier.
    """
    return RunnerStats(
        memory_bytes=HELD,
        bytes_read={},
        tokens=tokens,
        memory_parts={"ram": {"weights": 4 << 20, "kv": 1 << 19, "compute": 1 << 19}},
        forward_s=0.0,
        terms_s={
            "ram dense": 0.001 * tokens,
            "ram experts": 0.002 * tokens,
            "disk": 0.003 * tokens,
        },
        terms_bytes={"ram dense": 1000 * tokens, "ram experts": 500 * tokens, "disk": 700 * tokens},
        experts={tier: ExpertUse(tokens, 500 * tokens) for tier in ("disk", "ram", "vram:0")},
        picks={0: (tokens, 2 * tokens, 0), 3: (0, 0, 3 * tokens)},
        read_ahead=2 * tokens,
        needed=tokens,
        notes=() if "LATER" in os.environ and tokens < 16 else (NOTE,),
    )


class _Gated(MockRunner):
    def forward(self, batch: Sequence[BatchItem]) -> NumpyLogits:
        gate = os.environ.get("GATE")
        if gate and self.count == 5:
            Path(gate).read_bytes()
        return super().forward(batch)


def load(plan: Plan) -> MockRunner:
    told = plan.execution
    return _Gated(
        "an answer of some length",
        n_ctx=told.n_ctx,
        max_tokens=told.ubatch,
        vocabulary_size=8192,
        tells=counted,
    )
