"""Measures planning: `localrun plan` of a 96,085-tensor checkpoint as a whole process, and plan().

    python bench/plan_time.py [--runs N] [--json]

A checkpoint of DeepSeek-V4.1-Flash's real configuration is written with headers only, into a
temporary directory. Printed are the median wall time of the process after one warm-up, and of
`plan()` alone with and without the what-if table. The bounds are 1 s and 50 ms (without it).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from localrun.hardware.profiles import named
from localrun.models import geometries
from localrun.models.describe import describe_config
from localrun.plan.plan import PlanRequest
from localrun.plan.planner import plan
from localrun.plan.search import Candidate, Source

MODEL = "deepseek-v4.1-flash"
MACHINE = "rtx-4090+ddr5-6000x2:128+nvme4"
PROCESS_S, PLAN_S = 1.0, 0.05
WRITER = Path(__file__).parent / "synthetic_checkpoint.py"


def median(run: Callable[[], object], runs: int) -> float:
    """Seconds, after one warm-up."""
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def process(place: Path) -> None:
    """One `localrun plan` of the checkpoint."""
    command = [sys.executable, "-m", "localrun.cli", "plan", str(place), "--machine", MACHINE]
    # No timeout: waiting with one polls, and rounds every time up by as much as 50 ms.
    if subprocess.Popen([*command, "--json"], stdout=subprocess.DEVNULL).wait() != 0:
        raise SystemExit("`localrun plan` failed")


def main() -> int:
    parser = argparse.ArgumentParser(description="Measures planning.")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    spec, machine = describe_config(geometries.geometry(MODEL)), named(MACHINE)
    source = Source(MODEL, (), (Candidate("torch", "the bench", True),))

    def planned(*, explore: bool) -> None:
        plan(spec, machine, PlanRequest(), source, explore=explore)

    alone = median(lambda: planned(explore=False), given.runs)
    explored = median(lambda: planned(explore=True), given.runs)
    with tempfile.TemporaryDirectory() as folder:
        place, config = Path(folder) / "model", Path(folder) / "config.json"
        config.write_text(json.dumps(geometries.geometry(MODEL)), encoding="utf-8")
        writing = [sys.executable, str(WRITER), str(place), "--arch", "deepseek_v41"]
        subprocess.run([*writing, "--config", str(config), "--headers-only"], check=True)
        whole = median(lambda: process(place), given.runs)
    found = {"process_s": whole, "plan_s": alone, "plan_with_what_if_s": explored}
    if given.json:
        print(json.dumps(found))
    else:
        print(
            f"process {whole:.2f} s (bound {PROCESS_S:g}), plan() {alone * 1e3:.0f} ms "
            f"(bound {PLAN_S * 1e3:.0f}), with the what-if table {explored * 1e3:.0f} ms"
        )
    return int(whole > PROCESS_S or alone > PLAN_S)


if __name__ == "__main__":
    sys.exit(main())
