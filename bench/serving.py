"""Our server beside llama-server: tokens a second, first tokens, and the waits between tokens.

    python bench/serving.py [REF] [--llama-server PATH] [--streams 1,2,4,8,16] [--rounds N] [--json]

Without ``--llama-server`` it is built from the source of the installed llama-cpp-python. One client
process drives both in turn. How the figures are taken is in METHODOLOGY.md. Exit code 1 when a
bound is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import serving_stall
from llama_server import build, version_line
from serving_client import Answer, ask, begin, chat_body, percentile
from serving_programs import Program, leave_no_server, our_server, their_server
from serving_prompts import Prompts, single_token_words

from localrun import __version__
from localrun.cli.loading import prepare
from localrun.plan.plan import Plan, PlanRequest

BOUNDS = {1: 0.97, 8: 1.0}
STALL_BOUND = 3.0
WARM_UP_TOKENS = 16
# A server's compute threads turn for a while after their last step, on the other one's cores.
PAUSE_S = 0.5
# No prefix is shared but what the template writes before a system message.
CACHED_MOST = 16


@dataclass(frozen=True)
class Round:
    """All streams of one round. Seconds, but ``tps``; ``cpu_ms`` are milliseconds a token.

    ``texts`` is how many events carried text, of each generated token; ``client`` the share of one
    core that the client took, ``others`` what programs beside client and server took of the whole
    machine; ``cpu_ms`` what each process of the server did, by its threads.
    """

    tps: float
    first: tuple[float, ...]
    gaps: tuple[float, ...]
    texts: float
    drafted: int
    client: float
    others: float
    cpu_ms: dict[str, list[float]]


@dataclass(frozen=True)
class Work:
    """What is asked of both: ``prompt`` tokens in, ``answer`` tokens out."""

    model: str
    prompts: Prompts
    prompt: int
    answer: int

    def body(self, answer: int, *key: object) -> dict[str, Any]:
        turns = [self.prompts.user(self.prompt, *key)]
        return chat_body(self.model, self.prompts.system(*key), turns, answer)


async def fitted(programs: Sequence[Program], work: Work) -> Work:
    """The work with prompts of exactly its length, which both servers must count alike."""
    counted = {}
    for program in programs:
        answer = await ask(program.port, work.body(1, "length", program.name))
        counted[program.name] = answer.prompt
    if len(set(counted.values())) != 1:
        raise SystemExit(f"the servers count one prompt differently: {counted}")
    (tokens,) = set(counted.values())
    prompts = work.prompts.fitted(work.prompt, tokens)
    return replace(work, prompts=prompts)


async def drive(program: Program, work: Work, streams: int, answer: int, key: object) -> Round:
    """All streams at once, from the first request to the last token.

    Raises:
        SystemExit: a server counted other tokens than were asked for, or used its cache.
    """
    bodies = [work.body(answer, key, at) for at in range(streams)]
    threads, client, machine = program.threads(), time.process_time(), _busy_s()
    exchanges = await asyncio.gather(*(begin(program.port, body) for body in bodies))
    await asyncio.gather(*(exchange.over for exchange in exchanges))
    machine, client = _busy_s() - machine, time.process_time() - client
    spent = _spent(threads, program.threads())
    answers = [exchange.answer() for exchange in exchanges]
    for each in answers:
        if (each.prompt, each.generated) != (work.prompt, answer) or each.cached > CACHED_MOST:
            raise SystemExit(
                f"{program.name}: {each.prompt} tokens in ({each.cached} cached), "
                f"{each.generated} out; asked for {work.prompt} and {answer}"
            )
    return _round(answers, spent, client, machine)


def _round(
    answers: Sequence[Answer], spent: dict[str, list[float]], client_s: float, machine_s: float
) -> Round:
    """``spent`` and the others in seconds."""
    wall = max(each.texts[-1] for each in answers) - min(each.sent for each in answers)
    tokens = sum(each.generated for each in answers)
    others_s = machine_s - client_s - sum(sum(threads) for threads in spent.values())
    return Round(
        tps=tokens / wall,
        first=tuple(each.first_s for each in answers),
        gaps=tuple(gap for each in answers for gap in each.gaps),
        texts=sum(len(each.texts) for each in answers) / tokens,
        drafted=sum(each.drafted for each in answers),
        client=client_s / wall,
        others=max(others_s, 0.0) / wall / (os.cpu_count() or 1),
        cpu_ms={
            process: [seconds * 1000 / tokens for seconds in threads]
            for process, threads in spent.items()
        },
    )


def _spent(
    before: dict[tuple[str, int], float], after: dict[tuple[str, int], float]
) -> dict[str, list[float]]:
    """Seconds of each process's threads, busiest first; those that did nothing are left out."""
    by_process: dict[str, list[float]] = {}
    for (process, thread), seconds in after.items():
        spent = seconds - before.get((process, thread), 0.0)
        if spent > 0:
            by_process.setdefault(process, []).append(spent)
    return {process: sorted(spent, reverse=True) for process, spent in by_process.items()}


def _busy_s() -> float:
    """Seconds that all cores have been at work, or taken by the host of a virtual machine."""
    times = psutil.cpu_times()
    guests = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # in user already
    idle = times.idle + getattr(times, "iowait", 0.0)
    return float(sum(times) - guests - idle)


async def round_of(
    programs: Sequence[Program], work: Work, streams: int, turn: int
) -> dict[str, Round]:
    """A round of each server; the order turns round every time."""
    fit = await fitted(programs, work)
    for program in programs:  # warms pages, caches and clocks
        await drive(program, fit, streams, WARM_UP_TOKENS, f"warm {program.name} {turn}")
    found = {}
    for program in programs if turn % 2 == 0 else reversed(programs):
        await asyncio.sleep(PAUSE_S)
        found[program.name] = await drive(program, fit, streams, fit.answer, f"{streams} {turn}")
    return found


async def stalls_of(
    programs: Sequence[Program], work: Work, rounds: int
) -> dict[str, list[dict[str, float]]]:
    found: dict[str, list[dict[str, float]]] = {program.name: [] for program in programs}
    for turn in range(rounds):
        for program in programs if turn % 2 == 0 else reversed(programs):
            key = f"stall {turn}"
            one = await serving_stall.stall(program, work.model, work.prompts, key, work.prompt)
            found[program.name].append(serving_stall.plain(one))
    return found


def summary(rounds: Sequence[Round]) -> dict[str, Any]:
    """Medians over rounds of what each round's streams had."""

    def median(values: list[float]) -> float:
        return statistics.median(values)

    return {
        "tps": median([each.tps for each in rounds]),
        "samples": [each.tps for each in rounds],
        "first_p50_ms": 1000 * median([percentile(each.first, 0.5) for each in rounds]),
        "first_p95_ms": 1000 * median([percentile(each.first, 0.95) for each in rounds]),
        "gap_p50_ms": 1000 * median([percentile(each.gaps, 0.5) for each in rounds]),
        "gap_p95_ms": 1000 * median([percentile(each.gaps, 0.95) for each in rounds]),
        "texts_a_token": median([each.texts for each in rounds]),
        "drafted": sum(each.drafted for each in rounds),
        "client_share": median([each.client for each in rounds]),
        "others_share": median([each.others for each in rounds]),
        "cpu_ms_a_token": rounds[-1].cpu_ms,
    }


def measure(chosen: argparse.Namespace, program: Path) -> dict[str, Any]:
    """Both servers for each number of streams, started anew for each round; one is driven at a
    time."""
    report: dict[str, Any] = {
        "versions": {
            "localrun": __version__,
            "llama-cpp-python": version("llama-cpp-python"),
            "llama-server": version_line(program),
        },
        "cores": os.cpu_count(),
        "streams": {},
    }
    prompts = Prompts(single_token_words(chosen.ref), secrets.token_hex(8))
    work = Work(chosen.ref, prompts, chosen.prompt, chosen.generate)
    for streams in chosen.streams:
        context = chosen.ctx or rounded(chosen.prompt + chosen.generate)
        plan = planned_for(chosen, context, streams)
        rounds = []
        for turn in range(chosen.rounds):
            with ExitStack() as stack:
                programs = _start(stack, program, plan)
                rounds.append(asyncio.run(round_of(programs, work, streams, turn)))
        ours, theirs = (summary([each[name] for each in rounds]) for name in ("ours", "theirs"))
        report["streams"][streams] = {
            "commands": {each.name: shlex.join(each.command) for each in programs},
            "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
            "ours": ours,
            "theirs": theirs,
            "ratio": statistics.median(each["ours"].tps / each["theirs"].tps for each in rounds),
        }
        if not chosen.json:
            show_streams(streams, report["streams"][streams])
    if not chosen.no_stall:
        report["stall"] = measure_stall(chosen, program, work)
    return report


def measure_stall(chosen: argparse.Namespace, program: Path, work: Work) -> dict[str, Any]:
    streams = serving_stall.STREAMS + 1
    context = rounded(chosen.prompt + serving_stall.LONG + serving_stall.LONG_ANSWER)
    plan = planned_for(chosen, context, streams)
    with ExitStack() as stack:
        programs = _start(stack, program, plan)
        fit = asyncio.run(fitted(programs, work))
        found = asyncio.run(stalls_of(programs, fit, chosen.rounds))
    report: dict[str, Any] = {
        "commands": {each.name: shlex.join(each.command) for each in programs},
        "samples": found,
    }
    for name, each in found.items():
        report[name] = {key: statistics.median(one[key] for one in each) for key in each[0]}
    if not chosen.json:
        show_stall(report)
    return report


def rounded(tokens: int) -> int:
    return -(-tokens // 256) * 256


def planned_for(chosen: argparse.Namespace, context: int, streams: int) -> Plan:
    request = PlanRequest(n_ctx=context, parallel=streams, threads=chosen.threads)
    return prepare(chosen.ref, request).plan


def _start(stack: ExitStack, program: Path, plan: Plan) -> list[Program]:
    return [
        stack.enter_context(our_server(plan)),
        stack.enter_context(their_server(program, plan)),
    ]


def missed(report: dict[str, Any]) -> list[str]:
    """The bounds this run does not hold."""
    found = [
        f"{streams} streams: {report['streams'][streams]['ratio']:.3f} of llama-server, not {bound}"
        for streams, bound in BOUNDS.items()
        if streams in report["streams"] and report["streams"][streams]["ratio"] < bound
    ]
    if "stall" in report and report["stall"]["ours"]["ratio"] > STALL_BOUND:
        found.append(
            f"a long prompt makes streams wait {report['stall']['ours']['ratio']:.1f} times as "
            f"long for a token, not {STALL_BOUND:g}"
        )
    return found


def show_streams(streams: int, report: dict[str, Any]) -> None:
    print(f"{streams} streams, load {report['load']}")
    for name in ("ours", "theirs"):
        print(f"  {report['commands'][name]}")
    for name in ("ours", "theirs"):
        one = report[name]
        low, high = min(one["samples"]), max(one["samples"])
        print(
            f"  {name:>6} {one['tps']:8.1f} tok/s ({low:.1f} to {high:.1f})  "
            f"first {one['first_p50_ms']:.0f} ms, p95 {one['first_p95_ms']:.0f}  "
            f"between {one['gap_p50_ms']:.1f} ms, p95 {one['gap_p95_ms']:.1f}"
        )
        spent = "; ".join(
            f"{process} " + " ".join(f"{each:.2f}" for each in threads[:6])
            for process, threads in one["cpu_ms_a_token"].items()
        )
        print(
            f"         {one['texts_a_token']:.2f} texts a token, {one['drafted']} drafted; client "
            f"{one['client_share']:.1%} of a core, others {one['others_share']:.0%} of the machine"
        )
        print(f"         ms of CPU a token by thread: {spent}")
    print(f"  ratio {report['ratio']:.3f}", flush=True)


def show_stall(report: dict[str, Any]) -> None:
    print(f"{serving_stall.LONG} tokens arrive while {serving_stall.STREAMS} streams run")
    for name in ("ours", "theirs"):
        one = report[name]
        print(
            f"  {name:>6} p95 between tokens {1000 * one['before_p95']:.1f} ms before, "
            f"{1000 * one['during_p95']:.1f} during ({one['ratio']:.1f} times; at most "
            f"{1000 * one['during_most']:.0f}), its first token after {one['first_s']:.2f} s"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("ref", nargs="?", default="smollm2")
    parser.add_argument("--llama-server", type=Path, metavar="PATH")
    parser.add_argument("--streams", type=_numbers, default=(1, 2, 4, 8, 16))
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--ctx", type=int, help="of a stream; else what prompt and answer take")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--generate", type=int, default=256)
    parser.add_argument("--no-stall", action="store_true")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    leave_no_server()
    report = measure(chosen, chosen.llama_server or build())
    if chosen.json:
        print(json.dumps(report))
    else:
        print(" ".join(f"{name} {said}" for name, said in report["versions"].items()))
    for line in missed(report):
        print(f"missed: {line}", file=sys.stderr)
    return 1 if missed(report) else 0


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)


if __name__ == "__main__":
    raise SystemExit(main())
