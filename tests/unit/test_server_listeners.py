"""A server with several ports: each answers, each by its own name, and what is taken stops none."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket

import pytest

from localrun.config import Settings
from localrun.server.app import create_app
from localrun.server.running import register, running
from localrun.server.serving import COMPAT_PORTS, listen, listen_compatibly, serve
from tests.fake_chat import FakeChat, FakeModels
from tests.served import body, exchange, status


def request(port: int, host: str) -> bytes:
    return f"GET /v1/models HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()


async def test_every_listener_answers_to_its_own_port_and_to_no_others_name() -> None:
    app = create_app(FakeModels(fake=FakeChat()))
    listeners = [listen("127.0.0.1", 0, api_key=None) for _ in range(3)]
    ports = [listener.getsockname()[1] for listener in listeners]
    serving = asyncio.create_task(serve(app, *listeners, log=None))

    own = [await exchange(port, request(port, f"localhost:{port}")) for port in ports]
    other = await exchange(ports[1], request(ports[1], f"localhost:{ports[0]}"))
    rebound = await exchange(ports[2], request(ports[2], f"evil.example:{ports[2]}"))
    signal.raise_signal(signal.SIGTERM)

    assert [status(answer) for answer in own] == [200] * 3
    assert [json.loads(body(answer))["data"][0]["id"] for answer in own] == ["fake"] * 3
    assert (status(other), status(rebound)) == (403, 403)
    assert await serving == 0
    assert [listener.fileno() for listener in listeners] == [-1] * 3


def test_ports_that_are_in_use_are_named_and_the_others_opened() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as theirs,
        socket.create_server(("127.0.0.1", 0)) as ended,
    ):
        taken, free = theirs.getsockname()[1], ended.getsockname()[1]
        ended.close()

        listeners, refused = listen_compatibly(1, api_key=None, ports=(taken, free))

    try:
        assert refused == [taken]
        assert [each.getsockname() for each in listeners] == [("127.0.0.1", free)]
    finally:
        for each in listeners:
            each.close()


def test_the_port_that_was_asked_for_is_not_opened_twice() -> None:
    assert listen_compatibly(COMPAT_PORTS[0], api_key=None, ports=COMPAT_PORTS[:1]) == ([], [])


def test_a_server_tells_its_further_ports(here: Settings) -> None:
    with register(here, host="127.0.0.1", port=7411, models=[], compat_ports=[8012]) as server:
        assert running(here) == (server,)
        assert server.compat_ports == (8012,)


def test_a_server_registered_before_there_were_further_ports_is_listed(here: Settings) -> None:
    with register(here, host="127.0.0.1", port=7411, models=[]) as server:
        file = here.state / "servers" / f"{os.getpid()}.json"
        fields = json.loads(file.read_text())
        del fields["compat_ports"]
        file.write_text(json.dumps(fields))

        assert running(here) == (server,)


@pytest.mark.parametrize("ports", ["x", [None], 5])
def test_further_ports_that_are_none_sweep_the_file(ports: object, here: Settings) -> None:
    with register(here, host="127.0.0.1", port=7411, models=[]):
        file = here.state / "servers" / f"{os.getpid()}.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"compat_ports": ports}))

        assert running(here) == ()
        assert not file.exists()
