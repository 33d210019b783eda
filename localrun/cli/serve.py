"""Knows no route: ``localrun serve``, ``ps`` and ``stop``."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from localrun.cli.options import (
    ApproximatePrefill,
    Backend,
    Ctx,
    Draft,
    Engram,
    Json,
    KeepAlive,
    KvType,
    Learn,
    Mirror,
    Numerics,
    Parallel,
    Ram,
    Speculation,
    Threads,
    Vram,
)
from localrun.cli.output import emit_json, note, say, table
from localrun.errors import UsageError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from localrun.cli.guessing import Guessing
    from localrun.config import Settings
    from localrun.plan.plan import PlanRequest
    from localrun.ref import ModelRef
    from localrun.server.guards import ServerOptions
    from localrun.server.models import ModelCard
    from localrun.server.provider import LoadingProvider
    from localrun.server.room import Candidate
    from localrun.server.running import RunningServer
    from localrun.store.progress import Progress

Refs = Annotated[
    list[str] | None,
    typer.Argument(metavar="REF", help="Models to load now; others load when asked for."),
]
Host = Annotated[str, typer.Option("--host", help="Another one than loopback needs --api-key.")]
Port = Annotated[str, typer.Option("--port", help="A number, or auto for any free port.")]
ApiKey = Annotated[
    str | None, typer.Option("--api-key", help="Clients must send it; better in LOCALRUN_API_KEY.")
]
CorsOrigin = Annotated[
    list[str] | None,
    typer.Option("--cors-origin", help="Let pages of exactly this origin call the port."),
]
AllowedHost = Annotated[
    list[str] | None,
    typer.Option("--allowed-host", help="A name this machine is called by on the network."),
]
CompatPorts = Annotated[
    bool,
    typer.Option("--compat-ports", help="Listen on 127.0.0.1:11434 and :8012 too, where free."),
]
Log = Annotated[
    Literal["text", "json"],
    typer.Option("--log", help="Requests on stderr: lines for people, or for programs."),
]
Install = Annotated[
    bool, typer.Option("--install-service", help="Write a service of this command line instead.")
]
Uninstall = Annotated[
    bool, typer.Option("--uninstall-service", help="Remove the service that was written.")
]
Yes = Annotated[bool, typer.Option("--yes", help="Write the service without asking.")]
ServerName = Annotated[
    str | None, typer.Argument(metavar="PORT|PID", help="Which one, where several run.")
]
All = Annotated[bool, typer.Option("--all", help="Every running server.")]


def serve(
    context: typer.Context,
    refs: Refs = None,
    host: Host = "127.0.0.1",
    port: Port = "7411",
    api_key: ApiKey = None,
    cors_origin: CorsOrigin = None,
    allowed_host: AllowedHost = None,
    ctx: Ctx = None,
    kv_type: KvType = None,
    threads: Threads = None,
    ram: Ram = None,
    vram: Vram = None,
    engram: Engram = None,
    mirror: Mirror = None,
    backend: Backend = None,
    numerics: Numerics = None,
    approximate_prefill: ApproximatePrefill = False,
    parallel: Parallel = 1,
    draft: Draft = None,
    speculation: Speculation = "auto",
    keep_alive: KeepAlive = 1800.0,
    compat_ports: CompatPorts = False,
    learn: Learn = True,
    log: Log = "text",
    install_service: Install = False,
    uninstall_service: Uninstall = False,
    yes: Yes = False,
) -> int:
    """Serve models on a local port for editors, agents and SDKs of every dialect."""
    import asyncio

    from localrun.cli.beside import plan_together
    from localrun.cli.guessing import guessing
    from localrun.cli.options import mirrors_of
    from localrun.config import settings
    from localrun.plan.plan import PlanRequest
    from localrun.server.guards import ServerOptions
    from localrun.server.serving import parse_port

    here = settings()
    if uninstall_service:
        from localrun.cli.service import uninstall

        return uninstall(here)
    request = PlanRequest(
        n_ctx=ctx,
        kv_type=kv_type,
        threads=threads,
        backend=backend,
        ram_bytes=ram,
        vram_bytes=vram,
        engram=engram,
        mirrors=mirrors_of(mirror),
        parallel=parallel,
        numerics=numerics,
        approximate_prefill=approximate_prefill,
    )
    wanted = guessing(speculation, draft)
    if draft is not None and not refs:
        raise UsageError(f"--draft {draft}: name the model that it guesses for")
    number = parse_port(port)
    if install_service:
        from localrun.cli.service import install

        _check_service(refs or (), host, api_key, here)
        return install(context, here, yes=yes)
    # Opened first: a port in use is said before any weight is loaded.
    listeners = _listeners(host, number, api_key, compat_ports)
    options = ServerOptions(
        api_key=api_key,
        origins=tuple(cors_origin or ()),
        hosts=tuple(allowed_host or ()),
    )
    with ExitStack() as stack:
        for listener in listeners:
            stack.enter_context(listener)
        given = tuple(dict.fromkeys(refs or ()))
        plan_together(given, request, here, wanted)
        look = _looking(given, request, here, wanted, learn=learn)
        keep_alive_s = None if keep_alive < 0 else keep_alive
        return asyncio.run(_serve(listeners, options, given, look, here, keep_alive_s, log))


def _check_service(refs: Sequence[str], host: str, api_key: str | None, here: Settings) -> None:
    """What a service would end with is said now. Raises as ``listen`` and ``find``."""
    from localrun.cli.loading import find
    from localrun.server.serving import listen

    listen(host, 0, api_key=api_key).close()
    for ref in refs:
        find(ref, here, offer=True)


def _listeners(
    host: str, port: int, api_key: str | None, compat_ports: bool
) -> list[socket.socket]:
    """The socket that was asked for, and behind it those of ``--compat-ports`` that are free."""
    from localrun.server.serving import listen, listen_compatibly

    listener = listen(host, port, api_key=api_key)
    if not compat_ports:
        return [listener]
    further, taken = listen_compatibly(listener.getsockname()[1], api_key=api_key)
    if taken:
        names = ", ".join(f"127.0.0.1:{each}" for each in taken)
        note(f"--compat-ports: in use by another program: {names}")
    return [listener, *further]


async def _serve(
    listeners: list[socket.socket],
    options: ServerOptions,
    given: tuple[str, ...],
    look: Callable[[str], Candidate],
    here: Settings,
    keep_alive_s: float | None,
    log: Literal["text", "json"],
) -> int:
    from localrun.server.app import create_app
    from localrun.server.running import register, update
    from localrun.server.serving import serve as run_server

    running: RunningServer | None = None
    loaded: tuple[str, ...] = ()

    def changed(names: tuple[str, ...]) -> None:
        nonlocal loaded
        loaded = names
        if running is not None:
            update(here, running, names)

    host, port = listeners[0].getsockname()[:2]
    compat_ports = [listener.getsockname()[1] for listener in listeners[1:]]
    provider = _provider(given, look, here, keep_alive_s, changed)
    app = create_app(provider, options)
    try:
        for ref in given:
            async with provider.lease(ref):
                pass
        with register(
            here, host=host, port=port, models=loaded, compat_ports=compat_ports
        ) as running:
            say(f"{running.url}/v1")
            # Into a pipe too: whoever started it waits for this line.
            sys.stdout.flush()
            for each in compat_ports:
                note(f"also at http://127.0.0.1:{each}")
            note("Ctrl-C stops it")
            return await run_server(app, *listeners, log=log)
    finally:
        await provider.close()


def _looking(
    given: tuple[str, ...],
    request: PlanRequest,
    here: Settings,
    wanted: Guessing,
    *,
    learn: bool,
) -> Callable[[str], Candidate]:
    """How a model is looked up. A model that guesses does so for those it was named with."""
    from localrun.cli.beside import Beside
    from localrun.cli.guessing import Guessing

    others = Guessing(wanted.on)

    def look(name: str) -> Candidate:
        return Beside(name, request, here, wanted if name in given else others, learn=learn)

    return look


def _provider(
    given: tuple[str, ...],
    look: Callable[[str], Candidate],
    here: Settings,
    keep_alive_s: float | None,
    changed: Callable[[tuple[str, ...]], None],
) -> LoadingProvider:
    """Models by their canonical reference: those of the command line, and any on this disk."""
    from localrun.cli.facts import KnownFacts
    from localrun.cli.loading import find
    from localrun.errors import ModelNotFoundError
    from localrun.ref import PathRef, parse
    from localrun.server.models import ModelCard
    from localrun.server.provider import LoadingProvider
    from localrun.server.pulls import Pulls
    from localrun.store.library import Library
    from localrun.store.pull import pull

    def canonical(name: str) -> str:
        # What Ollama's clients were told is called `smollm2:latest` they ask every dialect for.
        name = name.removesuffix(":latest")
        if name in given:
            return name
        ref = parse(name)
        if isinstance(ref, PathRef):
            # Whoever may ask questions may not look around on this disk.
            raise ModelNotFoundError(
                f"{name!r}: a request cannot name a path",
                hint="`localrun serve PATH` serves that file, `localrun import PATH` gives a name",
            )
        find(name, here, offer=False)
        return str(ref)

    def cards() -> Sequence[ModelCard]:
        stored = {model.ref: model for model in Library(here).list() if model.state == "ok"}
        sizes = {ref: model.bytes for ref, model in stored.items()}
        since = {ref: _seconds(model.created) or created for ref, model in stored.items()}
        names = dict.fromkeys((*given, *stored))
        return [ModelCard(name, since.get(name, created), sizes.get(name, 0)) for name in names]

    def fetch(ref: ModelRef, progress: Progress) -> None:
        pull(ref, here, progress=progress)

    created = _now()
    return LoadingProvider(
        look,
        cards=cards,
        facts=KnownFacts(lambda name: find(name, here, offer=False)),
        pulls=Pulls(fetch),
        canonical=canonical,
        keep_alive_s=keep_alive_s,
        changed=changed,
    )


def _now() -> int:
    import time

    return int(time.time())


def _seconds(created: str | None) -> int | None:
    """A manifest's time as seconds since 1970; None where it says none."""
    from datetime import datetime

    try:
        return int(datetime.fromisoformat(created or "").timestamp())
    except ValueError:
        return None


def ps(json: Json = False) -> None:
    """List the servers of this user that run, with the models they have loaded."""
    from localrun.config import settings
    from localrun.server.running import running

    servers = running(settings())
    if json:
        emit_json({"servers": [{**asdict(server), "url": server.url} for server in servers]})
        return
    table(
        ("pid", "url", "models"),
        [(str(server.pid), server.url, ", ".join(server.models) or "-") for server in servers],
    )
    if not servers:
        note("no server runs; `localrun serve` starts one")


def stop(which: ServerName = None, all: All = False) -> None:
    """Stop a running server."""
    from localrun.config import settings
    from localrun.errors import ServerError, UsageError
    from localrun.server.running import running
    from localrun.server.running import stop as stop_server

    servers = running(settings())
    if which is not None:
        servers = tuple(
            server for server in servers if which in {str(server.port), str(server.pid)}
        )
    if not servers:
        raise ServerError("no such server runs", hint="`localrun ps` lists them")
    if len(servers) > 1 and not all:
        raise UsageError(
            "several servers run", hint="name one by port or pid (`localrun ps`), or give --all"
        )
    for server in servers:
        stop_server(server)
        note(f"stopped {server.url} (pid {server.pid})")
