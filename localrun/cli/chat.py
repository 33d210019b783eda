"""Knows no widget: `localrun chat`, the full screen on an engine here or on a server elsewhere."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from localrun.cli.options import (
    ApproximatePrefill,
    Backend,
    Ctx,
    Draft,
    Engram,
    KvType,
    Learn,
    MaxTokens,
    MinP,
    Mirror,
    Numerics,
    Ram,
    Seed,
    Speculation,
    System,
    Temperature,
    Threads,
    TopK,
    TopP,
    Vram,
)
from localrun.errors import UsageError

if TYPE_CHECKING:
    from localrun.chat.messages import ChatModel

DEFAULT_MODEL = "smollm2"

Model = Annotated[
    str | None, typer.Argument(help=f"Model to talk to; else {DEFAULT_MODEL}.", metavar="REF")
]
Server = Annotated[
    str | None, typer.Option("--server", help="Talk to an OpenAI-compatible server at this URL.")
]
Theme = Annotated[
    Literal["dark", "light"], typer.Option("--theme", help="Colours; the palette switches them.")
]
ApiKey = Annotated[str | None, typer.Option("--api-key", help="Key of that server.")]


def chat(
    ref: Model = None,
    server: Server = None,
    api_key: ApiKey = None,
    system: System = None,
    temperature: Temperature = 0.8,
    top_p: TopP = 0.95,
    top_k: TopK = 40,
    min_p: MinP = 0.05,
    seed: Seed = None,
    max_tokens: MaxTokens = None,
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
    draft: Draft = None,
    speculation: Speculation = "auto",
    learn: Learn = True,
    theme: Theme = "dark",
) -> None:
    """Open the full-screen chat."""
    _check_terminal()
    import asyncio

    from localrun.chat.history import History
    from localrun.chat.messages import ReplyOptions, RequestContext
    from localrun.cli.guessing import Guessing, guessing, with_guesses
    from localrun.cli.loading import find, open_chat, prepare
    from localrun.cli.lookup import require_text
    from localrun.cli.options import mirrors_of
    from localrun.cli.plan_view import one_line
    from localrun.config import settings
    from localrun.engine.request import SamplingParams
    from localrun.plan.plan import PlanRequest
    from localrun.store.library import Library
    from localrun.tui.app import ChatApp

    here = settings()
    wanted = guessing(speculation, draft)
    request = PlanRequest(
        n_ctx=ctx,
        kv_type=kv_type,
        threads=threads,
        backend=backend,
        ram_bytes=ram,
        vram_bytes=vram,
        engram=engram,
        mirrors=mirrors_of(mirror),
        numerics=numerics,
        approximate_prefill=approximate_prefill,
    )

    async def open_model(name: str) -> ChatModel:
        if server is not None:
            return await _remote(server, api_key, ref)
        prepared = await asyncio.to_thread(prepare, name, request, here, learn=learn)
        require_text(prepared.spec, name)
        # A model chosen later on the screen may be of another family than the one that guesses.
        mine = wanted if name == model_ref else Guessing(wanted.on)
        prepared = await asyncio.to_thread(with_guesses, prepared, mine, here)
        app.say(one_line(prepared.plan))
        return await open_chat(prepared, app.say)

    model_ref = server or ref or DEFAULT_MODEL
    if server is None:
        find(model_ref, here)  # asks about a download before the screen opens
    app = ChatApp(
        open_model=open_model,
        model_ref=model_ref,
        history=History(here.data / "conversations.sqlite"),
        options=ReplyOptions(
            sampling=SamplingParams(temperature, top_k, top_p, min_p, seed=seed),
            max_tokens=max_tokens,
            context=RequestContext(priority="interactive"),
        ),
        system=system,
        model_names=lambda: [each.ref for each in Library(here).list() if each.state == "ok"],
        theme=theme,
    )
    app.run()


def _check_terminal() -> None:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError(
            "chat needs a terminal", hint="`localrun run REF PROMPT` answers in a pipe"
        )


async def _remote(server: str, api_key: str | None, ref: str | None) -> ChatModel:
    from localrun.chat.remote import RemoteChatModel

    remote = RemoteChatModel(server, api_key, ref)
    await remote.connect()
    return remote
