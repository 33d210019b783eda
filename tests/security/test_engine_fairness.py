"""One client with ninety requests, through a real port: the others wait a few turns at most."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import httpx2

from localrun.chat.local import LocalChatModel
from localrun.chat.messages import ServedModel
from localrun.chat.templates import Renderer
from localrun.cli.worker import describe
from localrun.engine.engine import Engine
from localrun.engine.limits import MAX_WAITING
from localrun.engine.local import LocalEngineClient
from localrun.engine.queue import MAX_WAITING_OF_ONE
from localrun.engine.request import GenerationRequest, TokenEvent
from localrun.server.app import create_app
from localrun.server.guards import MAX_REQUESTS
from localrun.server.models import ModelCard
from localrun.server.provider import LoadingProvider
from tests.engine_child import plan
from tests.loads import unlimited
from tests.mock_runner import CHAT_TEMPLATE, MockRunner
from tests.ported import CHAT, asked
from tests.served import served

MODEL = "mock"
SEATS = 4
# Of an answer; with its end token each is as long as every other.
TOKENS = 20


@dataclass(frozen=True)
class Served:
    """One answer: whose, which of theirs, and how many steps passed until its end."""

    client: str
    number: int
    steps: float


class NotingClient(LocalEngineClient):
    """Notes the steps that every generation took, from its arrival to its last token."""

    def __init__(self, engine: Engine) -> None:
        info = replace(describe(plan(MODEL), engine), chat_template=CHAT_TEMPLATE)
        super().__init__(engine, info)
        self.served: list[Served] = []

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        number = int(bytes(token for token in request.prompt if token < 256))
        async for event in super().generate(request):
            if event.timings is not None:
                told = event.timings
                steps = told.queued_s + told.prefill_s + told.decode_s
                self.served.append(Served(request.client.partition(" ")[2], number, steps))
            yield event


@dataclass
class Crowd:
    """A port whose engine makes no step before ``runner`` is released."""

    runner: MockRunner
    engine: Engine
    model: NotingClient
    client: httpx2.AsyncClient
    asking: list[asyncio.Task[httpx2.Response]] = field(default_factory=list)

    async def send(self, user: str, count: int, first: int = 0) -> None:
        """One after the other: each is in the queue, or refused, before the next is sent."""
        for number in range(first, first + count):
            before = self._known()
            body = asked(MODEL, str(number), user=user)
            self.asking.append(asyncio.ensure_future(self.client.post(CHAT, json=body)))
            while self._known() == before:
                await asyncio.sleep(0)

    def _known(self) -> int:
        waiting = len(self.engine._waiting) + self.runner.entered.is_set()
        return waiting + sum(task.done() for task in self.asking)

    async def answers(self) -> list[httpx2.Response]:
        self.runner.release()
        return await asyncio.gather(*self.asking)

    def steps_of(self, user: str) -> list[float]:
        return [each.steps for each in self.model.served if each.client == user]


@asynccontextmanager
async def crowd() -> AsyncIterator[Crowd]:
    runner = MockRunner("x" * TOKENS, max_sequences=SEATS, holds=(0,))
    # The clock counts steps: times of requests are steps, whatever else the machine does.
    engine = Engine(runner, clock=lambda: float(runner.count))
    model = NotingClient(engine)

    async def open_model(_: str) -> ServedModel:
        return LocalChatModel(model, Renderer())

    provider = LoadingProvider(unlimited(open_model), cards=lambda: [ModelCard(MODEL, 0)])
    limits = httpx2.Limits(max_connections=None)
    async with (
        served(create_app(provider)) as port,
        httpx2.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", timeout=120, limits=limits
        ) as client,
    ):
        try:
            yield Crowd(runner, engine, model, client)
        finally:
            runner.release()


def p95(values: list[float]) -> float:
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]


async def test_ten_requests_beside_ninety_of_one_client_wait_three_times_as_long_at_most() -> None:
    async with crowd() as alone:
        await alone.send("honest", 10)
        await alone.answers()
    async with crowd() as beside:
        await beside.send("hostile", 90)
        await beside.send("honest", 10)
        answers = await beside.answers()

    # One of the hostile client's is running already.
    accepted = 1 + MAX_WAITING_OF_ONE
    assert [each.status_code for each in answers] == [
        *[200] * accepted,
        *[429] * (90 - accepted),
        *[200] * 10,
    ]
    assert {each.headers["retry-after"] for each in answers if each.status_code == 429} == {"1"}
    assert len(beside.steps_of("honest")) == 10
    assert p95(beside.steps_of("honest")) <= 3 * p95(alone.steps_of("honest"))
    assert max(beside.steps_of("hostile")) > max(beside.steps_of("honest"))


async def test_each_client_is_served_in_the_order_it_asked() -> None:
    async with crowd() as mixed:
        for number in range(12):
            await mixed.send("ann", 1, first=number)
            await mixed.send("bob", 1, first=number)
        answers = await mixed.answers()

    assert {each.status_code for each in answers} == {200}
    for user in ("ann", "bob"):
        mine = [each for each in mixed.model.served if each.client == user]
        # Some end in the same step: who came first is then as good as who came next.
        order = [each.number for each in sorted(mine, key=lambda each: (each.steps, each.number))]
        assert order == list(range(12))


async def test_a_full_house_tells_everybody_to_come_back_and_takes_them_later() -> None:
    async with crowd() as full:
        for user in range(8):
            await full.send(f"user {user}", MAX_REQUESTS // 8)
        assert len(full.engine._waiting) <= MAX_WAITING
        await full.send("late", 1)
        assert (await full.asking[-1]).headers["retry-after"] == "1"
        answers = await full.answers()
        later = await full.client.post(CHAT, json=asked(MODEL, "1"))

    assert [each.status_code for each in answers] == [*[200] * MAX_REQUESTS, 429]
    assert later.status_code == 200
