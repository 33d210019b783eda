"""Knows no measurement: how a benchmark prints what it found and says what it missed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any


def ended(
    report: dict[str, Any],
    missed: Sequence[str],
    show: Callable[[dict[str, Any]], None],
    *,
    as_json: bool,
) -> int:
    """The exit code: 1 where a bound was missed, each of which is named on standard error."""
    if as_json:
        print(json.dumps(report))
    else:
        show(report)
    for line in missed:
        print(f"missed: {line}", file=sys.stderr)
    return 1 if missed else 0
