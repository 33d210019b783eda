"""What a second turn computes: tokens prefilled and the first token, also after a restart.

    python bench/prefix.py [REF] [--llama-server PATH] [--rounds N] [--json]

A conversation of 1,500 tokens is answered, continued, and continued again by a server that was
stopped and started in between. With ``--llama-server`` the same is asked of it beside ours. How the
figures are taken is in METHODOLOGY.md. Exit code 1 when our server computes again what it had.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import statistics
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from serving_client import Answer, ask, chat_body
from serving_programs import Program, leave_no_server, our_server, their_server
from serving_prompts import Prompts, single_token_words

from localrun.cli.loading import prepare
from localrun.plan.plan import Plan, PlanRequest

PREFIX = 1500
ANSWER = 32
NEW_WORDS = 24
N_CTX = 2048
TURNS = ("cold", "second turn", "after a restart")

Start = Callable[[], AbstractContextManager[Program]]


@dataclass(frozen=True)
class Turn:
    """``prompt`` tokens, of which ``cached`` were not computed and ``before`` had been seen."""

    prompt: int
    cached: int
    before: int
    first_s: float

    @property
    def computed(self) -> int:
        return self.prompt - self.cached


@dataclass(frozen=True)
class Conversation:
    """One first turn of exactly ``PREFIX`` tokens and, once answered, different second turns."""

    model: str
    prompts: Prompts
    key: str
    reply: str = ""

    def body(self, *second: str) -> dict[str, Any]:
        turns = [self.prompts.user(PREFIX, self.key)]
        if second:
            turns += [self.reply, self.prompts.text(NEW_WORDS, self.key, *second)]
        return chat_body(self.model, self.prompts.system(self.key), turns, ANSWER)


def measure(start: Start, model: str, prompts: Prompts, rounds: int) -> dict[str, list[Turn]]:
    """Each round's conversation has its turns in two runs of one server."""
    found: dict[str, list[Turn]] = {name: [] for name in TURNS}
    conversations = []
    with start() as program:
        guess = Conversation(model, prompts, "length")
        prompts = prompts.fitted(PREFIX, asyncio.run(ask(program.port, guess.body())).prompt)
        for at in range(rounds):
            cold = Conversation(model, prompts, f"round {at}")
            first = asyncio.run(ask(program.port, cold.body()))
            if first.prompt != PREFIX:
                raise SystemExit(f"{program.name}: {first.prompt} tokens in, not {PREFIX}")
            talk = Conversation(model, prompts, cold.key, first.text)
            second = asyncio.run(ask(program.port, talk.body("second")))
            found["cold"].append(_turn(first, 0))
            found["second turn"].append(_turn(second, PREFIX))
            conversations.append(talk)
    with start() as program:
        warm = Conversation(model, prompts, "warm")
        asyncio.run(ask(program.port, warm.body()))
        for talk in conversations:
            again = asyncio.run(ask(program.port, talk.body("third")))
            found["after a restart"].append(_turn(again, PREFIX))
    return found


def _turn(answer: Answer, before: int) -> Turn:
    return Turn(answer.prompt, answer.cached, before, answer.first_s)


def summary(turns: list[Turn]) -> dict[str, Any]:
    return {
        "prompt": statistics.median(turn.prompt for turn in turns),
        "computed": statistics.median(turn.computed for turn in turns),
        "computed_most": max(turn.computed for turn in turns),
        "first_s": statistics.median(turn.first_s for turn in turns),
        "samples": [asdict(turn) for turn in turns],
    }


def missed(ours: dict[str, list[Turn]]) -> list[str]:
    """Turns that computed more than what was new. The last token of a prompt is always computed,
    as its logits are kept nowhere."""
    return [
        f"{name}: {turn.computed} of {turn.prompt} tokens computed, {turn.before} were known"
        for name, turns in ours.items()
        for turn in turns
        if turn.computed > max(turn.prompt - turn.before, 1)
    ]


def show(name: str, report: dict[str, Any]) -> None:
    for turn, one in report.items():
        print(
            f"{name:>6} {turn:>16}: {one['computed']:.0f} of {one['prompt']:.0f} tokens computed "
            f"(at most {one['computed_most']}), first token after {one['first_s'] * 1000:.0f} ms"
        )


def _plan(chosen: argparse.Namespace) -> Plan:
    return prepare(chosen.ref, PlanRequest(n_ctx=N_CTX, threads=chosen.threads)).plan


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("ref", nargs="?", default="smollm2")
    parser.add_argument("--llama-server", type=Path, metavar="PATH")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    leave_no_server()
    plan = _plan(chosen)
    prompts = Prompts(single_token_words(chosen.ref), secrets.token_hex(8))
    starts: dict[str, Start] = {"ours": lambda: our_server(plan)}
    if chosen.llama_server:
        starts["theirs"] = lambda: their_server(chosen.llama_server, plan)
    found = {
        name: measure(start, plan.ref, prompts, chosen.rounds) for name, start in starts.items()
    }
    report = {
        name: {turn: summary(turns) for turn, turns in each.items()} for name, each in found.items()
    }
    if chosen.json:
        print(json.dumps(report))
    else:
        for name, each in report.items():
            show(name, each)
    for line in missed(found["ours"]):
        print(f"missed: {line}", file=sys.stderr)
    return 1 if missed(found["ours"]) else 0


if __name__ == "__main__":
    raise SystemExit(main())
