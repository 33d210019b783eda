"""Engines that die under their clients, as the kernel or a library would have it: through a port.

The server and its other models live; the clients are told why; the next request is served.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.engine_child import importable, plan
from tests.ported import CHAT, Model, Port, asked, ported

__all__ = ["importable"]
pytestmark = pytest.mark.usefixtures("importable")

ENDLESS = Model(plan("mock:script:" + "x" * 100_000, n_ctx=200_000))
OTHER = Model(plan("mock:script:" + "y" * 2000))
SIGNALS = (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS)
# Of a processor, from the request after a death to its answer: what is not ours does not count.
RESTART_S = 5.0


class Stream:
    """The lines of a streamed answer, one by one."""

    def __init__(self, lines: AsyncIterator[str]) -> None:
        self._lines = lines

    async def until_text(self) -> None:
        async for line in self._lines:
            if line and json.loads(line[6:])["choices"][0]["delta"].get("content"):
                return

    async def rest(self) -> list[str]:
        return [line async for line in self._lines if line]


@asynccontextmanager
async def streaming(port: Port, model: str) -> AsyncIterator[Stream]:
    body = asked(model, "Hi", stream=True)
    async with port.client.stream("POST", CHAT, json=body) as response:
        stream = Stream(response.aiter_lines())
        await stream.until_text()
        yield stream


def child_of(port: Port, model: str) -> psutil.Process:
    return psutil.Process(port.engines[model].pid)


async def dies(port: Port, number: signal.Signals) -> None:
    """Once, while it streams one answer and makes another for a client that does not stream."""
    whole = asyncio.ensure_future(port.ask("endless"))
    async with streaming(port, "endless") as stream:
        other = asyncio.ensure_future(port.said("other"))
        child_of(port, "endless").send_signal(number)
        *_, last, done = await stream.rest()
    answer = await whole

    error = json.loads(last[6:])["error"]
    assert (answer.status_code, done) == (503, "data: [DONE]")
    for message in (answer.json()["error"]["message"], error["message"]):
        assert number.name in message
        assert "the engine restarts" in message
    assert await other == "y" * 2000
    assert await port.said("endless", max_tokens=2) == "xx"
    assert sum(child_of(port, "endless").cpu_times()[:2]) < RESTART_S


async def survives(rounds: int) -> None:
    async with ported({"endless": ENDLESS, "other": OTHER}) as port:
        assert await port.said("other", max_tokens=1) == "y"
        unharmed = child_of(port, "other")
        for at in range(rounds):
            await dies(port, SIGNALS[at % len(SIGNALS)])
        assert child_of(port, "other") == unharmed


async def test_a_death_under_streams_is_told_in_them_and_no_other_model_notices() -> None:
    await survives(4)


@pytest.mark.long
async def test_twenty_deaths_of_each_kind_are_survived() -> None:
    await survives(80)


async def test_a_death_while_nobody_asks_costs_nobody_an_answer_twice() -> None:
    async with ported({"other": OTHER}) as port:
        assert await port.said("other", max_tokens=1) == "y"
        child_of(port, "other").kill()
        first = await port.ask("other", max_tokens=1)
        assert first.status_code in (200, 503)
        assert await port.said("other", max_tokens=1) == "y"


async def test_after_three_deaths_in_a_row_a_restart_waits_and_the_others_do_not() -> None:
    async with ported({"bad": Model(plan("mock:crash")), "other": OTHER}) as port:
        answers: list[Any] = [await port.ask("bad") for _ in range(4)]
        assert await port.said("other", max_tokens=1) == "y"
        children = [each for each in psutil.Process().children() if "worker" in str(each.cmdline())]

    assert [each.status_code for each in answers] == [503] * 4
    messages = [each.json()["error"]["message"] for each in answers]
    assert ["SIGKILL" in message for message in messages] == [True, True, True, False]
    assert "3 times in a row" in messages[3]
    assert "may be started again in" in messages[3]
    assert len(children) == 1


async def test_weights_truncated_under_a_stream_end_it_with_an_error_event(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.write_bytes(b"\1" * 1_000_000)
    mapped = Model(plan(str(weights)), "tests.engine_child:mapped")
    async with ported({"mapped": mapped, "other": OTHER}) as port:
        async with streaming(port, "mapped") as stream:
            os.truncate(weights, 0)
            *_, last, _ = await stream.rest()
        assert "SIGBUS" in json.loads(last[6:])["error"]["message"]
        assert await port.said("other", max_tokens=1) == "y"
        weights.write_bytes(b"\1" * 1_000_000)
        assert await port.said("mapped", max_tokens=2) == "xx"


async def test_a_process_that_gets_no_memory_ends_alone_and_is_started_again() -> None:
    starving = Model(plan("x"), "tests.hungry_runner:starving")
    async with ported({"starving": starving, "other": OTHER}) as port:
        assert await port.said("starving", "feed me") == "feed me"
        refused = [await port.ask("starving", "too much, please") for _ in range(2)]
        assert await port.said("other", max_tokens=1) == "y"
        assert await port.said("starving", "feed me") == "feed me"

    assert [each.status_code for each in refused] == [503] * 2
    assert {"ended under this request (exit status 1)" in each.text for each in refused} == {True}
