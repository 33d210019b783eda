"""The chat on a scripted model and an empty history."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
from textual.pilot import Pilot

from localrun.chat.history import History
from localrun.chat.messages import ChatModel, ReplyOptions
from localrun.tui.app import ChatApp
from tests.tui.scripted import ScriptedModel

OpenModel = Callable[[str], Awaitable[ChatModel]]
Running = Callable[..., AbstractAsyncContextManager[tuple[ChatApp, Pilot[None]]]]


@pytest.fixture
def history_file(tmp_path: Path) -> Path:
    return tmp_path / "conversations.sqlite"


@pytest.fixture
def running(history_file: Path) -> Running:
    """``async with running(model) as (app, pilot)``: the chat on screen, the model loaded."""

    @asynccontextmanager
    async def run(
        model: ScriptedModel | None = None,
        *,
        open_model: OpenModel | None = None,
        models: tuple[str, ...] = (),
        system: str | None = None,
        size: tuple[int, int] = (100, 30),
        theme: str | None = None,
    ) -> AsyncIterator[tuple[ChatApp, Pilot[None]]]:
        async def give(ref: str) -> ChatModel:
            return model or ScriptedModel()

        app = ChatApp(
            open_model or give,
            "smollm2",
            History(history_file),
            ReplyOptions(),
            system,
            lambda: models,
            theme,
        )
        async with app.run_test(size=size, notifications=True) as pilot:
            app.chat.composer.cursor_blink = False
            await pilot.pause()
            yield app, pilot

    return run
