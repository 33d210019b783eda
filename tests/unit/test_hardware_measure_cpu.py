"""Knows no speed: that measuring ends in time, counts right, and stays within its memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from localrun.hardware import measure_memory as memory
from localrun.hardware.machine import Compute, Speed
from localrun.hardware.measure_cpu import TYPES, Kernels, measure_cpu, timed, usual_rate

MIB = 1 << 20


@dataclass
class Machine:
    """Kernels that take simulated time: a step moves its clock."""

    now: float = 0.0
    prepared: list[str] = field(default_factory=list)
    prepare_s: float = 0.1
    slowdown: float = 1.0

    def clock(self) -> float:
        return self.now

    def taking(self, seconds: float) -> Callable[[], None]:
        def run() -> None:
            self.now += seconds * self.slowdown

        return run

    @contextmanager
    def prepare(self, type: str) -> Iterator[Kernels]:
        self.prepared.append(type)
        self.now += self.prepare_s
        yield Kernels("CPU", 10**9, 5e10, self.taking(0.1), self.taking(0.05), self.taking(0.5))

    def measure(self, seconds: float, types: tuple[str, ...] = TYPES) -> Compute:
        return timed(types, self.prepare, seconds=seconds, cores=4, clock=self.clock)


def test_bytes_and_operations_are_counted_a_second() -> None:
    compute = Machine().measure(25)

    assert compute.cores == 4
    assert set(compute.gemv) == set(compute.core_gemv) == set(compute.prefill) == set(TYPES)
    for type in TYPES:
        assert compute.core_gemv[type].value == pytest.approx(10)
        assert compute.gemv[type].value == pytest.approx(20)
        assert compute.prefill[type].value == pytest.approx(100)
        assert compute.gemv[type].basis == "measured"
        assert compute.gemv[type].source == "ggml, CPU"


@pytest.mark.parametrize("seconds", [12, 25, 60])
def test_measuring_takes_the_time_it_was_given_and_shares_it_out(seconds: float) -> None:
    machine = Machine()
    machine.measure(seconds)

    assert machine.prepared == list(TYPES)
    one_of_each = 0.1 + 0.05 + 0.5
    assert 0.8 * seconds < machine.now <= seconds + one_of_each


def test_on_a_slow_machine_the_types_that_no_time_is_left_for_are_absent() -> None:
    machine = Machine(slowdown=10)  # a type takes 6.6 s at least
    compute = machine.measure(12)

    assert machine.prepared == list(TYPES[:2])
    assert set(compute.gemv) == set(TYPES[:2])
    assert compute.core_gemv[TYPES[0]].value == pytest.approx(1)
    assert machine.now < 12 + 6.7


def test_no_time_at_all_measures_nothing() -> None:
    machine = Machine()

    assert machine.measure(0) == Compute(4)
    assert machine.prepared == []


def test_a_slow_first_run_and_rare_stalls_are_not_what_is_reported() -> None:
    machine = Machine()
    durations = itertools.chain([5.0], itertools.cycle([1.0, 1.0, 1.0, 4.0]))

    def run() -> None:
        machine.now += next(durations)

    assert usual_rate(run, 30, 60, machine.clock) == pytest.approx(30)


def test_one_lucky_run_is_not_what_is_reported() -> None:
    machine = Machine()
    durations = itertools.chain([1.0, 0.1], itertools.repeat(1.0))

    def run() -> None:
        machine.now += next(durations)

    assert usual_rate(run, 30, 10, machine.clock) == pytest.approx(30)


def test_threads_repeat_until_another_step_would_end_late() -> None:
    machine = Machine()
    steps: list[int] = []

    def step(at: int) -> None:
        steps.append(at)
        machine.now += 0.3

    assert memory.rate(step, 1, 6, 1.0, machine.clock) == pytest.approx(20)
    assert steps == [0, 0, 0]
    assert machine.now == pytest.approx(0.9)


def test_what_threads_do_together_is_added_up() -> None:
    done: list[int] = []
    ticks = itertools.count()

    total = memory.rate(done.append, 4, 100, 50, lambda: float(next(ticks)))

    assert set(done) == {0, 1, 2, 3}
    assert 0 < total <= 4 * 100


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers of 4 MiB instead of 256, as on a machine without caches."""
    monkeypatch.setattr(memory, "_SMALLEST", 4 * MIB)
    monkeypatch.setattr(memory, "_A_THREAD", MIB)
    monkeypatch.setattr(memory, "cache_bytes", lambda sys: 0)


@pytest.mark.usefixtures("small")
def test_memory_is_measured_with_one_thread_up_to_all() -> None:
    speeds = memory.measure_memory(3, available=1 << 30, seconds=0)

    assert list(speeds.read) == list(speeds.copy) == [1, 2, 3]
    for speed in (*speeds.read.values(), *speeds.copy.values()):
        assert isinstance(speed, Speed)
        assert 0 < speed.value < 1e5
        assert speed.basis == "measured"


@pytest.mark.usefixtures("small")
def test_a_copy_is_a_copy_of_every_byte_and_reading_looks_at_every_byte() -> None:
    import numpy as np

    source = np.arange(3 * MIB, dtype=np.uint32).view(np.uint8)
    target = np.zeros_like(source)
    share = source.nbytes // 3
    copy = memory._copier(source, target, share)
    for at in range(3):
        copy(at)

    np.testing.assert_array_equal(source, target)

    source.fill(1)
    source[share + share // 2] = 0
    read = memory._reader(source, share)
    assert [read(at) for at in range(3)] == [
        None, source.ctypes.data + share + share // 2, None,
    ]  # fmt: skip


CACHES = {
    # last-level caches, available, threads: bytes streamed
    "an ordinary machine": (32 * MIB, 16 << 30, 8, 256 * MIB),
    "large caches are exceeded fourfold": (384 * MIB, 512 << 30, 16, 1536 * MIB),
    "many threads are each kept busy": (32 * MIB, 512 << 30, 64, 2048 * MIB),
    "an eighth of what is free": (32 * MIB, 1 << 30, 8, 128 * MIB),
    "caches nobody knows": (0, 16 << 30, 8, 256 * MIB),
    "less than the caches would answer": (96 * MIB, 1 << 30, 8, None),
    "next to nothing free": (0, 64 * MIB, 2, None),
}


@pytest.mark.parametrize("case", CACHES)
def test_what_is_streamed_exceeds_the_caches_and_leaves_memory_to_others(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, available, threads, expected = CACHES[case]
    monkeypatch.setattr(memory, "cache_bytes", lambda sys: cache)

    assert memory.streamed_bytes(threads, available) == expected


@pytest.mark.usefixtures("small")
def test_without_room_to_stream_nothing_is_measured() -> None:
    assert memory.measure_memory(2, available=0) == memory.MemorySpeeds()


def lay_out_cache(sys: Path, cpu: int, index: int, level: str, size: str, shared: str) -> None:
    folder = sys / f"devices/system/cpu/cpu{cpu}/cache/index{index}"
    folder.mkdir(parents=True)
    for name, text in (("level", level), ("size", size), ("shared_cpu_list", shared)):
        (folder / name).write_text(f"{text}\n")


def test_every_cache_of_the_last_level_counts_once(tmp_path: Path) -> None:
    for cpu in range(4):
        lay_out_cache(tmp_path, cpu, 0, "1", "32K", str(cpu))
        lay_out_cache(tmp_path, cpu, 3, "3", "32768K", "0-1" if cpu < 2 else "2-3")

    assert memory.cache_bytes(tmp_path) == 64 * MIB


@pytest.mark.parametrize(
    ("level", "size"), [("three", "32M"), ("3", "large"), ("3", ""), ("", "32M"), ("-3", "32M")]
)
def test_a_cache_that_does_not_say_what_it_is_does_not_count(
    tmp_path: Path, level: str, size: str
) -> None:
    lay_out_cache(tmp_path, 0, 2, "2", "2M", "0")
    lay_out_cache(tmp_path, 0, 3, level, size, "0-1")

    assert memory.cache_bytes(tmp_path) == 2 * MIB
    assert memory.cache_bytes(tmp_path / "absent") == 0


@pytest.mark.parametrize(
    ("threads", "counts"),
    [(1, (1,)), (2, (1, 2)), (5, (1, 2, 3, 4, 5)), (16, (1, 2, 3, 4, 6, 8, 12, 16))],
)
def test_few_threads_are_tried_one_by_one_and_many_in_steps(
    threads: int, counts: tuple[int, ...]
) -> None:
    assert memory.thread_counts(threads) == counts


def test_a_machine_without_room_needs_no_library_to_say_that_nothing_was_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "cache_bytes", lambda sys: 0)

    assert measure_cpu(TYPES, 2, seconds=1, cores=2, available=0) == Compute(2)
