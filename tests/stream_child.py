"""Run as a process of its own: decodes with experts that stream, until its cache has shrunk.

    python -m tests.stream_child PLAN.json

Says ``ready`` after some tokens and goes on when it is told anything; at the end prints the notes
of its runner and whether all logits of the same token were the same, as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from localrun.engine.runner import BatchItem
from localrun.plan.plan import Plan

TOKENS = list(range(20, 30))
DEADLINE_S = 60


def main() -> None:
    from localrun.backends.torch.backend import load

    runner = load(Plan.from_json(Path(sys.argv[1]).read_text(encoding="utf-8")))

    def logits() -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        sequence = runner.new_sequence()
        rows = [
            runner.forward([BatchItem(sequence, [token], "last")]).numpy()[0] for token in TOKENS
        ]
        runner.free(sequence)
        return np.stack(rows)

    first, same, rounds = logits(), True, 0
    print("ready", flush=True)
    sys.stdin.readline()
    until = time.monotonic() + DEADLINE_S
    while not runner.stats().notes and time.monotonic() < until:
        same &= np.array_equal(first, logits())
        rounds += 1
    same &= np.array_equal(first, logits())
    notes = runner.stats().notes
    runner.close()
    print(json.dumps({"notes": notes, "same": bool(same), "rounds": rounds}))


if __name__ == "__main__":
    main()
