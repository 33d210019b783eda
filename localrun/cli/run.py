"""Knows no template and no tensor: ``localrun run``, one answer to stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated

import typer

from localrun.cli.options import (
    ApproximatePrefill,
    Backend,
    Ctx,
    DiskSpeed,
    Draft,
    Engram,
    JsonSchema,
    KvType,
    Learn,
    MaxTokens,
    MinP,
    Mirror,
    Numerics,
    PlanFile,
    Ram,
    Ref,
    Seed,
    Speculation,
    System,
    Temperature,
    Threads,
    TopK,
    TopP,
    Vram,
)
from localrun.cli.output import clean_text, note
from localrun.errors import UsageError

if TYPE_CHECKING:
    from localrun.chat.messages import ChatModel, Message, ReplyOptions
    from localrun.cli.loading import Prepared
    from localrun.engine.request import Timings

Prompt = Annotated[
    str | None, typer.Argument(metavar="PROMPT", help="The question; standard input is appended.")
]
MAX_SCHEMA_CHARS = 256 * 1024
_SCHEMA_HINT = """give a file, or the schema itself, such as '{"type": "object"}'"""
Stats = Annotated[bool, typer.Option("--stats", help="Token counts and speed on stderr.")]


def run(
    ref: Ref,
    prompt: Prompt = None,
    system: System = None,
    temperature: Temperature = 0.8,
    top_p: TopP = 0.95,
    top_k: TopK = 40,
    min_p: MinP = 0.05,
    seed: Seed = None,
    max_tokens: MaxTokens = None,
    json_schema: JsonSchema = None,
    ctx: Ctx = None,
    kv_type: KvType = None,
    threads: Threads = None,
    ram: Ram = None,
    vram: Vram = None,
    disk_speed: DiskSpeed = None,
    engram: Engram = None,
    mirror: Mirror = None,
    backend: Backend = None,
    numerics: Numerics = None,
    approximate_prefill: ApproximatePrefill = False,
    plan: PlanFile = None,
    draft: Draft = None,
    speculation: Speculation = "auto",
    learn: Learn = True,
    stats: Stats = False,
) -> None:
    """Answer one prompt and print the answer as it is made."""
    import asyncio

    from localrun.chat.messages import Message, ReplyOptions, RequestContext
    from localrun.cli.guessing import guessing, with_guesses
    from localrun.cli.loading import prepare
    from localrun.cli.lookup import require_text
    from localrun.cli.options import mirrors_of, no_budget_beside_plan
    from localrun.cli.saved_plans import prepare_saved
    from localrun.config import settings
    from localrun.engine.request import Grammar, SamplingParams
    from localrun.plan.plan import PlanRequest

    _text("--system", system)
    wanted = guessing(speculation, draft)
    schema = None if json_schema is None else read_schema(json_schema)
    text = _prompt(prompt)
    request = PlanRequest(
        n_ctx=ctx,
        kv_type=kv_type,
        threads=threads,
        backend=backend,
        ram_bytes=ram,
        vram_bytes=vram,
        disk_read=disk_speed,
        engram=engram,
        mirrors=mirrors_of(mirror),
        numerics=numerics,
        approximate_prefill=approximate_prefill,
    )
    no_budget_beside_plan(plan, request)
    prepared = (
        prepare(ref, request, learn=learn)
        if plan is None
        else prepare_saved(ref, plan, learn=learn)
    )
    require_text(prepared.spec, ref)
    prepared = with_guesses(prepared, wanted, settings())
    for warning in prepared.plan.warnings:
        note(f"note: {warning}")
    messages = [Message("system", system)] if system else []
    messages.append(Message("user", text))
    options = ReplyOptions(
        sampling=SamplingParams(temperature, top_k, top_p, min_p, seed=seed),
        max_tokens=max_tokens,
        grammar=None if schema is None else Grammar("json_schema", schema),
        context=RequestContext(priority="interactive"),
    )

    asyncio.run(_answer(prepared, messages, options, stats=stats))


async def _answer(
    prepared: Prepared, messages: list[Message], options: ReplyOptions, *, stats: bool
) -> None:
    from localrun.cli.loading import open_chat_as_planned

    model, plan = await open_chat_as_planned(prepared)
    try:
        if not stats:
            await _stream(model, messages, options)
            return
        from localrun.cli.exit_lines import Watched

        watched = Watched(model)
        timings = await _stream(model, messages, options, watched.begins)
        if timings is not None:
            for line in await watched.lines(plan, timings):
                note(line)
    finally:
        await model.close()


def read_schema(argument: str) -> str:
    """A JSON schema, written out or in a file; what begins with a brace is the schema itself.

    Raises:
        UsageError: no such file, or not a JSON object.
    """
    _text("--json-schema", argument)
    where, text = "--json-schema", argument
    if not argument.lstrip().startswith("{"):
        where = f"--json-schema {argument}"
        try:
            with open(argument, encoding="utf-8-sig") as file:
                text = file.read(MAX_SCHEMA_CHARS + 1)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8 text"
            raise UsageError(f"{where}: {reason}", hint=_SCHEMA_HINT) from error
    if len(text) > MAX_SCHEMA_CHARS:
        raise UsageError(f"{where}: longer than {MAX_SCHEMA_CHARS} characters", hint=_SCHEMA_HINT)
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: not JSON ({error})", hint=_SCHEMA_HINT) from error
    if not isinstance(schema, dict):
        raise UsageError(f"{where}: not a JSON object", hint=_SCHEMA_HINT)
    return text


def _prompt(argument: str | None) -> str:
    """The argument, then what is piped in, a blank line between."""
    _text("the prompt", argument)
    piped = "" if sys.stdin is None or sys.stdin.isatty() else _piped()
    parts = [part for part in (argument or "", piped.strip("\n")) if part]
    if not parts:
        raise UsageError(
            "no prompt: give one as an argument or on standard input",
            hint="`localrun chat` opens a conversation",
        )
    return "\n\n".join(parts)


def _text(what: str, argument: str | None) -> None:
    """Raises UsageError where an argument's bytes are no text: they are never altered to fit."""
    try:
        (argument or "").encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{what} is not text in this locale: character {error.start} cannot be read",
            hint="write it in UTF-8, or give it on standard input",
        ) from error


def _piped() -> str:
    """Standard input as UTF-8, whatever the locale says, with or without a byte order mark.

    Raises:
        UsageError: it is something else. A question is never altered to make it fit.
    """
    data = sys.stdin.buffer.read()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"standard input is not UTF-8 text: byte {error.start} is 0x{data[error.start]:02x}",
            hint="convert it first, such as `iconv -f latin1 -t utf-8`; binary files are not read",
        ) from error
    return text.replace("\r\n", "\n")


async def _stream(
    model: ChatModel,
    messages: list[Message],
    options: ReplyOptions,
    begins: Callable[[], Awaitable[None]] | None = None,
) -> Timings | None:
    """Print the answer to stdout and the reasoning, on a terminal, to stderr. ``begins`` is awaited
    at each piece of either, before it is printed."""
    timings = None
    last = "\n"
    async for event in model.reply(messages, options):
        if begins is not None and (event.text or event.reasoning):
            await begins()
        if event.reasoning and sys.stderr.isatty():
            sys.stderr.write(clean_text(event.reasoning))
            sys.stderr.flush()
        if event.text:
            sys.stdout.write(clean_text(event.text))
            sys.stdout.flush()
            last = event.text[-1]
        if event.error is not None:
            raise event.error
        timings = event.timings or timings
    if last != "\n":
        sys.stdout.write("\n")
    return timings
