"""Run as a program in a process of its own: reads each file of a directory under a memory limit.

Prints one JSON object: file name → [error class, message, seconds, peak bytes].
"""

from __future__ import annotations

import json
import resource
import sys
import time
import tracemalloc
from pathlib import Path

from localrun.errors import LocalrunError
from localrun.formats.read import read_header
from localrun.models.describe import describe


def attempt(path: Path) -> tuple[str, str]:
    try:
        describe(read_header([path]))
    except LocalrunError as error:
        return type(error).__name__, error.message
    return "", ""


def main(folder: Path) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (2 * 1024**3, 2 * 1024**3))
    report = {}
    for path in sorted(folder.iterdir()):
        times = []
        for _ in range(3):
            start = time.perf_counter()
            kind, message = attempt(path)
            times.append(time.perf_counter() - start)
        tracemalloc.start()
        attempt(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        report[path.stem] = [kind, message, min(times), peak]
    print(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
