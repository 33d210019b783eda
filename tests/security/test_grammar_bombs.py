"""N10: a grammar is a stranger's program too."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from localrun.engine.grammar.child import ADDRESS_SPACE_BYTES
from localrun.errors import GrammarError
from tests.grammar_bombs import BOMBS

ROOT = Path(__file__).parents[2]
SECONDS = 1.2
MIB = 1024 * 1024
# Each is followed so far where it compiles.
STEPS = 40

# A process of its own, so that its memory is that of grammars only.
_DRIVER = """
import json, os, random, resource, sys, time
import numpy as np
from localrun.engine.grammar.compiler import GrammarCompiler
from localrun.engine.request import Grammar
from localrun.errors import GrammarError
from tests.grammar_bombs import BOMBS
from tests.mock_runner import EOS, MockRunner, encode

def drawn(matcher, source):
    bits = np.unpackbits(matcher.mask().view(np.uint8), bitorder="little")
    return int(source.choice(np.flatnonzero(bits)))

def follow(matcher, steps):
    source = random.Random(1)
    for step in range(steps):
        token = drawn(matcher, source)
        if token == EOS or matcher.finished:
            return
        matcher.accept(token)

compiler = GrammarCompiler(MockRunner().vocabulary(), encode)
honest = Grammar("json_schema", '{"type": "object", "properties": {"a": {"maxLength": 65536}}}')
follow(compiler.compile(honest), 5)
unit = 1 if sys.platform == "darwin" else 1024
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
results = {}
for name, grammar in BOMBS.items():
    compiler._trial._warm_child()  # as it is for whoever does not come right behind another bomb
    begun, outcome = time.perf_counter(), "harmless"
    try:
        matcher = compiler.compile(grammar)
        seconds = time.perf_counter() - begun
        follow(matcher, int(sys.argv[1]))
    except GrammarError as error:
        outcome = error.message
        seconds = time.perf_counter() - begun
    alive = compiler.compile(Grammar("regex", f"after {len(results)}"))
    follow(alive, 5)
    results[name] = [seconds, outcome]
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
follow(compiler.compile(honest), 5)
compiler.close()
children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
json.dump({"results": results, "grown": peak - before, "children": children}, sys.stdout)
"""


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    if sys.platform == "win32":
        pytest.skip("measures with the resource module")
    done = subprocess.run(
        [sys.executable, "-c", _DRIVER, str(STEPS)],
        cwd=ROOT,  # where the tests' own modules are found
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_every_bomb_is_refused_or_harmless_and_the_next_grammar_compiles(
    report: dict[str, Any],
) -> None:
    results = report["results"]
    refused = {name for name, (_, outcome) in results.items() if outcome != "harmless"}

    assert set(results) == set(BOMBS)
    assert len(results) >= 24
    assert len(refused) >= 16
    assert all(
        outcome.startswith(f"{BOMBS[name].kind}: ") and len(outcome) < 350
        for name, (_, outcome) in results.items()
        if name in refused
    )


def test_no_bomb_takes_more_than_its_time_and_memory(report: dict[str, Any]) -> None:
    late = {name: took for name, (took, _) in report["results"].items() if took > SECONDS}

    assert late == {}
    assert report["grown"] <= 256 * MIB
    if sys.platform == "linux":
        # What a Python with the library in it takes is not the grammar's.
        assert report["children"] <= ADDRESS_SPACE_BYTES + 64 * MIB


def test_the_walls_of_the_trial_hold_what_the_deadline_would_not_in_time() -> None:
    """Half a gigabyte is asked for in no time."""
    if sys.platform != "linux":
        pytest.skip("the walls that every Linux has")
    walled = (
        "from localrun.engine.grammar.child import set_limits\nset_limits()\nbytearray(2**28)\n"
    )

    done = subprocess.run(
        [sys.executable, "-P", "-c", walled], capture_output=True, text=True, timeout=60
    )

    assert done.returncode == 1
    assert "MemoryError" in done.stderr


_UNWATCHED = """
import localrun.engine.grammar.child as child
child.CPU_SECONDS = 0  # the limit counts in whole seconds: this is the shortest
child.renew_cpu_limit(child.CPU_SECONDS)
while True:
    pass
"""


@pytest.mark.skipif(sys.platform == "win32", reason="a limit of POSIX")
def test_a_trial_that_nobody_watches_ends_by_itself() -> None:
    done = subprocess.run([sys.executable, "-P", "-c", _UNWATCHED], check=False, timeout=60)

    assert done.returncode == -signal.SIGXCPU


def test_a_refused_grammar_is_a_mistake_in_the_request() -> None:
    error = GrammarError("regex", "unclosed group")

    assert (error.http_status, error.exit_code) == (400, 2)
    assert error.message == "regex: unclosed group"
