"""Every dialect of the port beside the chat completions route: tokens a second at 8 streams.

    python bench/dialects.py [REF] [--streams 8] [--rounds N] [--generate N] [--json]

One server of ours answers the same conversations through each route in turn, so the engine does the
same work, token for token, and what differs is the way through the port. The chat route is driven
before and after each other route and a ratio is by the mean of the two. Each round has prompts of
its own, read once before it begins; the order of the routes turns from round to round. How the
figures are taken is in METHODOLOGY.md. Exit code 1 when a route is slower than the bound.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import secrets
import statistics
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

from serving import planned_for, rounded
from serving_client import Exchange, begin, bodies
from serving_programs import leave_no_server, our_server
from serving_prompts import Prompts, single_token_words

BOUND = 0.95
PAUSE_S = 0.3
PROMPT = 64


@dataclass(frozen=True)
class Question:
    """One conversation, and its ``text`` as the model's template writes it."""

    model: str
    messages: list[dict[str, str]]
    text: str
    most: int


@dataclass(frozen=True)
class Route:
    """A streaming route: its body for a question, and where its last documents count tokens."""

    path: str
    body: Callable[[Question], dict[str, Any]]
    generated: Callable[[dict[str, Any]], int | None]


@dataclass(frozen=True)
class Pair:
    """Tokens a second through a route, and through the chat route around it."""

    tps: float
    chat: float


def _count(*keys: str) -> Callable[[dict[str, Any]], int | None]:
    def count(document: dict[str, Any]) -> int | None:
        value: Any = document
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value if isinstance(value, int) else None

    return count


def _ollama(question: Question) -> dict[str, Any]:
    options = {"temperature": 0, "num_predict": question.most}
    return {"model": question.model, "options": options, "stream": True}


CHAT = Route(
    "/v1/chat/completions",
    lambda asked: {
        "model": asked.model,
        "messages": asked.messages,
        "max_tokens": asked.most,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    },
    _count("usage", "completion_tokens"),
)
ROUTES = {
    "completions": Route(
        "/v1/completions",
        lambda asked: {
            "model": asked.model,
            "prompt": asked.text,
            "max_tokens": asked.most,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        },
        _count("usage", "completion_tokens"),
    ),
    "responses": Route(
        "/v1/responses",
        lambda asked: {
            "model": asked.model,
            "input": asked.messages,
            "max_output_tokens": asked.most,
            "temperature": 0,
            "stream": True,
        },
        _count("response", "usage", "output_tokens"),
    ),
    "messages": Route(
        "/v1/messages",
        lambda asked: {
            "model": asked.model,
            "messages": asked.messages,
            "max_tokens": asked.most,
            "temperature": 0,
            "stream": True,
        },
        _count("usage", "output_tokens"),
    ),
    "ollama chat": Route(
        "/api/chat",
        lambda asked: _ollama(asked) | {"messages": asked.messages},
        _count("eval_count"),
    ),
    "ollama generate": Route(
        "/api/generate",
        lambda asked: _ollama(asked) | {"prompt": asked.text, "raw": True},
        _count("eval_count"),
    ),
    "llama.cpp": Route(
        "/completion",
        lambda asked: {
            "prompt": asked.text,
            "n_predict": asked.most,
            "temperature": 0,
            "stream": True,
        },
        _count("tokens_predicted"),
    ),
}


def generated_of(route: Route, exchange: Exchange) -> int:
    """The server's own count of an answer's tokens.

    Raises:
        SystemExit: it told none, or an error.
    """
    found = None
    for document in documents_of(exchange):
        if document.get("error") or document.get("type") == "error":
            raise SystemExit(f"{route.path}: {document}")
        found = route.generated(document) or found
    if found is None:
        raise SystemExit(f"{route.path}: no document says how many tokens there were")
    return found


def documents_of(exchange: Exchange) -> list[dict[str, Any]]:
    """Server-sent events or lines of JSON, whichever the route sends."""
    found = []
    for line in b"".join(part for _, part in bodies(exchange.reads)).splitlines():
        data = line.removeprefix(b"data: ").strip()
        if data.startswith(b"{"):
            found.append(json.loads(data))
    return found


async def drive(port: int, route: Route, asked: Sequence[Question]) -> tuple[float, list[int]]:
    """All questions at once: tokens a second, and how many each answer had."""
    exchanges = await asyncio.gather(
        *(begin(port, route.body(question), route.path) for question in asked)
    )
    await asyncio.gather(*(exchange.over for exchange in exchanges))
    wall = max(each.reads[-1][0] for each in exchanges) - min(each.sent for each in exchanges)
    counts = [generated_of(route, exchange) for exchange in exchanges]
    return sum(counts) / wall, counts


async def round_of(port: int, asked: Sequence[Question], turn: int) -> dict[str, Pair]:
    """Each route beside the chat route.

    Raises:
        SystemExit: an answer is not as long through one route as through another.
    """
    # The first reads the prompts, and warms pages and clocks.
    _, expected = await drive(port, CHAT, asked)

    async def driven(route: Route) -> float:
        await asyncio.sleep(PAUSE_S)
        tps, counts = await drive(port, route, asked)
        if counts != expected:
            raise SystemExit(f"{route.path}: {counts} tokens, by the chat route {expected}")
        return tps

    names = list(ROUTES)
    names = names[turn % len(names) :] + names[: turn % len(names)]
    found, before = {}, await driven(CHAT)
    for name in names:
        tps = await driven(ROUTES[name])
        after = await driven(CHAT)
        found[name] = Pair(tps, (before + after) / 2)
        before = after
    return found


def questions(
    port: int, model: str, prompts: Prompts, streams: int, turn: int, most: int
) -> list[Question]:
    asked = []
    for at in range(streams):
        messages = [
            {"role": "system", "content": prompts.system(turn, at)},
            {"role": "user", "content": prompts.user(PROMPT, turn, at)},
        ]
        asked.append(Question(model, messages, rendered(port, model, messages), most))
    return asked


def rendered(port: int, model: str, messages: list[dict[str, str]]) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        body = json.dumps({"model": model, "messages": messages})
        connection.request("POST", "/apply-template", body, {"Content-Type": "application/json"})
        document = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    if "prompt" not in document:
        raise SystemExit(f"/apply-template: {document}")
    return str(document["prompt"])


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    chosen.threads = None
    plan = planned_for(chosen, rounded(2 * PROMPT + chosen.generate + 256), chosen.streams)
    prompts = Prompts(single_token_words(chosen.ref), secrets.token_hex(8))
    rounds = []
    with ExitStack() as stack:
        program = stack.enter_context(our_server(plan))
        for turn in range(chosen.rounds):
            asked = questions(
                program.port, chosen.ref, prompts, chosen.streams, turn, chosen.generate
            )
            rounds.append(asyncio.run(round_of(program.port, asked, turn)))
    return {
        "streams": chosen.streams,
        "rounds": [{name: asdict(pair) for name, pair in each.items()} for each in rounds],
        "tps": {name: statistics.median(each[name].tps for each in rounds) for name in ROUTES},
        "ratio": {
            name: statistics.median(each[name].tps / each[name].chat for each in rounds)
            for name in ROUTES
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("ref", nargs="?", default="smollm2")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--generate", type=int, default=96)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    leave_no_server()
    report = measure(chosen)
    if chosen.json:
        print(json.dumps(report))
    else:
        print(f"{chosen.streams} streams, {chosen.rounds} rounds: tokens a second, by chat's")
        for name, tps in report["tps"].items():
            print(f"  {name:<16} {tps:8.1f}  {report['ratio'][name]:.3f}")
    slow = [name for name, ratio in report["ratio"].items() if ratio < BOUND]
    for name in slow:
        print(f"missed: {name}: {report['ratio'][name]:.3f} of chat, not {BOUND}", file=sys.stderr)
    return 1 if slow else 0


if __name__ == "__main__":
    raise SystemExit(main())
