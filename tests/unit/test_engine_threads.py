"""Knows no core: the thread tuner on simulated machines, in simulated time."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from localrun.engine.threads import ThreadRange, ThreadTuner

Busy = Callable[[int], int]
"""Busy cores at a step."""


def step_time(threads: int, cores: int, busy: int) -> float:
    """Milliseconds of a decode step that takes 16 on one thread and scales to all cores.

    A thread that shares its core with another program gets half of it at most and makes the rest
    wait at each barrier; the third of quiet speed is what was measured on 2 cores.
    """
    return 16 / threads * (3 if threads > cores - busy else 1)


def simulate(
    tuner: ThreadTuner, cores: int, busy: Busy, steps: int, noise: float = 0, spikes: float = 0
) -> list[float]:
    chance = random.Random(1)
    times = []
    for step in range(steps):
        threads = tuner.decode_threads
        seconds = step_time(threads, cores, busy(step)) * (1 + noise * chance.gauss(0, 1))
        if chance.random() < spikes:
            seconds *= 3
        times.append(seconds)
        assert tuner.observe(threads, seconds) == tuner.decode_threads
    return times


def speed(times: list[float]) -> float:
    return len(times) / sum(times)


def quiet_speed(cores: int) -> float:
    return 1 / step_time(cores, cores, 0)


def never(step: int) -> int:
    return 0


@pytest.mark.parametrize("steps", [64, 128, 512, 4096])
@pytest.mark.parametrize("cores", [2, 4, 16])
@pytest.mark.parametrize("noise", [0, 0.03])
def test_on_a_quiet_machine_trials_cost_at_most_two_percent(
    cores: int, steps: int, noise: float
) -> None:
    times = simulate(ThreadTuner(ThreadRange(cores, cores)), cores, never, steps, noise)

    assert speed(times) >= 0.98 * quiet_speed(cores)


def test_rare_spikes_on_a_quiet_machine_do_not_lower_the_count() -> None:
    tuner = ThreadTuner(ThreadRange(2, 2))
    times = simulate(tuner, 2, never, 4000, noise=0.05, spikes=0.05)
    without = 1 + 2 * 0.05  # what the spikes cost by themselves

    assert speed(times) >= 0.97 * quiet_speed(2) / without


@pytest.mark.parametrize("noise", [0, 0.2])
def test_half_of_quiet_speed_is_kept_with_one_of_two_cores_busy_from_the_start(
    noise: float,
) -> None:
    times = simulate(ThreadTuner(ThreadRange(2, 2)), 2, lambda step: 1, 512, noise)

    assert speed(times[64:]) >= 0.48 * quiet_speed(2)
    assert speed(times) >= 0.46 * quiet_speed(2)


def test_trials_that_cost_fifty_steps_are_rare() -> None:
    tuner = ThreadTuner(ThreadRange(2, 2))
    times = []
    for _ in range(4000):
        threads = tuner.decode_threads
        times.append(16.0 if threads == 1 else 800.0)
        tuner.observe(threads, times[-1])

    assert sum(times[100:]) <= 1.03 * 16.0 * len(times[100:])
    assert times[:100].count(800.0) <= 5


def test_a_neighbour_that_comes_is_noticed_within_eight_steps() -> None:
    tuner = ThreadTuner(ThreadRange(2, 2))
    simulate(tuner, 2, never, 500)
    simulate(tuner, 2, lambda step: 1, 8)

    assert tuner.decode_threads == 1


def test_a_neighbour_that_has_gone_is_noticed_within_the_longest_wait() -> None:
    tuner = ThreadTuner(ThreadRange(2, 2))
    simulate(tuner, 2, lambda step: 1, 2000)
    simulate(tuner, 2, never, 300)

    assert tuner.decode_threads == 2
    assert speed(simulate(tuner, 2, never, 512)) >= 0.97 * quiet_speed(2)


def test_a_neighbour_that_comes_and_goes_leaves_most_of_what_is_possible() -> None:
    def busy(step: int) -> int:
        return step // 400 % 2

    times = simulate(ThreadTuner(ThreadRange(2, 2)), 2, busy, 8000, noise=0.03)
    best = [min(step_time(count, 2, busy(step)) for count in (1, 2)) for step in range(8000)]

    assert speed(times) >= 0.8 * speed(best)


def test_with_four_of_sixteen_cores_busy_it_settles_on_the_other_twelve() -> None:
    tuner = ThreadTuner(ThreadRange(16, 16))
    times = simulate(tuner, 16, lambda step: 4, 400, noise=0.03)

    assert tuner.decode_threads == 12
    assert speed(times[64:]) >= 0.97 / step_time(12, 16, 4)


def test_a_low_start_is_raised_to_the_maximum() -> None:
    tuner = ThreadTuner(ThreadRange(1, 8))
    simulate(tuner, 8, never, 100)

    assert tuner.decode_threads == 8


def test_a_count_that_was_asked_for_is_kept_whatever_a_neighbour_does() -> None:
    tuner = ThreadTuner(ThreadRange(4, 4, minimum=4))
    simulate(tuner, 4, lambda step: 3 if step > 20 else 0, 400)

    assert (tuner.decode_threads, tuner.prefill_threads) == (4, 4)


def test_a_single_count_is_never_left() -> None:
    tuner = ThreadTuner(ThreadRange(1, 1))
    simulate(tuner, 2, lambda step: step % 2, 200)

    assert tuner.decode_threads == 1


def test_steps_that_grow_longer_with_the_context_keep_the_count() -> None:
    tuner = ThreadTuner(ThreadRange(2, 2))
    lowered = 0
    for step in range(4000):
        threads = tuner.decode_threads
        lowered += threads == 1
        tuner.observe(threads, step_time(threads, 2, 0) * (1 + step / 500))

    assert tuner.decode_threads == 2
    assert lowered <= 0.02 * 4000


def test_times_of_another_count_than_asked_for_are_ignored() -> None:
    tuner = ThreadTuner(ThreadRange(2, 2))
    for _ in range(100):
        assert tuner.observe(1, 0.001) == 2


def test_prefill_uses_all_threads_until_cores_are_contended() -> None:
    tuner = ThreadTuner(ThreadRange(2, 2))
    assert tuner.prefill_threads == 2
    simulate(tuner, 2, lambda step: 1, 200)
    assert tuner.prefill_threads == 1
    simulate(tuner, 2, never, 300)
    assert tuner.prefill_threads == 2


def test_prefill_uses_all_threads_where_decode_is_bound_by_memory() -> None:
    tuner = ThreadTuner(ThreadRange(8, 8))
    for _ in range(200):
        threads = tuner.decode_threads
        # Six threads saturate the memory; more only get in each other's way.
        tuner.observe(threads, max(16 / threads, 16 / 6) * (1.15 if threads > 6 else 1))

    assert tuner.decode_threads == 6
    assert tuner.prefill_threads == 8
