"""Knows the terminal's life, not what is said: the full-screen chat and the model it holds."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import ClassVar

from textual import work
from textual.app import App
from textual.binding import Binding, BindingType
from textual.notifications import SeverityLevel

from localrun.chat.history import History
from localrun.chat.messages import ChatModel, ReplyOptions
from localrun.errors import LocalrunError, UsageError
from localrun.tui.plain import one_line
from localrun.tui.screen import ChatScreen
from localrun.tui.theme import DARK, LIGHT, named

QUIT_AGAIN_S = 3.0


def no_names() -> Sequence[str]:
    """No other model can be chosen."""
    return ()


class ChatApp(App[None]):
    """``localrun chat``. ``open_model`` is awaited in the background and for every switch.

    ``model_names`` may read the disk: it is called in a thread. ``theme`` is ``dark``, ``light``
    or the name of one of Textual's own themes. The app closes the models it opened and ``history``.

    Raises:
        UsageError: no theme has that name.
    """

    TITLE = "localrun"
    CSS_PATH = "app.tcss"
    COMMANDS: ClassVar = set()  # the screen has its own; Textual's are for developers
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+c", "interrupt", "Stop, twice: quit", show=False, system=True),
    ]

    def __init__(
        self,
        open_model: Callable[[str], Awaitable[ChatModel]],
        model_ref: str,
        history: History,
        options: ReplyOptions,
        system: str | None = None,
        model_names: Callable[[], Sequence[str]] = no_names,
        theme: str | None = None,
    ) -> None:
        super().__init__()
        self.register_theme(DARK)
        self.register_theme(LIGHT)
        if named(theme) not in self.available_themes:
            raise UsageError(f"no theme is called {theme!r}", hint="use dark or light")
        self.theme = named(theme)
        self.model_ref = model_ref
        self.model_names = model_names
        self._history = history
        self.chat = ChatScreen(history, options, system)
        self._open_model = open_model
        self._loading: asyncio.Future[ChatModel] | None = None
        self._model: ChatModel | None = None
        self._quit_armed = False

    async def on_mount(self) -> None:
        await self.push_screen(self.chat)
        self.load(self.model_ref)

    async def on_unmount(self) -> None:
        await self._close_model()
        self._history.close()

    async def model(self) -> ChatModel:
        """The model, as soon as it is loaded.

        Raises:
            LocalrunError: it could not be.
        """
        assert self._loading is not None
        return await asyncio.shield(self._loading)

    @work(group="load", exclusive=True)
    async def load(self, ref: str) -> None:
        """Put the model called ``ref`` in place of the present one."""
        self.model_ref = ref
        self._loading = loading = asyncio.get_running_loop().create_future()
        self.chat.model_loads(ref)
        try:
            await self._close_model()
            self._model = await self._open_model(ref)
        except LocalrunError as error:
            loading.set_exception(error)
            loading.exception()  # whoever waits raises it; nobody has to wait
            await self.chat.model_failed(ref, error)
        except BaseException:
            loading.cancel()
            raise
        else:
            loading.set_result(self._model)
            self.chat.model_loaded(self._model)

    async def _close_model(self) -> None:
        model, self._model = self._model, None
        if model is not None:
            await model.close()

    def action_command_palette(self) -> None:
        if self.screen is self.chat:
            super().action_command_palette()

    def action_interrupt(self) -> None:
        """Stop a running answer; twice within three seconds: quit."""
        if self._quit_armed:
            self.call_next(self.action_quit)
            return
        self._quit_armed = True
        self.set_timer(QUIT_AGAIN_S, self._disarm)
        if not self.chat.interrupt():
            self.say("press Ctrl+C again to quit")

    def _disarm(self) -> None:
        self._quit_armed = False

    async def action_quit(self) -> None:
        await self.chat.stop_answer()
        self.chat.keep_draft()
        self.exit()

    def say(self, message: str, *, error: bool = False) -> None:
        """A short note in the corner, its text taken as it is."""
        severity: SeverityLevel = "error" if error else "information"
        self.notify(one_line(message, 300), severity=severity, markup=False)
