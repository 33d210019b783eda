"""The soak's model (``soak_answers.py``) as a runner: ``soak_runner:load`` for the engine's child.

It is the mock of the tests without the records that those keep of every step, and says at its end
what the engine left behind.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from soak_answers import LEFT_BEHIND, N_CTX, answer

from localrun.engine.rows import NumpyLogits
from localrun.engine.runner import BatchItem, RunnerStats
from localrun.plan.plan import Plan
from tests.mock_runner import CERTAIN, CONTROL, EOS, VOCABULARY_SIZE, MockRunner, Timeline

SEATS = 4
# Less than the seats could fill: sequences give way to each other and go on later.
N_CELLS = 3 * N_CTX // 2
ASSISTANT = next(token for token, name in CONTROL.items() if name == "<|assistant|>")


class SoakRunner(MockRunner):
    """What comes next follows from the tokens of the sequence alone: a wrong one is a wrong text.

    Where a grammar led away from the answer, all tokens are equally likely.
    """

    def forward(self, batch: Sequence[BatchItem]) -> NumpyLogits:
        for record in (self.forwards, self.truncations, self.threads):
            record.clear()
        return super().forward(batch)

    def _row(self, timeline: Timeline) -> NDArray[np.float32]:
        row = np.zeros(VOCABULARY_SIZE, dtype=np.float32)
        tokens = timeline.tokens
        begin = len(tokens) - tokens[::-1].index(ASSISTANT)
        prompt = bytes(token for token in tokens[:begin] if token < 256).decode()
        reply, said = [*answer(prompt).encode(), EOS], tokens[begin:]
        if len(said) < len(reply) and reply[: len(said)] == said:
            row[reply[len(said)]] = CERTAIN
        return row

    def stats(self) -> RunnerStats:
        held = 4 * sum(len(timeline.tokens) for timeline in self._sequences.values())
        return RunnerStats(memory_bytes={"ram": held}, bytes_read={"ram": 0}, tokens=self._tokens)

    def close(self) -> None:
        super().close()
        print(
            LEFT_BEHIND, self.in_use, "sequences,", len(self.violations), "calls", file=sys.stderr
        )


def load(plan: Plan) -> SoakRunner:
    """For ``EngineProcess``."""
    return SoakRunner(n_ctx=plan.execution.n_ctx, max_sequences=SEATS, n_cells=N_CELLS)
