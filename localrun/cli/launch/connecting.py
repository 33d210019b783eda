"""Knows no editor: which server and which of its models are meant, and how long its context is."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from localrun.cli.launch.description import Connection
from localrun.cli.output import note
from localrun.errors import DoesNotFitError, ModelNotFoundError, ServerError
from localrun.ref import PathRef, parse

if TYPE_CHECKING:
    from localrun.config import Settings
    from localrun.server.running import RunningServer

ASK_S = 10.0


@dataclass(frozen=True, slots=True)
class Wish:
    """What the command line says. ``n_ctx`` is the context asked for, ``wanted_n_ctx`` what the
    agent had better have."""

    ref: str | None
    server: str | None
    n_ctx: int | None
    api_key: str | None
    wanted_n_ctx: int = 0


@dataclass(frozen=True, slots=True)
class Found:
    """``running``: a server answers there; otherwise one has to be started."""

    connection: Connection
    running: bool


def connect(wish: Wish, here: Settings) -> Found:
    """The server named, else one of this user's that runs, else the address of one yet to be.

    Raises:
        ModelNotFoundError: no such model, or none at all. ServerError: no answer, or a key is
        needed. PlanError, UsageError: as for planning.
    """
    from localrun.server.running import running

    if wish.server is not None:
        return Found(_asked(wish.server, wish.ref, wish, None), running=True)
    servers = running(here)
    if servers:
        name = None if wish.ref is None else _name(wish.ref, here)
        server = _best(servers, name)
        name = name or next(iter(server.models), None)
        return Found(_asked(server.url, name, wish, here), running=True)
    from localrun.server.serving import DEFAULT_HOST, DEFAULT_PORT

    name = _first(here) if wish.ref is None else _name(wish.ref, here)
    url = f"http://{DEFAULT_HOST}:{DEFAULT_PORT}"
    connection = Connection(url, name, _planned(name, wish, here), keyed=bool(wish.api_key))
    return Found(connection, running=False)


def _best(servers: tuple[RunningServer, ...], name: str | None) -> RunningServer:
    return next((server for server in servers if name in server.models), servers[0])


def _name(ref: str, here: Settings) -> str:
    """What a server calls the model: a path as it was typed, anything else in canonical form."""
    from localrun.cli.loading import find

    found = find(ref, here)
    return ref if isinstance(parse(ref), PathRef) else str(found.ref)


def _first(here: Settings) -> str:
    from localrun.store.library import Library

    names = [model.ref for model in Library(here).list() if model.state == "ok"]
    if not names:
        raise ModelNotFoundError("no model is on this disk", hint="localrun pull smollm2")
    if len(names) > 1:
        note(f"no model was named: {names[0]}, the first of `localrun list`")
    return names[0]


def _asked(server: str, name: str | None, wish: Wish, here: Settings | None) -> Connection:
    """The connection to a server that is asked for its models. ``here`` where it is ours."""
    from localrun.chat.remote import RemoteChatModel

    async def ask() -> tuple[str, str, int]:
        remote = RemoteChatModel(server, wish.api_key, name)
        try:
            await remote.connect()
            url = remote.backend.removesuffix("/v1")
            return url, remote.name, remote.n_ctx or await _context(url, remote.name, wish.api_key)
        finally:
            await remote.close()

    url, model, n_ctx = asyncio.run(ask())
    n_ctx = wish.n_ctx or n_ctx
    if not n_ctx and here is not None:
        n_ctx = _planned(model, wish, here)
    if not n_ctx:
        raise ServerError(f"{url} does not say what context {model} has", hint="say it with --ctx")
    return Connection(url, model, n_ctx, keyed=bool(wish.api_key))


async def _context(url: str, model: str, key: str | None) -> int:
    """What ``GET /props`` says, as llama.cpp's server tells it; 0 where it says nothing."""
    import httpx2

    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        async with httpx2.AsyncClient(headers=headers, timeout=ASK_S) as http:
            answer = await http.get(f"{url}/props", params={"model": model})
            fields: Any = answer.json()
            return max(0, int(fields["default_generation_settings"]["n_ctx"]))
    except (httpx2.HTTPError, ValueError, KeyError, TypeError):
        return 0


def _planned(name: str, wish: Wish, here: Settings) -> int:
    """The context that a server started now gives the model: what the agent had better have, where
    the model was trained for it and it fits."""
    from localrun.cli.loading import planned, prepare
    from localrun.plan.plan import PlanRequest

    usual = prepare(name, PlanRequest(n_ctx=wish.n_ctx), here)
    n_ctx = usual.plan.execution.n_ctx
    more = min(usual.spec.n_ctx_train or 0, wish.wanted_n_ctx)
    if wish.n_ctx is not None or more <= n_ctx:
        return n_ctx
    try:
        made = planned(usual.found, PlanRequest(n_ctx=more), usual.machine).plan
    except DoesNotFitError:
        return n_ctx
    return made.execution.n_ctx
