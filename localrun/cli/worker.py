"""Knows no model and no HTTP: the engine's child process, from its first frame to its last.

``python -P -m localrun.cli.worker FD``: FD is an inherited stream socket to the parent. Standard
output and error belong to the libraries, which print there. When the parent's end closes, for
whatever reason, this process ends.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import BinaryIO

from localrun.engine.cache.states import StateStore
from localrun.engine.client import EngineInfo
from localrun.engine.drafting.draft_model import DraftModel
from localrun.engine.drafting.lookup import PromptLookup
from localrun.engine.drafting.speculation import Both, Drafting
from localrun.engine.engine import Engine
from localrun.engine.options import EngineOptions
from localrun.engine.process import fields, frames
from localrun.engine.process.desk import Desk
from localrun.engine.process.inbox import inbox
from localrun.engine.process.outbox import Outbox
from localrun.engine.runner import ModelRunner
from localrun.engine.threads import ThreadRange
from localrun.errors import LocalrunError, OutOfMemoryError, UsageError
from localrun.plan.plan import Plan

# A library that hangs while it is closed must not keep the process after its parent has gone.
CLOSING_S = 5.0
LOADER = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def main(arguments: list[str]) -> int:
    """Serve one engine until the parent closes. Exit code 0, or 1 when nothing was loaded."""
    # Ctrl-C goes to the whole terminal group: the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.excepthook = _end_after
    with socket.socket(fileno=int(arguments[0])) as channel:
        return _serve(channel, inbox(channel), _end_with_parent(channel))


def _end_with_parent(channel: socket.socket) -> threading.Event:
    """Until the event is set, end as soon as the parent's end closes: a load reads no frames, and
    one that hangs in native code would outlive whoever asked for it."""
    loaded = threading.Event()
    watch = select.poll()
    watch.register(channel, getattr(select, "POLLRDHUP", 0))  # a hang-up is always reported

    def wait() -> None:
        watch.poll()
        if not loaded.is_set():
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
    return loaded


def _serve(channel: socket.socket, incoming: BinaryIO, loaded: threading.Event) -> int:
    first = frames.read_frame(incoming)
    if first is None:
        return 1
    desk = Desk()
    outbox = Outbox(channel, desk.deliver)
    call = first["call"]
    try:
        plan, options = Plan.from_json(first["plan"]), fields.options_of(first["options"])
        engine = make(plan, first["loader"], options, on_step=desk.stepped)
        loaded.set()
    except (LocalrunError, MemoryError) as error:
        told = _out_of_memory(error) if isinstance(error, MemoryError) else error
        failed = {"type": "failed", "call": call, "error": frames.error_fields(told)}
        # Blocking, and so over before this process is. A parent that is gone reads nothing.
        with suppress(OSError):
            channel.sendall(frames.pack(failed))
        return 1
    try:
        info = fields.info_fields(describe(plan, engine))
        outbox.send(frames.pack({"type": "answer", "call": call, "value": info}))
        desk.serve(incoming, outbox, engine)
    finally:
        _end_within(CLOSING_S)
        engine.close()
    return 0


def _out_of_memory(error: MemoryError) -> OutOfMemoryError:
    return OutOfMemoryError(f"there was no memory left while the model was loaded: {error}")


def make(plan: Plan, loader: str, options: EngineOptions, *, on_step: Callable[[], None]) -> Engine:
    """The engine of a plan, as the options want it. Raises what the loaders raise.

    UsageError where the model that is to guess has another vocabulary.
    """
    told = plan.execution
    threads = ThreadRange(told.threads, minimum=told.threads_min, maximum=told.threads_max)
    states = None if options.state_folder is None else partial(open_states, plan, options)
    runner = load(loader, plan)
    drafting = make_drafting(options)
    return Engine(runner, threads=threads, drafting=drafting, states=states, on_step=on_step)


def make_drafting(options: EngineOptions) -> Drafting | None:
    """Who guesses ahead: the text itself, and a model where one is named."""
    if not options.speculation:
        return None
    if options.draft is None:
        return PromptLookup()
    draft = load(options.draft.loader, options.draft.plan)
    return Both(PromptLookup(), DraftModel(draft))


def open_states(plan: Plan, options: EngineOptions, runner: ModelRunner) -> StateStore:
    """Where this model's states are kept: by its files as they are now, and how it computes."""
    assert options.state_folder is not None
    key = json.dumps(
        [plan.backend, [file_identity(file) for file in plan.files], runner.identity()]
    )
    return StateStore(options.state_folder, key=key, budget_bytes=options.state_budget_bytes)


def file_identity(path: str) -> tuple[str, int, int]:
    """A file that was replaced has another one: its name, its size, and when it was written."""
    try:
        found = os.stat(path)
    except OSError:
        return path, 0, 0
    return path, found.st_size, found.st_mtime_ns


def load(loader: str, plan: Plan) -> ModelRunner:
    """Import ``module:function`` and call it with the plan.

    Raises:
        UsageError: not an import string, or nothing by that name.
    """
    if not LOADER.fullmatch(loader):
        raise UsageError(f"loader {loader!r} is not module:function")
    module, _, name = loader.partition(":")
    try:
        function: Callable[[Plan], ModelRunner] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"loader {loader!r}: {error}") from error
    return function(plan)


def describe(plan: Plan, engine: Engine) -> EngineInfo:
    """What the engine says of itself; the chat template is the parent's to add."""
    vocabulary = engine.vocabulary

    def text(token: int | None) -> str:
        if token is None:
            return ""
        written = vocabulary.tokens[token].decode("utf-8", "replace")
        return vocabulary.names.get(token, written)

    return EngineInfo(
        ref=plan.ref,
        backend=plan.backend,
        architecture=plan.model.architecture,
        n_ctx=engine.n_ctx,
        bos=text(vocabulary.bos),
        eos=text(vocabulary.eos),
        add_bos=vocabulary.add_bos,
        chat_template=None,
        vocabulary_size=len(vocabulary.tokens),
        longest_token=max(map(len, (*vocabulary.tokens, *vocabulary.names.values())), default=0),
        bos_id=vocabulary.bos,
        fim=vocabulary.fim,
        generates=engine.capabilities.generates,
        embeds=engine.capabilities.embeddings,
        pooling=engine.capabilities.pooling,
        longest_text=engine.capabilities.longest_text,
    )


def _end_after(args: threading.ExceptHookArgs) -> None:
    """A thread with an unforeseen error would leave its request waiting forever: end instead."""
    traceback.print_exception(args.exc_type, args.exc_value, args.exc_traceback)
    sys.stderr.flush()
    os._exit(1)


def _end_within(seconds: float) -> None:
    timer = threading.Timer(seconds, os._exit, args=(1,))
    timer.daemon = True
    timer.start()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
