"""Benchmarks that fill memory and disks: limits that hold, caches that are told of, no litter."""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from localrun.errors import UsageError

BENCH = str(Path(__file__).parents[2] / "bench")
MIB = 1 << 20
LIMIT = 160 * MIB
TAKES = "held = b'x' * (int({0}) << 20); print('done')"
READS = "import sys; file = open(sys.argv[1], 'rb')\nwhile file.read(1 << 20): pass\nprint('done')"


def bench(name: str) -> ModuleType:
    if BENCH not in sys.path:
        sys.path.append(BENCH)
    return import_module(name)


@pytest.mark.parametrize("grouped", [True, False])
def test_a_command_that_takes_more_than_its_limit_is_ended(grouped: bool) -> None:
    module = bench("confined")
    small, large = (
        module.confined(
            [sys.executable, "-c", TAKES.format(size) + "; import time; time.sleep(0.3)"],
            LIMIT,
            timeout=60,
            grouped=grouped,
        )
        for size in (60, 400)
    )

    assert (small.code, small.out, small.killed) == (0, "done\n", False)
    assert 60 * MIB < small.resident < LIMIT
    assert 60 * MIB < small.own < LIMIT
    assert large.code == -signal.SIGKILL
    assert large.killed


def test_a_file_that_is_read_fills_no_limit(tmp_path: Path) -> None:
    """What lies in the page cache is dropped, not counted against anybody's life."""
    module = bench("confined")
    with module.group(LIMIT) as made:
        if made is None:
            pytest.skip("no control group can be made here")
    file = tmp_path / "large"
    file.write_bytes(bytes(3 * LIMIT))
    bench("page_cache").drop([file])
    found = module.confined([sys.executable, "-c", READS, str(file)], LIMIT, timeout=60)

    assert (found.code, found.out, found.killed) == (0, "done\n", False)
    assert found.charged > LIMIT * 3 // 4
    assert found.own < LIMIT // 2


def test_a_command_that_takes_too_long_is_ended_and_its_group_with_it() -> None:
    module = bench("confined")
    with pytest.raises(TimeoutError):
        module.confined(["sleep", "60"], LIMIT, timeout=0.2)

    assert not list(module.GROUPS.glob(f"*/localrun-bench-{os.getpid()}-*"))


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells")
def test_what_is_cached_of_a_file_is_told_and_can_be_dropped(tmp_path: Path) -> None:
    module = bench("page_cache")
    file = tmp_path / "file"
    file.write_bytes(os.urandom(3 * MIB + 5))
    assert module.cached([file]) == 3 * MIB + 4096
    module.drop([file])
    assert module.cached([file]) == 0
    with file.open("rb", buffering=0) as opened:
        opened.read(4096)

    assert 4096 <= module.cached([file]) < 3 * MIB


def test_a_scratch_directory_is_gone_however_its_use_ends(tmp_path: Path) -> None:
    module = bench("scratch")

    def interrupted() -> None:
        with module.scratch(tmp_path, 10) as place:
            (place / "weights").write_bytes(b"x")
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        interrupted()

    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_refused_with_the_bytes_that_are_needed(tmp_path: Path) -> None:
    module = bench("scratch")
    needed = 10**17
    with (
        pytest.raises(UsageError, match=str(needed + module.SPARE)),
        module.scratch(tmp_path, needed),
    ):
        pass

    assert list(tmp_path.iterdir()) == []


def test_time_claimed_by_an_overlap_lies_between_the_longer_part_and_both_together() -> None:
    from localrun.plan.plan import Execution, Plan, PlannedModel, Prediction

    module = bench("streaming")

    def claimed(hidden: float) -> float:
        terms = {"ram dense": 30.0, "ram experts": 10.0, "disk": 60.0, "step": 1.0}
        prediction = Prediction(terms_ms={**terms, "hidden behind computing": -hidden})
        execution = Execution(64, 64, "native", 1, 1, mmap=False, gpu_layers=0)
        plan = Plan(PlannedModel("", ""), "torch", execution, prediction=prediction)
        found: float = module.claimed(plan, computing=2.0, reading=3.0)
        return found

    assert claimed(0.0) == 5.0
    assert claimed(10.0) == 4.5
    assert claimed(60.0) == 3.0
