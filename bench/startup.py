"""Measures the start of the command line: `localrun --help` as a whole process.

    python bench/startup.py [--runs N] [--json]

Prints the median wall time over N runs after one warm-up, the interpreter's own start beside it,
and every module of the heavy list that the process loaded (there must be none). The bound is
150 ms (DESIGN section 6); a loaded machine makes both figures larger.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

BOUND_MS = 150
HEAVY = (
    "torch", "mlx", "llama_cpp", "transformers", "huggingface_hub", "textual", "fastapi",
    "uvicorn", "starlette", "httpx2", "jinja2", "numpy", "psutil", "pynvml", "pydantic", "rich",
)  # fmt: skip
HELP = "from localrun.cli.app import execute; execute(['--help'])"
SPY = (
    "import sys, io; sys.stdout = io.StringIO(); " + HELP + "; sys.stdout = sys.__stdout__; "
    "print('\\n'.join(sorted({name.split('.')[0] for name in sys.modules})))"
)


def wall_ms(code: str, runs: int) -> float:
    """Median milliseconds of `python -c code` as a whole process."""
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
        # No timeout: waiting with one polls, and rounds every time up by as much as 50 ms.
        if process.wait() != 0:
            raise SystemExit(f"`python -c {code!r}` failed")
        times.append((time.perf_counter() - start) * 1000)
    return statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    loaded = subprocess.run(
        [sys.executable, "-c", SPY], check=True, capture_output=True, text=True, timeout=30
    ).stdout.split()
    heavy = sorted(set(loaded) & set(HEAVY))
    facts = {
        "help_ms": round(wall_ms(HELP, options.runs), 1),
        "interpreter_ms": round(wall_ms("pass", options.runs), 1),
        "bound_ms": BOUND_MS,
        "heavy_modules": heavy,
        "top_level_modules": len(loaded),
    }
    if options.json:
        print(json.dumps(facts, indent=2))
        return
    print(f"localrun --help   {facts['help_ms']} ms median of {options.runs} (at most {BOUND_MS})")
    print(f"python -c pass    {facts['interpreter_ms']} ms")
    print(f"heavy modules     {', '.join(heavy) or 'none'}")
    print(f"modules           {facts['top_level_modules']} top-level")


if __name__ == "__main__":
    main()
