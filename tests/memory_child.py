"""Run as a process of its own: loads models, fills their context, and prints what that took.

    python -m tests.memory_child CASES.json

CASES are [path, context, ubatch, KV type]; for each a line [VmHWM over what was there before the
load, bytes that the library logged] is printed.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

from localrun.backends.llamacpp.backend import load
from localrun.engine.runner import BatchItem
from localrun.plan.plan import Execution
from tests.plans import bare_plan


def status(name: str) -> int:
    """Bytes of a line of /proc/self/status, there in kB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


def take(path: str, execution: Execution) -> tuple[int, int]:
    gc.collect()
    # Makes VmHWM what is resident now (proc(5)).
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = status("VmRSS")
    runner = load(bare_plan(execution, [path]))
    sequence = runner.new_sequence()
    for start in range(0, execution.n_ctx, execution.ubatch):
        count = min(execution.ubatch, execution.n_ctx - start)
        runner.forward([BatchItem(sequence, [1 + at % 50 for at in range(count)])])
    peak = status("VmHWM")
    logged = sum(runner.stats().memory_bytes.values())
    runner.close()
    return peak - before, logged


def main() -> None:
    cases = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    for number, (path, n_ctx, ubatch, kv) in enumerate([cases[0], *cases]):
        execution = Execution(n_ctx, ubatch, kv, 1, 1, True, gpu_layers=0)
        taken = take(path, execution)
        if number:  # the first load also brings in modules and libraries
            print(json.dumps(taken), flush=True)


if __name__ == "__main__":
    main()
