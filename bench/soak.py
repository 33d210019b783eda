"""Eight clients that mix everything and leave at any time: nothing may leak, no answer be wrong.

    python bench/soak.py [--minutes M] [--seed N] [--json]

How it is taken is in METHODOLOGY.md. Exit code 1 when a bound is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ending import ended
from soak_answers import LEFT_BEHIND, STATE_BUDGET_BYTES
from soak_clients import Client, Tally

CLIENTS = 8
# Requests of each client between two samples.
TURN = 40
BYTES_A_REQUEST = 1024
# A part of the run during which caches, pools and arenas grow to what they need.
WARM_UP = 0.25
FEWEST_SAMPLES = 6
SETTLE_S = 20.0
# glibc keeps what threads have freed in as many arenas, and large blocks in them once it has seen
# some: both grow by chance for thousands of requests, and hide a leak of a kilobyte.
ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "131072"}
HERE = Path(__file__).resolve().parent


class Server:
    """The server's process and the pipe to it."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self._process = process
        self.port = port

    @staticmethod
    async def start(folder: Path, errors: int) -> Server:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(HERE / "soak_server.py"),
            str(folder),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            # The engine's child looks nowhere else, and the mock runner is the tests'.
            env={**os.environ, **ALLOCATOR, "PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}"},
        )
        assert process.stdout is not None
        return Server(process, int(await process.stdout.readline()))

    async def sample(self) -> dict[str, Any]:
        """What it holds now."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"\n")
        found: dict[str, Any] = json.loads(await self._process.stdout.readline())
        return found

    async def stop(self) -> int:
        """Its exit status."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return await self._process.wait()


def counts(sample: dict[str, Any]) -> dict[str, int]:
    """What must come back to what it was."""
    return {
        "descriptors of the server": sample["server"]["fds"],
        "descriptors of the child": sample["child"]["fds"],
        "threads of the server": sample["server"]["threads"],
        "threads of the child": sample["child"]["threads"],
        "asyncio tasks": sample["tasks"],
        "processes": sample["processes"],
    }


async def rested(server: Server) -> dict[str, int]:
    """The counts once they do not change any more."""
    found, before = counts(await server.sample()), dict[str, int]()
    while found != before:
        await asyncio.sleep(0.5)
        found, before = counts(await server.sample()), found
    return found


async def settled(server: Server, base: dict[str, int]) -> dict[str, Any]:
    """A sample once everything that was under way has ended: none of ``base`` is exceeded."""
    until = time.monotonic() + SETTLE_S
    while True:
        sample = await server.sample()
        found = counts(sample)
        if all(found[name] <= most for name, most in base.items()) or time.monotonic() > until:
            return sample
        await asyncio.sleep(0.05)


async def soak(minutes: float, seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name, open(Path(name) / "errors", "w+b") as errors:
        folder = Path(name)
        server = await Server.start(folder, errors.fileno())
        tally, at = Tally(), list[int]()
        samples: list[dict[str, Any]] = []
        clients = [Client(server.port, CLIENTS * seed + each, tally) for each in range(CLIENTS)]
        began = time.monotonic()
        base: dict[str, int] = {}
        while len(samples) < 2 or time.monotonic() - began < minutes * 60:
            await asyncio.gather(*(client.ask(TURN) for client in clients))
            for client in clients:
                await client.close()
            samples.append(await settled(server, base))
            at.append(tally.requests)
            base = base or await rested(server)
        seconds = time.monotonic() - began
        states = sum(file.stat().st_size for file in (folder / "states").rglob("*"))
        status = await server.stop()
        errors.seek(0)
        said = errors.read().decode()
        log = (folder / "engine.log").read_text()
    return {
        "seed": seed,
        "seconds": seconds,
        "exit": status,
        "errors": said,
        "left": log.strip(),
        "states_bytes": states,
        "base": base,
        "last": counts(samples[-1]),
        "tally": vars(tally),
        "memory": {who: growth(at, [each[who]["rss"] for each in samples]) for who in WHO},
    }


WHO = ("server", "child")


def growth(at: Sequence[int], rss: Sequence[int]) -> dict[str, Any]:
    """Bytes a request, by least squares and by the medians of an early and a late third, once warm;
    ``rss`` was sampled after so many requests as ``at`` says. Two samples at least."""
    warm = min(int(len(at) * WARM_UP), len(at) - 2)
    x, y = at[warm:], rss[warm:]
    third = -(-len(x) // 3)
    rise = statistics.median(y[-third:]) - statistics.median(y[:third])
    between = statistics.median(x[-third:]) - statistics.median(x[:third])
    return {
        "slope": statistics.linear_regression(x, y).slope,
        "drift": rise / between,
        "at": list(at),
        "samples": list(rss),
    }


def missed(report: dict[str, Any]) -> list[str]:
    """The bounds this run does not hold."""
    found = []
    for who, memory in report["memory"].items():
        if len(memory["samples"]) < FEWEST_SAMPLES:
            found.append(f"{who}: {len(memory['samples'])} samples tell no slope: run for longer")
        for how in ("slope", "drift"):
            if memory[how] > BYTES_A_REQUEST:
                found.append(f"{who}: {memory[how]:.0f} bytes a request by {how}")
    for name, last in report["last"].items():
        if last > report["base"][name]:
            found.append(f"{name}: {last} at the end, {report['base'][name]} before")
    found += report["tally"]["wrong"][:20]
    if len(report["tally"]["wrong"]) > 20:
        found.append(f"and {len(report['tally']['wrong']) - 20} wrong answers more")
    if report["left"] != f"{LEFT_BEHIND} 0 sequences, 0 calls":
        found.append(f"the child said: {report['left']}")
    if report["states_bytes"] > STATE_BUDGET_BYTES:
        found.append(f"states take {report['states_bytes']} bytes")
    if report["errors"] or report["exit"]:
        found.append(f"the server said: {report['errors']} and ended with {report['exit']}")
    return found


def show(report: dict[str, Any]) -> None:
    tally = report["tally"]
    print(
        f"{tally['requests']} requests in {report['seconds']:.0f} s (seed {report['seed']}): "
        f"{tally['whole']} answers checked, {tally['refused']} refused as they must be"
    )
    print("left: " + ", ".join(f"{how} {count}" for how, count in sorted(tally["left"].items())))
    print(
        f"{tally['generated']} tokens generated for {tally['prompt']} of prompts, "
        f"{tally['cached']} of them cached; states on disk {report['states_bytes'] / 1024:.0f} KiB"
    )
    for who, memory in report["memory"].items():
        first, *_, last = [size / 2**20 for size in memory["samples"]]
        print(
            f"{who:>6}: {first:.1f} to {last:.1f} MiB, "
            f"{memory['slope']:.0f} bytes a request by slope, {memory['drift']:.0f} by drift"
        )
    for name, last in report["last"].items():
        print(f"{name:>26}: {report['base'][name]} before, {last} at the end")
    print(report["left"])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    report = asyncio.run(soak(chosen.minutes, chosen.seed))
    return ended(report, missed(report), show, as_json=chosen.json)


if __name__ == "__main__":
    raise SystemExit(main())
