"""When memory is called short, on files as kernels write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from localrun.hardware.pressure import Level, Pressure, Room, Sample, judge

MIB, GIB = 1 << 20, 1 << 30
MEMINFO = """\
MemTotal:       24684092 kB
MemFree:          695580 kB
MemAvailable:   {available:8d} kB
Buffers:           46476 kB
HugePages_Total:       0"""
STAT = "25328 (a) b) R 25278 25278 3591 0 -1 4194304 124 0 {faults} 0 0 0"
PSI = """\
some avg10=0.00 avg60=1.76 avg300=13.96 total={some}
full avg10=0.00 avg60=0.48 avg300=4.40 total={full}"""
PLENTY, SCARCE, NOTHING = 20 << 20, 2 << 20, 100 << 10


class Machine:
    """A /proc and a /sys that the test writes."""

    def __init__(self, root: Path) -> None:
        self.proc, self.sys, self.now = root / "proc", root / "sys", 0.0

    def lay(self, place: str, text: str) -> None:
        path = self.proc.parent / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")

    def at(
        self,
        seconds: float,
        *,
        available: int = PLENTY,
        faults: int = 0,
        some: int = 0,
        full: int = 0,
    ) -> None:
        """Kilobytes available, pages read back ever, microseconds waited ever."""
        self.now = seconds
        self.lay("proc/meminfo", MEMINFO.format(available=available))
        self.lay("proc/self/stat", STAT.format(faults=faults))
        self.lay("proc/pressure/memory", PSI.format(some=some, full=full))

    def pressure(self) -> Pressure:
        return Pressure(self.proc, self.sys, lambda: self.now)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path)
    machine.at(0.0)
    return machine


@pytest.mark.parametrize(
    ("after", "said"),
    [
        ({"available": PLENTY}, None),
        # A program that starts, and another group at a limit of its own.
        ({"available": PLENTY, "faults": 4000}, None),
        ({"available": PLENTY, "some": 1_500_000, "full": 900_000}, None),
        # Full to the planned brim, and quiet.
        ({"available": SCARCE, "faults": 60, "some": 150_000, "full": 50_000}, None),
        ({"available": SCARCE, "faults": 200}, "100 pages a second"),
        ({"available": SCARCE, "some": 300_000}, "15% of the time something in this machine"),
        ({"available": SCARCE, "some": 300_000, "full": 200_000}, "10% of the time everything"),
        ({"available": NOTHING}, "this machine has 100 MiB of memory left"),
    ],
)
def test_memory_is_short_when_it_is_waited_for_or_nearly_gone(
    machine: Machine, after: dict[str, int], said: str | None
) -> None:
    pressure = machine.pressure()

    machine.at(2.0, **after)
    found = pressure.sample()

    assert found is None if said is None else said in (found or "")


def test_only_what_was_added_since_the_last_look_counts(machine: Machine) -> None:
    machine.at(0.0, available=SCARCE, faults=9000, some=10**9, full=10**9)
    pressure = machine.pressure()
    machine.at(1.0, available=SCARCE, faults=9001, some=10**9, full=10**9)
    assert pressure.sample() is None
    machine.at(2.0, available=SCARCE, faults=9101, some=10**9, full=10**9)
    assert pressure.sample()
    # In between it repeats itself and asks nobody.
    machine.at(2.5, available=PLENTY, faults=9101, some=10**9, full=10**9)
    assert pressure.sample()
    machine.at(3.0, available=SCARCE, faults=9101, some=10**9, full=10**9)
    assert pressure.sample() is None


GROUPS = {
    "v2": {
        "proc/self/cgroup": "0::/a/b",
        "sys/fs/cgroup/a/b/memory.max": "max",
        "sys/fs/cgroup/a/memory.max": str(4 * GIB),
        "sys/fs/cgroup/a/memory.current": "{used}",
        "sys/fs/cgroup/a/memory.stat": "anon 1\ninactive_file {idle}\nactive_file {active}",
        "sys/fs/cgroup/a/memory.pressure": PSI,
    },
    "v1": {
        "proc/self/cgroup": "4:memory:/a\n3:cpu,cpuacct:/a",
        "sys/fs/cgroup/memory/a/memory.limit_in_bytes": str(4 * GIB),
        "sys/fs/cgroup/memory/a/memory.usage_in_bytes": "{used}",
        "sys/fs/cgroup/memory/a/memory.stat": (
            "inactive_file 1\ntotal_inactive_file {idle}\ntotal_active_file {active}"
        ),
    },
}


@pytest.mark.parametrize("version", GROUPS)
@pytest.mark.parametrize(
    ("used", "idle", "active", "said"),
    [
        (GIB, 0, 0, None),
        # Idle cache and half of what is in use can still be had.
        (4 * GIB, 40 * MIB, 48 * MIB, None),
        (4 * GIB, 40 * MIB, 0, "this process's control group has 40 MiB of memory left"),
        (4 * GIB - MIB, 0, 6 * MIB, "has 4 MiB"),
    ],
)
def test_a_control_group_is_short_of_memory_where_the_machine_is_not(
    machine: Machine, version: str, used: int, idle: int, active: int, said: str | None
) -> None:
    for place, text in GROUPS[version].items():
        machine.lay(place, text.format(used=used, idle=idle, active=active, some=0, full=0))
    pressure = machine.pressure()

    machine.at(1.0)
    found = pressure.sample()

    assert found is None if said is None else said in (found or "")


def test_a_control_group_that_waits_while_little_is_left_is_short(machine: Machine) -> None:
    facts = {"used": 4 * GIB - 200 * MIB, "idle": 0, "active": 0}
    for place, text in GROUPS["v2"].items():
        machine.lay(place, text.format(**facts, some=0, full=0))
    pressure = machine.pressure()

    machine.lay("sys/fs/cgroup/a/memory.pressure", PSI.format(some=900_000, full=0))
    machine.at(1.0)

    assert "90% of the time something in this process's" in (pressure.sample() or "")


def test_where_room_is_not_told_waiting_alone_counts() -> None:
    def sample(seconds: float, some: float | None, faults: int = 0) -> Sample:
        return Sample(seconds, faults, (Level("this machine", None, some, None),))

    assert judge(sample(0, 1.0), sample(1, 1.5))
    assert judge(sample(0, 1.0), sample(1, 1.01)) is None
    assert judge(sample(0, None), sample(1, None, 500))


@pytest.mark.parametrize("limit", [256 * MIB, 4 * GIB, 128 * GIB])
def test_nothing_left_is_a_small_part_of_any_limit(limit: int) -> None:
    assert Room(0, limit).nothing
    assert not Room(limit // 4, limit).nothing
    assert Room(limit // 20, limit).scarce
    assert not Room(limit // 5, limit).scarce


@pytest.mark.parametrize("gone", ["proc/self/stat", "proc/meminfo", "proc/pressure/memory"])
def test_a_system_that_tells_nothing_is_never_short(machine: Machine, gone: str) -> None:
    (machine.proc.parent / gone).unlink()
    pressure = machine.pressure()
    machine.now = 5.0

    assert pressure.sample() is None
