"""Knows one question: how much longer running streams wait for a token while a long prompt comes.

Seven streams run. When each has had some more texts, a prompt of 1,500 tokens is sent; the waits
between texts that fell into the time from its sending to its first token are held against those
before. Then everyone leaves.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict, dataclass
from typing import Any

from serving_client import Exchange, ask, begin, chat_body, gaps_within, percentile
from serving_programs import Program
from serving_prompts import Prompts

STREAMS = 7
BEFORE = 48
LONG = 1500
LONG_ANSWER = 16
_LOOK_S = 0.05
_RUNNING = 4  # the head, the role and two texts


@dataclass(frozen=True)
class Stall:
    """Seconds. ``first_s`` is how long the long prompt waited for its own first token."""

    before_p95: float
    during_p95: float
    during_most: float
    first_s: float

    @property
    def ratio(self) -> float:
        return self.during_p95 / self.before_p95


async def stall(program: Program, model: str, prompts: Prompts, key: object, short: int) -> Stall:
    """One long prompt among ``STREAMS`` streams of ``short`` tokens each."""

    def body(tokens: int, answer: int, *which: object) -> dict[str, Any]:
        turns = [prompts.user(tokens, key, *which)]
        return chat_body(model, prompts.system(key, *which), turns, answer)

    streams = [await begin(program.port, body(short, LONG, at)) for at in range(STREAMS)]
    try:
        await _reads(streams, [_RUNNING] * STREAMS)
        await _reads(streams, [len(stream.reads) + BEFORE for stream in streams])
        began = max(stream.answer().texts[0] for stream in streams)
        sent = time.perf_counter()
        long = await ask(program.port, body(LONG, LONG_ANSWER, "long"))
    finally:
        for stream in streams:
            stream.leave()
        await asyncio.gather(*(stream.over for stream in streams))
    if long.prompt != LONG or long.generated != LONG_ANSWER:
        raise SystemExit(f"{program.name}: {long.prompt} tokens in, {long.generated} out")
    answers = [stream.answer() for stream in streams]
    before = [gap for answer in answers for gap in gaps_within(answer, began, sent)]
    during = [gap for answer in answers for gap in gaps_within(answer, sent, long.texts[0])]
    return Stall(
        before_p95=percentile(before, 0.95),
        during_p95=percentile(during, 0.95),
        during_most=max(during),
        first_s=long.first_s,
    )


async def _reads(streams: list[Exchange], wanted: list[int]) -> None:
    """Wait until each stream was read so often."""
    while any(len(stream.reads) < count for stream, count in zip(streams, wanted, strict=True)):
        for stream in streams:
            if stream.over.done():
                raise SystemExit(f"a stream ended after {stream.answer().generated} tokens")
        await asyncio.sleep(_LOOK_S)


def plain(value: Stall) -> dict[str, float]:
    return asdict(value) | {"ratio": value.ratio}
