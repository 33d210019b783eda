"""What a server tells Prometheus: counts of what happened, with few labels and nobody's words."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from localrun.chat.messages import ReplyEvent
from localrun.engine.request import FinishReason, Timings
from localrun.engine.runner import RunnerStats
from localrun.errors import BusyError, EngineError
from localrun.server import guards
from localrun.server.app import ServedApp, create_app
from localrun.server.guards import ServerOptions
from tests.fake_chat import FakeChat, FakeModels, ending
from tests.served import exchange, served

BASE = "http://127.0.0.1:7411"
CHAT = "/v1/chat/completions"
QUESTION = {"model": "fake", "messages": [{"role": "user", "content": "Hi"}]}
Labels = frozenset[tuple[str, str]]


def client_of(app: ServedApp) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url=BASE)


def samples(text: str) -> dict[tuple[str, Labels], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def scraped(client: httpx2.AsyncClient) -> dict[tuple[str, Labels], float]:
    response = await client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return samples(response.text)


def at(found: dict[tuple[str, Labels], float], name: str, **labels: str) -> float:
    return found[f"localrun_{name}", frozenset(labels.items())]


async def test_an_answer_is_counted_with_its_tokens_and_times() -> None:
    guessed = Timings(10, 4, 7, 0.1, 0.2, drafted_tokens=5, accepted_tokens=3)
    said = (ReplyEvent(text="Hi"), ReplyEvent(finish=FinishReason.STOP, timings=guessed))
    app = create_app(FakeModels(fake=FakeChat(said)))
    async with client_of(app) as client:
        for stream in (False, True):
            response = await client.post(CHAT, json=QUESTION | {"stream": stream})
            assert response.status_code == 200
        found = await scraped(client)

    assert at(found, "requests_total", method="POST", route=CHAT, status="200") == 2
    assert at(found, "generations_total", model="fake", finish_reason="stop") == 2
    for name, each in (
        ("prompt", 10),
        ("cached", 4),
        ("generated", 7),
        ("drafted", 5),
        ("accepted", 3),
    ):
        assert at(found, f"{name}_tokens_total", model="fake") == 2 * each
    assert at(found, "time_to_first_token_seconds_count", model="fake") == 2
    assert at(found, "request_duration_seconds_count", route=CHAT) == 2
    assert 0 < at(found, "request_duration_seconds_sum", route=CHAT) < 60


async def test_every_choice_of_an_answer_has_its_tokens_counted() -> None:
    async with client_of(create_app(FakeModels(fake=FakeChat()))) as client:
        await client.post(CHAT, json=QUESTION | {"n": 3})
        found = await scraped(client)

    assert at(found, "generated_tokens_total", model="fake") == 9
    assert at(found, "generations_total", model="fake", finish_reason="stop") == 1


async def test_what_models_hold_and_read_is_told_by_tier() -> None:
    class Held(FakeModels):
        async def stats(self) -> dict[str, RunnerStats]:
            return {"fake": RunnerStats({"ram": 1}, {"ram": 200, "disk": 30}, 3)}

    async with client_of(create_app(Held(fake=FakeChat()))) as client:
        found = await scraped(client)

    assert at(found, "models_loaded") == 1
    assert at(found, "model_bytes", model="fake", tier="ram") == 1000
    assert at(found, "read_bytes_total", model="fake", tier="ram") == 200
    assert at(found, "read_bytes_total", model="fake", tier="disk") == 30


async def test_generations_under_way_are_told_apart_from_those_that_wait() -> None:
    begun = FakeChat((ReplyEvent(text="lo"),), endless=True)
    silent = FakeChat((), endless=True)
    async with client_of(create_app(FakeModels(begun=begun, silent=silent))) as client:
        asked = [
            asyncio.create_task(client.post(CHAT, json=QUESTION | {"model": model}))
            for model in ("begun", "silent")
        ]
        await asyncio.gather(begun.started.wait(), silent.started.wait())
        found = await scraped(client)
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        after = await scraped(client)

    assert (at(found, "generations_running"), at(found, "generations_waiting")) == (1, 1)
    assert (at(after, "generations_running"), at(after, "generations_waiting")) == (0, 0)


FORM = {"authorization": "Bearer k", "content-type": "text/plain"}
REFUSED: dict[str, tuple[str, str, dict[str, Any], int, str]] = {
    "no key": ("GET", "/v1/models", {"headers": {}}, 401, "/v1/models"),
    "a strange origin": ("GET", "/health", {"headers": {"origin": "null"}}, 403, "/health"),
    "no json": ("POST", CHAT, {"content": "x", "headers": FORM}, 415, CHAT),
    "no route": ("GET", "/etc/passwd", {}, 404, "other"),
    "no model": ("GET", "/v1/models/a/b?c=d", {}, 404, "/v1/models/{name}"),
    "a wrong field": ("POST", CHAT, {"json": {}}, 400, CHAT),
    "a wrong method": ("DELETE", CHAT, {"json": {}}, 405, CHAT),
    "a method nobody knows": ("BREW", CHAT, {"json": {}}, 405, CHAT),
}


@pytest.mark.parametrize(
    ("method", "path", "sent", "status", "route"), REFUSED.values(), ids=REFUSED.keys()
)
async def test_what_is_refused_is_counted_by_its_routes_template(
    method: str, path: str, sent: dict[str, Any], status: int, route: str
) -> None:
    key = {"authorization": "Bearer k"}
    app = create_app(FakeModels(fake=FakeChat()), ServerOptions(api_key="k"))
    async with client_of(app) as client:
        response = await client.request(method, path, **({"headers": key} | sent))
        if status not in (401, 403, 415):
            assert response.status_code == status
        response = await client.get("/metrics", headers=key)

    known = "other" if method == "BREW" else method
    expected = response.text
    assert at(
        samples(expected), "requests_total", method=known, route=route, status=str(status)
    ) == (1)
    assert "passwd" not in expected
    assert "BREW" not in expected


FAILURES: dict[str, tuple[FakeChat, str, str, int]] = {
    "before its first event": (FakeChat(error=EngineError("x")), "500", "error", 0),
    "by a full queue": (FakeChat(error=BusyError("x")), "429", "error", 1),
    "after it began": (
        FakeChat((ReplyEvent(text="a"), ReplyEvent(finish=FinishReason.ERROR))),
        "200",
        "error",
        0,
    ),
    "not, but is cut at its length": (
        FakeChat((ReplyEvent(text="a"), ending(FinishReason.LENGTH))),
        "200",
        "length",
        0,
    ),
}


@pytest.mark.parametrize(
    ("chat", "status", "finish", "refusals"), FAILURES.values(), ids=FAILURES.keys()
)
async def test_a_stream_that_fails_is_counted_by_how_it_ended(
    chat: FakeChat, status: str, finish: str, refusals: int
) -> None:
    async with client_of(create_app(FakeModels(fake=chat))) as client:
        await client.post(CHAT, json=QUESTION | {"stream": True})
        found = await scraped(client)

    assert at(found, "requests_total", method="POST", route=CHAT, status=status) == 1
    assert at(found, "generations_total", model="fake", finish_reason=finish) == 1
    assert at(found, "queue_refusals_total") == refusals


async def test_more_requests_than_the_door_takes_are_counted_as_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(guards, "MAX_REQUESTS", 0)
    async with client_of(create_app(FakeModels(fake=FakeChat()))) as client:
        assert (await client.post(CHAT, json=QUESTION)).status_code == 429
        assert at(await scraped(client), "queue_refusals_total") == 1


async def test_a_client_that_leaves_is_counted_as_that() -> None:
    chat = FakeChat((ReplyEvent(text="lo"),), endless=True)
    async with client_of(create_app(FakeModels(fake=chat))) as client:
        asked = asyncio.create_task(client.post(CHAT, json=QUESTION | {"stream": True}))
        await chat.started.wait()
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        found = await scraped(client)

    assert at(found, "requests_total", method="POST", route=CHAT, status="499") == 1
    assert at(found, "generations_total", model="fake", finish_reason="cancelled") == 1


async def test_what_is_no_http_is_counted_too() -> None:
    app = create_app(FakeModels(fake=FakeChat()))
    async with served(app) as port, httpx2.AsyncClient() as client:
        await exchange(port, b"hello\r\n\r\n")
        await exchange(port, b"GET /health HTTP/1.1\r\n\r\n")
        found = samples((await client.get(f"http://127.0.0.1:{port}/metrics")).text)

    for status in ("400", "403"):
        assert at(found, "requests_total", method="other", route="other", status=status) == 1


async def test_names_that_are_not_served_make_no_series() -> None:
    async with client_of(create_app(FakeModels(fake=FakeChat()))) as client:
        for number in range(20):
            await client.post(CHAT, json=QUESTION | {"model": f"stranger-{number}"})
            await client.get(f"/stranger-{number}")
        text = (await client.get("/metrics")).text

    assert "stranger" not in text
    assert at(samples(text), "requests_total", method="POST", route=CHAT, status="404") == 20


async def test_a_model_that_does_not_answer_hides_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from localrun.chat.messages import ServedModel
    from localrun.server import provider
    from tests.loads import unlimited

    class Hanging(FakeChat):
        async def stats(self) -> RunnerStats:
            await asyncio.Event().wait()
            raise AssertionError

    class Broken(FakeChat):
        async def stats(self) -> RunnerStats:
            raise EngineError("dead")

    async def open_model(name: str) -> ServedModel:
        return {"hanging": Hanging, "broken": Broken, "fine": FakeChat}[name]()

    monkeypatch.setattr(provider, "STATS_S", 0.05)
    models = provider.LoadingProvider(unlimited(open_model), cards=list)
    for name in ("hanging", "broken", "fine"):
        async with models.lease(name):
            pass

    assert list(await models.stats()) == ["fine"]
    await models.close()
    assert await models.stats() == {}
