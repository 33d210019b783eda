"""The server of the soak: an engine with the soak's model in a child process, behind the real port.

    python bench/soak_server.py FOLDER

Prints its port, then one JSON line for each line it reads: what it and its child hold once garbage
is collected. Ends when its standard input does. The child's log and states go to FOLDER.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
from soak_answers import MODEL, N_CTX, STATE_BUDGET_BYTES

from localrun.chat.local import LocalChatModel
from localrun.chat.messages import ServedModel
from localrun.chat.templates import Renderer
from localrun.engine.options import EngineOptions
from localrun.engine.process.engine_process import EngineProcess
from localrun.errors import ModelNotFoundError
from localrun.server.app import create_app
from localrun.server.models import ModelCard
from localrun.server.provider import LoadingProvider
from tests.engine_child import plan
from tests.loads import unlimited
from tests.mock_runner import CHAT_TEMPLATE
from tests.served import served


async def main(folder: Path) -> None:
    engine = await EngineProcess.start(
        plan(MODEL, n_ctx=N_CTX),
        loader="soak_runner:load",
        chat_template=CHAT_TEMPLATE,
        options=EngineOptions(folder / "states", STATE_BUDGET_BYTES),
        log=folder / "engine.log",
    )

    async def open_model(_: str) -> ServedModel:
        return LocalChatModel(engine, Renderer())

    cards = [ModelCard(MODEL, 0)]
    provider = LoadingProvider(unlimited(open_model), cards=lambda: cards, canonical=_served)
    await _fill_thread_pool()
    questions = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(questions), sys.stdin
    )
    async with served(create_app(provider)) as port:
        print(port, flush=True)
        while await questions.readline():
            print(json.dumps(held(engine)), flush=True)


def _served(name: str) -> str:
    if name != MODEL:
        raise ModelNotFoundError(f"no model {name!r} is served here")
    return name


async def _fill_thread_pool() -> None:
    """The pool of ``asyncio.to_thread`` grows as it is used; what it may grow to is no leak."""
    size = min(32, (os.cpu_count() or 1) + 4)
    together = threading.Barrier(size)
    await asyncio.gather(*(asyncio.to_thread(together.wait) for _ in range(size)))


def held(engine: EngineProcess) -> dict[str, Any]:
    """Bytes, descriptors and threads of this process and of the engine's; our asyncio tasks."""
    gc.collect()
    here = psutil.Process()
    return {
        "server": _of(here),
        "child": _of(psutil.Process(engine.pid)),
        "tasks": len(asyncio.all_tasks()),
        "processes": len(here.children(recursive=True)),
    }


def _of(process: psutil.Process) -> dict[str, int]:
    with process.oneshot():
        return {
            "rss": process.memory_info().rss,
            "fds": process.num_fds(),
            "threads": process.num_threads(),
        }


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
