"""Rows N3 and N4 of the threat table on every route: Host, Origin and content type come first."""

from __future__ import annotations

from typing import Final

from localrun.server.app import ServedApp, create_app
from localrun.server.guards import ServerOptions
from tests.fake_chat import FakeChat, FakeModels
from tests.security.port_routes import client_of, examples, ways_in

FRIEND: Final = "https://app.example"
FORMS: Final = (
    "text/plain",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
)


def app() -> ServedApp:
    chat = FakeChat()
    return create_app(FakeModels(fake=chat), ServerOptions(origins=(FRIEND,), docs=True))


async def test_no_route_answers_a_strange_host_or_origin() -> None:
    application = app()
    strangers = (
        {"host": "evil.com:7411"},
        {"host": "evil.com:7411", "origin": FRIEND},
        {"origin": "https://evil.com"},
        {"origin": "null"},
        {"origin": "https://evil.com", "access-control-request-method": "POST"},
    )
    wrong = []
    async with client_of(application) as client:
        for method, path in ways_in(application):
            for headers in strangers:
                body = examples("fake").get(path, {})
                answer = await client.request(method, path, json=body, headers=headers)
                allowed = [name for name in answer.headers if name.startswith("access-control")]
                if (answer.status_code, answer.content, allowed) != (403, b"", []):
                    wrong.append((method, path, headers, answer.status_code))

    assert not wrong


async def test_every_route_tells_a_friend_that_it_may_read_and_nobody_else() -> None:
    application = app()
    async with client_of(application) as client:
        for method, path in ways_in(application):
            body = examples("fake").get(path, {})
            answer = await client.request(method, path, json=body, headers={"origin": FRIEND})
            assert answer.headers.get_list("access-control-allow-origin") == [FRIEND], path


async def test_no_route_that_changes_state_takes_what_a_web_page_may_send_unasked() -> None:
    application = app()
    wrong = []
    async with client_of(application) as client:
        for method, path in ways_in(application):
            if method in ("GET", "HEAD", "OPTIONS"):
                continue
            for kind in FORMS:
                answer = await client.request(
                    method, path, content=b"{}", headers={"content-type": kind}
                )
                if answer.status_code != 415:
                    wrong.append((method, path, kind, answer.status_code))

    assert not wrong
