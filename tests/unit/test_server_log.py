"""One line a request, for people or programs: what it was and cost, and never what was said."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from typing import Any

import httpx2
import pytest

from localrun.chat.messages import Message, ReplyEvent, ReplyOptions
from localrun.engine.request import FinishReason
from localrun.errors import EngineCrashedError
from localrun.server.app import ServedApp, create_app
from localrun.server.guards import ServerOptions
from localrun.server.log import Form, log_to
from tests.fake_chat import FakeChat, FakeModels
from tests.security.terminal_payloads import PAYLOADS, foreign, turned
from tests.served import exchange, served

BASE = "http://127.0.0.1:7411"
CHAT = "/v1/chat/completions"
QUESTION = {"model": "fake", "messages": [{"role": "user", "content": "my secret words"}]}
LOGGERS = ("uvicorn.error", "localrun.server", "localrun.server.requests")
Lines = Callable[[], list[Any]]


@pytest.fixture
def loggers() -> Iterator[None]:
    """Loggers are the process's own: as they were, when the test ends."""
    kept = [
        (each, each.handlers, each.propagate, each.level)
        for each in map(logging.getLogger, LOGGERS)
    ]
    yield
    for logger, handlers, propagate, level in kept:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.fixture
def text(loggers: None) -> Lines:
    return _logging("text")


@pytest.fixture
def documents(loggers: None) -> Lines:
    return _logging("json")


def _logging(form: Form) -> Lines:
    stream = io.StringIO()
    log_to(stream, form=form)

    def lines() -> list[Any]:
        found = stream.getvalue().splitlines()
        return found if form == "text" else [json.loads(line) for line in found]

    return lines


def client_of(app: ServedApp) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url=BASE)


def app_of(chat: FakeChat | None = None, options: ServerOptions | None = None) -> ServedApp:
    return create_app(FakeModels(fake=chat or FakeChat()), options)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_an_answer_is_one_document_with_its_costs(documents: Lines, stream: bool) -> None:
    async with client_of(app_of()) as client:
        response = await client.post(CHAT, json=QUESTION | {"stream": stream})

    (line,) = documents()
    assert line.pop("id") == response.headers["x-request-id"]
    assert line.pop("time").endswith("Z")
    assert 0 <= line.pop("first_token_ms") <= line.pop("total_ms")
    assert line == {
        "level": "info",
        "method": "POST",
        "path": CHAT,
        "status": 200,
        "model": "fake",
        "prompt_tokens": 10,
        "cached_tokens": 4,
        "generated_tokens": 3,
        "finish_reason": "stop",
    }


async def test_for_people_it_is_one_line(text: Lines) -> None:
    async with client_of(app_of()) as client:
        response = await client.post(CHAT, json=QUESTION)

    (line,) = text()
    head = f"POST {CHAT} 200 id={response.headers['x-request-id']} model=fake prompt_tokens=10 "
    assert head in line
    assert line.endswith(" finish_reason=stop")


async def test_requests_have_ids_of_their_own_and_anthropics_clients_find_them_by_their_name(
    documents: Lines,
) -> None:
    async with client_of(app_of()) as client:
        answers = [await client.get("/health", headers={"x-request-id": "mine"}) for _ in range(2)]
        theirs = await client.post("/v1/messages", content="x")

    ids = [answer.headers.get_list("x-request-id") for answer in (*answers, theirs)]
    assert [[line["id"]] for line in documents()] == ids
    assert len({id_ for (id_,) in ids}) == 3
    assert "mine" not in str(ids)
    assert theirs.headers["request-id"] == theirs.headers["x-request-id"]
    assert "request-id" not in answers[0].headers


MANY = dict.fromkeys(map(str, range(200)), "1")
REFUSED: dict[str, tuple[str, str, dict[str, Any], tuple[str, str, int]]] = {
    "no key": ("GET", "/v1/models", {}, ("GET", "/v1/models", 401)),
    "a strange host": ("GET", "/health", {"headers": {"host": "evil"}}, ("GET", "/health", 403)),
    "a strange origin": ("GET", "/x", {"headers": {"origin": "null"}}, ("GET", "other", 403)),
    "many fields": ("GET", "/health", {"headers": MANY}, ("GET", "/health", 431)),
    "no route": ("GET", "/nowhere?a=b", {}, ("GET", "other", 401)),
    "a method nobody knows": ("BREW", CHAT, {}, ("other", CHAT, 401)),
}  # fmt: skip


@pytest.mark.parametrize(("method", "path", "sent", "said"), REFUSED.values(), ids=REFUSED.keys())
async def test_what_the_guards_refuse_is_logged(
    documents: Lines, method: str, path: str, sent: dict[str, Any], said: tuple[str, str, int]
) -> None:
    async with client_of(app_of(options=ServerOptions(api_key="k"))) as client:
        await client.request(method, path, **sent)

    (line,) = documents()
    assert (line["method"], line["path"], line["status"]) == said


async def test_what_is_no_http_is_logged(documents: Lines) -> None:
    async with served(app_of()) as port:
        await exchange(port, b"hello\r\n\r\n")
        await exchange(port, b"GET /health HTTP/1.1\r\n\r\n")

    said = [(line["method"], line["status"]) for line in documents() if "status" in line]
    assert said == [("other", 400), ("other", 403)]


class _Crashing(FakeChat):
    async def reply(
        self, messages: Sequence[Message], options: ReplyOptions
    ) -> AsyncGenerator[ReplyEvent]:
        yield ReplyEvent(text="a")
        raise EngineCrashedError("gone")


FAILING = {
    "an error event": FakeChat(
        (
            ReplyEvent(text="a"),
            ReplyEvent(finish=FinishReason.ERROR, error=EngineCrashedError("gone")),
        )
    ),
    "an exception": _Crashing(),
}


@pytest.mark.parametrize("chat", FAILING.values(), ids=FAILING.keys())
async def test_a_stream_that_fails_on_its_way_says_so_in_the_log(
    documents: Lines, chat: FakeChat
) -> None:
    async with client_of(app_of(chat)) as client:
        await client.post(CHAT, json=QUESTION | {"stream": True})

    (line,) = documents()
    assert line["status"] == 200
    assert (line["finish_reason"], line["error"]) == ("error", "EngineCrashedError")


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_a_client_that_leaves_is_logged_as_499(documents: Lines, stream: bool) -> None:
    chat = FakeChat((ReplyEvent(text="lo"),), endless=True)
    async with served(app_of(chat)) as port:
        body = json.dumps(QUESTION | {"stream": stream}).encode()
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            f"POST {CHAT} HTTP/1.1\r\nHost: localhost:{port}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        await chat.started.wait()
        writer.close()
        await writer.wait_closed()
        await chat.ended.wait()

    (line,) = documents()
    assert (line["status"], line["finish_reason"]) == (499, "cancelled")


async def test_a_client_that_leaves_before_its_body_is_whole_is_logged_as_499(
    documents: Lines,
) -> None:
    async with served(app_of()) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            f"POST {CHAT} HTTP/1.1\r\nHost: localhost:{port}\r\nContent-Type: application/json\r\n"
            "Content-Length: 9\r\n\r\n{".encode()
        )
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()

    assert [line["status"] for line in documents() if "status" in line] == [499]


async def test_what_nobody_foresaw_is_logged_with_its_traceback(documents: Lines) -> None:
    class Broken(FakeModels):
        def names(self) -> Any:
            raise ZeroDivisionError("\x1b[31mred\nforged")

    async with served(create_app(Broken())) as port, httpx2.AsyncClient() as client:
        answer = await client.get(f"http://127.0.0.1:{port}/v1/models")

    assert answer.status_code == 500
    error, request = sorted(documents(), key=lambda line: line["level"])
    assert (request["status"], request["path"]) == (500, "/v1/models")
    assert "ZeroDivisionError" in error["traceback"]


@pytest.mark.parametrize("form", ["text", "json"])
async def test_neither_texts_nor_keys_nor_queries_are_logged(loggers: None, form: Form) -> None:
    stream = io.StringIO()
    log_to(stream, form=form)
    planted = "sk-planted"
    chat = FakeChat((ReplyEvent(text="my secret answer"), ReplyEvent(finish=FinishReason.STOP)))
    async with client_of(app_of(chat, ServerOptions(api_key=planted))) as client:
        for key in (planted, "sk-planted-wrong"):
            headers = {"authorization": f"Bearer {key}", "cookie": key}
            await client.post(f"{CHAT}?key={key}", json=QUESTION | {"user": "zoe"}, headers=headers)
            await client.get(f"/v1/models/{key}?q={key}", headers=headers)
            await client.get(f"/{key}", headers=headers)

    logged = stream.getvalue()
    assert logged.count("\n") == 6
    assert not [word for word in (planted, "secret", "zoe", "?") if word in logged]


def _raw(port: int, path: bytes, method: bytes = b"GET") -> bytes:
    return method + b" " + path + f" HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n".encode()


@pytest.mark.parametrize("form", ["text", "json"])
async def test_what_a_terminal_obeys_never_reaches_the_log(loggers: None, form: Form) -> None:
    stream = io.StringIO()
    log_to(stream, form=form)
    async with served(app_of()) as port, httpx2.AsyncClient() as client:
        for payload in PAYLOADS.values():
            quoted = "".join(f"%{byte:02x}" for byte in payload.encode()).encode()
            for request in (
                _raw(port, b"/" + quoted),
                _raw(port, b"/v1/models/" + quoted),
                _raw(port, b"/" + payload.encode()),
                _raw(port, b"/", payload.encode()),
            ):
                await exchange(port, request)
            asked = QUESTION | {"model": payload + "\nPOST /forged 200"}
            assert (await client.post(f"http://127.0.0.1:{port}{CHAT}", json=asked)).is_error
            logging.getLogger("localrun.server.part").warning("a tool called %s", payload)
            logging.getLogger("uvicorn.error").error("failed", exc_info=ValueError(payload))

    logged = stream.getvalue()
    assert logged.count("POST /v1/chat/completions" if form == "text" else CHAT) == len(PAYLOADS)
    assert not foreign(logged)
    assert not turned(logged)
    assert not [line for line in logged.splitlines() if line.startswith("POST /forged")]
    if form == "json":
        assert all(json.loads(line) for line in logged.splitlines())


async def test_a_models_name_cannot_pass_for_another_field(text: Lines) -> None:
    async with client_of(app_of()) as client:
        await client.post(CHAT, json=QUESTION | {"model": 'a" finish_reason=stop'})

    (line,) = text()
    assert 'model="a\\" finish_reason=stop" ' in line


async def test_the_tokens_of_all_choices_are_added_up(documents: Lines) -> None:
    async with client_of(app_of()) as client:
        await client.post(CHAT, json=QUESTION | {"n": 2})

    (line,) = documents()
    assert (line["prompt_tokens"], line["cached_tokens"], line["generated_tokens"]) == (20, 8, 6)
