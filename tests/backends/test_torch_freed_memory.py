"""What one step gives back the next one takes, without asking the system for empty pages."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are"
)

# Blocks of the size of a step's: above what glibc maps singly by itself, and given back at once.
_CHILD = """
import resource, torch
from localrun.backends.torch import library
{prepare}
def steps(count):
    for _ in range(count):
        torch.empty(6 << 20, dtype=torch.uint8).fill_(1)
steps(20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
steps(50)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(prepare: str) -> int:
    # Left to itself glibc raises its thresholds as blocks are freed, which hides what is told here.
    code = _CHILD.format(prepare=prepare)
    env = {"MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_MMAP_THRESHOLD_": "131072"}
    made = subprocess.run(
        [sys.executable, "-c", code],
        env=env,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return int(made.stdout)


def test_blocks_that_steps_give_back_are_kept_for_the_next_ones() -> None:
    assert _faults("library.keep_freed_memory()") < 50


def test_without_that_every_step_gets_its_pages_anew() -> None:
    assert _faults("") > 1000
