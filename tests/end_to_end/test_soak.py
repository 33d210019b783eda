"""Eight clients that mix everything and leave at any time, at a server for minutes: see bench/."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parents[2] / "bench"


def soaked(minutes: float) -> dict[str, Any]:
    """What the script tells, which has found nothing wrong."""
    command = [sys.executable, str(BENCH / "soak.py"), f"--minutes={minutes}", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=minutes * 60 + 240)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.mark.timeout(600)
def test_two_minutes_leave_nothing_behind() -> None:
    report = soaked(2)

    tally = report["tally"]
    assert tally["requests"] >= 1000
    assert tally["whole"] > tally["requests"] / 2
    assert set(tally["left"]) == {"unsent", "soon", "head", "first", "later"}
    assert tally["cached"] > 0


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_half_an_hour_leaves_nothing_behind() -> None:
    assert soaked(30)["tally"]["requests"] >= 5000
