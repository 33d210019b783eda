"""A loader for a child process: writes down what it is told to execute, and refuses some of it.

``RECORD`` names a file that takes one JSON execution a load; the first ``REFUSED`` loads get no
memory for ``NEEDED`` bytes beside the ``HELD`` ones.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from localrun.errors import OutOfMemoryError
from localrun.plan.plan import Plan
from tests.mock_runner import MockRunner

LOADER = "tests.refusing_loader:load"


def load(plan: Plan) -> MockRunner:
    record = Path(os.environ["RECORD"])
    with record.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(plan.execution)) + "\n")
    if len(loads(record)) <= int(os.environ.get("REFUSED", "0")):
        raise OutOfMemoryError(
            "the library did not get its memory",
            tier="ram",
            needed_bytes=int(os.environ.get("NEEDED", "0")),
            held_bytes=int(os.environ.get("HELD", "0")),
        )
    return MockRunner(n_ctx=plan.execution.n_ctx, max_tokens=plan.execution.ubatch)


def loads(record: Path) -> list[Any]:
    """What was loaded so far."""
    return [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]
