"""Row N2 of the threat table: with an API key set, nothing but ``/health`` answers without it."""

from __future__ import annotations

import ast
import inspect
from typing import Final

import pytest

from localrun.server import guards
from localrun.server.app import ServedApp, create_app
from localrun.server.guards import ServerOptions
from tests.fake_chat import FakeChat, FakeModels
from tests.security.port_routes import SAID, client_of, examples, ways_in
from tests.served import exchange, served, status

CHAT: Final = "/v1/chat/completions"
KEY: Final = "right"
WRONG: Final = {
    "none": {},
    "wrong": {"authorization": "Bearer wrong"},
    "cut": {"authorization": "Bearer righ"},
    "longer": {"authorization": "Bearer right2"},
    "empty": {"authorization": "Bearer "},
    "without its scheme": {"authorization": "right"},
    "of another scheme": {"authorization": "Basic right"},
    "in another header": {"api-key": "right", "cookie": "api_key=right; authorization=right"},
    "wrong, anthropic's way": {"x-api-key": "wrong"},
}
QUERIES: Final = tuple(
    f"{name}=right" for name in ("key", "api_key", "api-key", "access_token", "token")
)


def app(key: str | None = KEY) -> ServedApp:
    return create_app(FakeModels(fake=FakeChat()), ServerOptions(api_key=key, docs=True))


async def test_every_route_and_method_but_health_asks_for_the_key() -> None:
    application = app()
    ways = [(method, path) for method, path in ways_in(application) if path != "/health"]
    passed = []
    async with client_of(application) as client:
        for method, path in ways:
            for name, headers in WRONG.items():
                body = examples("fake").get(path, {})
                response = await client.request(method, path, json=body, headers=headers)
                if response.status_code != 401:
                    passed.append((method, path, name, response.status_code))
            for query in QUERIES:
                response = await client.request(method, f"{path}?{query}", json={})
                if response.status_code != 401:
                    passed.append((method, path, query, response.status_code))

    assert not passed
    assert {"/docs", "/openapi.json", "/metrics", CHAT} <= {path for _, path in ways}
    assert len(ways) >= 9 * 30


async def test_with_the_right_key_every_way_leads_to_its_route() -> None:
    application = app()
    async with client_of(application) as client:
        answers = {
            (method, path): await client.request(
                method, path, json=examples("fake").get(path, {}), headers={"x-api-key": KEY}
            )
            for method, path in ways_in(application)
        }

    statuses = {way: answer.status_code for way, answer in answers.items()}
    assert 401 not in statuses.values()
    assert {path: statuses["POST", path] for path in examples("fake")} == dict.fromkeys(
        examples("fake"), 200
    )


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer right"},
        {"authorization": "bearer right"},
        {"x-api-key": "right"},
        {"authorization": "Bearer wrong", "x-api-key": "right"},
    ],
    ids=["bearer", "lower case", "x-api-key", "both"],
)
async def test_the_right_key_opens(headers: dict[str, str]) -> None:
    asked = {"model": "fake", "messages": SAID}
    async with client_of(app()) as client:
        assert (await client.get("/v1/models", headers=headers)).status_code == 200
        assert (await client.post(CHAT, json=asked, headers=headers)).status_code == 200


async def test_health_needs_no_key_and_tells_nothing_else() -> None:
    async with client_of(app()) as client:
        response = await client.get("/health")

    assert response.json() == {"status": "ok"}


@pytest.mark.parametrize("path", ["/health/", "//health", "/health/../v1/models", "/%2fhealth"])
async def test_a_path_that_only_looks_like_health_asks_for_the_key(path: str) -> None:
    async with served(app(), api_key=KEY) as port:
        request = f"GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n"
        answer = await exchange(port, request.encode())

    assert status(answer) == 401


async def test_a_websocket_is_refused() -> None:
    sent = []

    async def send(message: guards.Message) -> None:
        sent.append(message)

    async def receive() -> guards.Message:
        return {"type": "websocket.connect"}

    scope = {"type": "websocket", "path": "/v1/models", "headers": []}
    await app()(scope, receive, send)

    assert [message["type"] for message in sent] == ["websocket.close"]


@pytest.mark.parametrize("path", ["/v1/models", "/v1/responses", "/health"])
async def test_an_upgrade_to_a_websocket_is_none_on_a_real_port(path: str) -> None:
    async with served(app(), api_key=KEY) as port:
        request = (
            f"GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: Upgrade\r\n"
            "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        answer = await exchange(port, request.encode())

    assert status(answer) == (200 if path == "/health" else 401)


async def test_the_documents_are_not_there_unless_asked_for() -> None:
    async with client_of(create_app(FakeModels(fake=FakeChat()))) as client:
        found = [await client.get(path) for path in ("/docs", "/openapi.json", "/redoc")]

    assert [response.status_code for response in found] == [404] * 3


def test_keys_are_compared_in_constant_time() -> None:
    tree = ast.parse(inspect.getsource(guards))
    function = next(
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name == "_key_is_right"
    )
    calls = [node.func for node in ast.walk(function) if isinstance(node, ast.Call)]
    compared = [node for node in ast.walk(function) if isinstance(node, ast.Compare)]

    assert any(ast.unparse(call) == "hmac.compare_digest" for call in calls)
    assert not any(isinstance(op, ast.Eq | ast.NotEq) for node in compared for op in node.ops)
