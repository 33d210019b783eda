"""The port's door: rows N1, N3 and N4 of the threat table, over raw sockets where bytes matter."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
import hypothesis
import pytest
from hypothesis import strategies as st

from localrun.chat.messages import ReplyEvent
from localrun.errors import ServerError, UsageError
from localrun.server import guards
from localrun.server.app import ServedApp, create_app
from localrun.server.guards import ServerOptions, json_extent
from localrun.server.serving import listen
from tests.fake_chat import FakeChat, FakeModels
from tests.served import body, exchange, served, status

CHAT = "/v1/chat/completions"
QUESTION = {"model": "fake", "messages": [{"role": "user", "content": "Hi"}]}
BASE = "http://127.0.0.1:7411"


def app(options: ServerOptions | None = None) -> ServedApp:
    return create_app(FakeModels(fake=FakeChat()), options)


@asynccontextmanager
async def client_of(application: ServedApp) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(application)
    async with httpx2.AsyncClient(transport=transport, base_url=BASE) as client:
        yield client


# N1: who can reach the port.


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.0.0.2"])
def test_a_loopback_host_needs_no_key_and_is_bound_to_loopback_only(host: str) -> None:
    with listen(host, 0, api_key=None) as listener:
        assert listener.getsockname()[0] in {"127.0.0.1", "::1", "127.0.0.2"}


OPEN_HOSTS = ["0.0.0.0", "::", "0", "192.0.2.7", "169.254.0.1", "::ffff:192.0.2.7"]


@pytest.mark.parametrize("host", OPEN_HOSTS)
def test_a_host_that_others_reach_is_refused_without_a_key(host: str) -> None:
    with pytest.raises(UsageError, match="reached from other machines") as caught:
        listen(host, 0, api_key=None)

    assert caught.value.exit_code == 2
    assert "--api-key" in caught.value.hint


@pytest.mark.parametrize("host", ["", "a" * 300])
def test_a_host_that_is_none_is_refused(host: str) -> None:
    with pytest.raises(UsageError, match="--host"):
        listen(host, 0, api_key="k")


def test_an_empty_key_is_no_key() -> None:
    with pytest.raises(UsageError):
        listen("0.0.0.0", 0, api_key="")


def test_with_a_key_any_host_may_be_bound() -> None:
    with listen("0.0.0.0", 0, api_key="k") as listener:
        assert listener.getsockname()[0] == "0.0.0.0"


def test_a_port_in_use_is_named() -> None:
    with listen("127.0.0.1", 0, api_key=None) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ServerError, match=f"port {port} on 127.0.0.1") as caught:
            listen("127.0.0.1", port, api_key=None)

    assert caught.value.exit_code == 1


# N3: the Host.

PASSING_HOSTS = ["localhost:PORT", "127.0.0.1:PORT", "[::1]:PORT", "LOCALHOST:PORT"]
REFUSED_HOSTS = [
    "evil.com",
    "evil.com:PORT",
    "EVIL.COM:PORT",
    "127.0.0.1.evil.com:PORT",
    "localhost.evil.com:PORT",
    "evil.com#localhost:PORT",
    "user@localhost:PORT",
    "localhost.:PORT",
    "localhost",
    "127.0.0.1",
    "[::1]",
    "localhost:1",
    "localhost:PORT0",
    "localhost:0PORT",
    "localhost:",
    "::1:PORT",
    "[::]:PORT",
    "[0:0:0:0:0:0:0:1]:PORT",
    "[::ffff:127.0.0.1]:PORT",
    "2130706433:PORT",
    "0x7f.1:PORT",
    "127.1:PORT",
    "0.0.0.0:PORT",
    "127.0.0.2:PORT",
    "192.168.1.5:PORT",
    "localhost:PORT, evil.com",
    "",
]


def _get(path: str, *hosts: str, version: str = "1.1", extra: str = "") -> bytes:
    lines = [f"GET {path} HTTP/{version}", *(f"Host: {host}" for host in hosts)]
    return ("\r\n".join(lines) + f"\r\n{extra}\r\n").encode()


async def test_only_the_loopback_names_with_our_port_pass_the_host_check() -> None:
    async with served(app()) as port:
        passing = {
            host: await exchange(port, _get("/health", host.replace("PORT", str(port))))
            for host in PASSING_HOSTS
        }
        refused = {
            host: await exchange(port, _get("/health", host.replace("PORT", str(port))))
            for host in REFUSED_HOSTS
        }

    assert {host: status(answer) for host, answer in passing.items()} == dict.fromkeys(
        PASSING_HOSTS, 200
    )
    assert {host: (status(answer), body(answer)) for host, answer in refused.items()} == (
        dict.fromkeys(REFUSED_HOSTS, (403, b""))
    )


def _odd_requests(port: int) -> dict[str, bytes]:
    ours = f"127.0.0.1:{port}"
    return {
        "missing": _get("/health"),
        "missing in 1.0": _get("/health", version="1.0"),
        "doubled": _get("/health", ours, ours),
        "doubled, one evil": _get("/health", ours, "evil.com"),
        "absolute form, evil": _get("http://evil.com/health", ours),
        "absolute form, ours": _get(f"http://{ours}/health", ours),
        "absolute form, evil host": _get(f"http://{ours}/health", "evil.com"),
        "authority form": f"CONNECT {ours} HTTP/1.1\r\nHost: {ours}\r\n\r\n".encode(),
        "asterisk form": f"OPTIONS * HTTP/1.1\r\nHost: {ours}\r\n\r\n".encode(),
        "forwarded host": _get("/health", "evil.com", extra=f"X-Forwarded-Host: {ours}\r\n"),
    }


async def test_odd_forms_of_naming_a_host_are_refused_with_an_empty_body() -> None:
    async with served(app()) as port:
        answers = {name: await exchange(port, data) for name, data in _odd_requests(port).items()}

    assert {name: (status(answer), body(answer)) for name, answer in answers.items()} == (
        dict.fromkeys(answers, (403, b""))
    )


async def test_the_host_is_checked_before_routes_keys_and_cors() -> None:
    options = ServerOptions(api_key="k", origins=("https://app.example",))
    extra = "Origin: https://app.example\r\nAccess-Control-Request-Method: POST\r\n"
    async with served(app(options), api_key="k") as port:
        for path in ("/nowhere", CHAT, "/health"):
            answer = await exchange(port, _get(path, "evil.com", extra=extra))
            assert (status(answer), body(answer)) == (403, b"")
            assert b"access-control" not in answer.lower()


async def test_a_configured_host_passes_with_our_port_or_with_its_own() -> None:
    async with served(app(ServerOptions(hosts=("My.Box", "tunnel.example:443")))) as port:
        for host, expected in (
            (f"my.box:{port}", 200),
            ("tunnel.example:443", 200),
            ("my.box", 403),
            (f"tunnel.example:{port}", 403),
        ):
            assert status(await exchange(port, _get("/health", host))) == expected, host


# N4: origins and content types.

STRANGERS = [
    "https://evil.com",
    "null",
    "http://localhost.evil",
    "file://",
    "http://localhost:1",
    "http://localhost:7411",
    "http://127.0.0.1:7411",
    "https://app.example.evil.com",
    "https://app.example:444",
    "HTTPS://APP.EXAMPLE",
    "https://app.example/",
    "https://app.example, https://evil.com",
    "*",
    "",
]
FRIEND = "https://app.example"


@pytest.mark.parametrize("origin", STRANGERS)
@pytest.mark.parametrize("options", [None, ServerOptions(origins=(FRIEND,))], ids=["off", "one"])
async def test_a_strange_origin_is_refused_whatever_it_sends(
    origin: str, options: ServerOptions | None
) -> None:
    headers = {"origin": origin}
    preflight = headers | {"access-control-request-method": "POST"}
    async with client_of(app(options)) as client:
        answers = [
            await client.get("/health", headers=headers),
            await client.get("/v1/models", headers=headers),
            await client.post(CHAT, json=QUESTION, headers=headers),
            await client.post(CHAT, content="x", headers=headers | {"content-type": "text/plain"}),
            await client.options(CHAT, headers=preflight),
        ]

    assert [answer.status_code for answer in answers] == [403] * 5
    assert {answer.content for answer in answers} == {b""}
    assert not any("access-control-allow-origin" in answer.headers for answer in answers)


async def test_two_origins_are_refused_even_if_one_is_a_friend() -> None:
    headers = [("origin", FRIEND), ("origin", "https://evil.com")]
    async with client_of(app(ServerOptions(origins=(FRIEND,)))) as client:
        assert (await client.get("/health", headers=headers)).status_code == 403


async def test_one_configured_origin_is_echoed_exactly_and_alone() -> None:
    options = ServerOptions(origins=("https://other.example", FRIEND), api_key="k")
    async with client_of(app(options)) as client:
        preflight = await client.options(
            CHAT,
            headers={
                "origin": FRIEND,
                "access-control-request-method": "POST",
                "access-control-request-headers": "authorization,content-type",
            },
        )
        headers = {"origin": FRIEND, "authorization": "Bearer k"}
        answer = await client.post(CHAT, json=QUESTION, headers=headers)
        refused = await client.post(CHAT, json=QUESTION, headers={"origin": FRIEND})

    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-headers"] == "authorization,content-type"
    assert (answer.status_code, refused.status_code) == (200, 401)
    for response in (preflight, answer, refused):
        assert response.headers.get_list("access-control-allow-origin") == [FRIEND]
        assert "access-control-allow-credentials" not in response.headers


async def test_no_origin_means_no_cors_headers() -> None:
    async with client_of(app(ServerOptions(origins=(FRIEND,)))) as client:
        answer = await client.get("/health")

    assert not [name for name in answer.headers if name.startswith("access-control")]


TYPES = [
    "",
    "text/plain",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
    "application/jsonp",
    "text/plain; application/json",
    "application/json, text/plain",
]


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "FOO"])
async def test_what_changes_state_and_is_not_json_is_415(kind: str, method: str) -> None:
    async with client_of(app()) as client:
        answer = await client.request(
            method, CHAT, content=json.dumps(QUESTION).encode(), headers={"content-type": kind}
        )

    assert answer.status_code == 415
    assert answer.json()["error"]["code"] == "not_json"


async def test_a_body_of_no_kind_is_json_unless_a_browser_may_have_sent_it() -> None:
    content = json.dumps(QUESTION).encode()
    options = ServerOptions(origins=(FRIEND,))
    async with client_of(app(options)) as client:
        alone = await client.post(CHAT, content=content)
        page = await client.post(CHAT, content=content, headers={"origin": FRIEND})
        fetched = await client.post(CHAT, content=content, headers={"sec-fetch-site": "none"})

    assert (alone.status_code, page.status_code, fetched.status_code) == (200, 415, 415)


@pytest.mark.parametrize(
    "kind", ["application/json", "application/json; charset=utf-8", "Application/JSON"]
)
async def test_json_by_any_of_its_names_is_taken(kind: str) -> None:
    async with client_of(app()) as client:
        answer = await client.post(
            CHAT, content=json.dumps(QUESTION).encode(), headers={"content-type": kind}
        )

    assert answer.status_code == 200


# Sizes and depths.


async def test_a_body_that_announces_too_much_is_refused_unread() -> None:
    async with served(app()) as port:
        size = guards.MAX_BODY_BYTES + 1
        head = (
            f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {size}\r\n\r\n"
        )
        answer = await exchange(port, head.encode())

    assert status(answer) == 413
    assert json.loads(body(answer))["error"]["code"] == "body_too_large"


async def test_a_chunked_body_is_refused_when_it_grows_too_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(guards, "MAX_BODY_BYTES", 1000)

    async def grows() -> AsyncIterator[bytes]:
        for _ in range(11):
            yield b" " * 100

    async with client_of(app()) as client:
        headers = {"content-type": "application/json"}
        answer = await client.post(CHAT, content=grows(), headers=headers)

    assert answer.status_code == 413


async def test_a_body_at_the_limit_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    text = json.dumps(QUESTION).encode()
    monkeypatch.setattr(guards, "MAX_BODY_BYTES", len(text))
    headers = {"content-type": "application/json"}
    async with client_of(app()) as client:
        assert (await client.post(CHAT, content=text, headers=headers)).status_code == 200
        over = await client.post(CHAT, content=text + b" ", headers=headers)

    assert over.status_code == 413


DEEP = {
    "65 lists": b"[" * 65 + b"]" * 65,
    "65 objects": b'{"a":' * 65 + b"1" + b"}" * 65,
    "100,000 lists": b"[" * 100_000,
    "in a long body": b" " * 300_000 + b"[" * 65,
}


@pytest.mark.parametrize("text", DEEP.values(), ids=DEEP.keys())
async def test_json_that_is_too_deep_is_400(text: bytes) -> None:
    async with client_of(app()) as client:
        answer = await client.post(CHAT, content=text, headers={"content-type": "application/json"})

    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "json_too_deep"


DEPTHS = {
    b"": 0,
    b"1": 0,
    b"[]": 1,
    b'{"a":[{}]}': 3,
    b'"[[["': 0,
    rb'"\"[[["': 0,
    rb'"\\"[[': 2,
    rb'["\\\"[["]': 1,
    b'"[[[': 0,
    b"]][[": 0,
    b"[" * 64: 64,
}


@pytest.mark.parametrize(("text", "depth"), DEPTHS.items())
def test_depth_counts_brackets_outside_strings(text: bytes, depth: int) -> None:
    assert json_extent(text).depth == depth


def _extent_by_character(text: bytes) -> tuple[int, int, int]:
    depth = deepest = containers = commas = 0
    inside = escaped = False
    for byte in text:
        char = chr(byte)
        # Outside of strings no parser goes on behind a backslash.
        if escaped and char in '"\\':
            escaped = False
            continue
        escaped = False
        if char == "\\":
            escaped = True
        elif char == '"':
            inside = not inside
        elif not inside:
            depth += (char in "[{") - (char in "]}")
            deepest = max(deepest, depth)
            containers += char in "[{"
            commas += char == ","
    return deepest, containers, commas + containers


@hypothesis.given(
    text=st.lists(st.sampled_from([b'"', b"\\", b"[", b"]", b"{", b"}", b",", b"a"]), max_size=40),
    size=st.integers(1, 7),
)
def test_a_body_is_measured_alike_in_pieces_of_any_size(text: list[bytes], size: int) -> None:
    body = b"".join(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guards, "_PIECE_BYTES", size)
        extent = json_extent(body)

    assert (extent.depth, extent.containers, extent.values) == _extent_by_character(body)


@pytest.mark.parametrize("text", [rb"\"", b'"', b"[]", b'"a",', b"\\"], ids=repr)
def test_depth_of_a_large_body_takes_no_quadratic_time(text: bytes) -> None:
    # A quadratic scan would take many minutes; the assertion is that this returns at all.
    assert json_extent(text * (1024 * 1024 // len(text))).depth <= 1


async def test_too_many_or_too_long_header_fields_are_refused() -> None:
    async with served(app()) as port:
        host = f"127.0.0.1:{port}"
        many = "".join(f"X-{n}: 1\r\n" for n in range(100))
        long = f"X-Long: {'a' * (guards.MAX_HEADER_BYTES - 100)}\r\n"
        assert status(await exchange(port, _get("/health", host, extra=many))) == 431
        assert status(await exchange(port, _get("/health", host, extra=long))) == 200
        assert status(await exchange(port, _get("/health", host, extra=long + long))) in {400, 431}


BAD_HTTP = {
    "no http": b"hello\r\n\r\n",
    "a null in a header": b"GET /health HTTP/1.1\r\nHost: a\0b\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "a negative length": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
    "a tls hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
}


@pytest.mark.parametrize("data", BAD_HTTP.values(), ids=BAD_HTTP.keys())
async def test_what_is_not_http_gets_400_without_a_word(data: bytes) -> None:
    async with served(app()) as port:
        answer = await exchange(port, data)

    assert (status(answer), body(answer)) == (400, b"")


async def test_a_request_that_does_not_arrive_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("localrun.server.protocol.DeadlineProtocol.receipt_s", 0.05)
    async with served(app()) as port:
        host = f"Host: 127.0.0.1:{port}\r\n"
        beginnings = [
            "",
            "GET /hea",
            f"GET /health HTTP/1.1\r\n{host}",
            f"POST {CHAT} HTTP/1.1\r\n{host}Content-Type: application/json\r\n"
            "Content-Length: 50\r\n\r\n{",
        ]
        for beginning in beginnings:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(beginning.encode())
            async with asyncio.timeout(5):
                # The connection ends, by a reset or an end, with nothing said.
                await asyncio.gather(_read_to_the_end(reader), return_exceptions=True)
            writer.close()
            await asyncio.gather(writer.wait_closed(), return_exceptions=True)


async def _read_to_the_end(reader: asyncio.StreamReader) -> None:
    assert await reader.read() == b""


async def test_an_answer_that_takes_longer_than_the_receipt_deadline_is_not_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("localrun.server.protocol.DeadlineProtocol.receipt_s", 0.05)
    chat = FakeChat((ReplyEvent(text="lo"),), endless=True)
    async with served(create_app(FakeModels(fake=chat))) as port:
        text = json.dumps(QUESTION | {"stream": True}).encode()
        head = (
            f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
        )
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head.encode() + text)
        await reader.readuntil(b'"lo"')
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await reader.readuntil(b"never")
        assert chat.running == 1
        writer.close()
        await writer.wait_closed()
        await chat.ended.wait()
