"""Knows no engine and no terminal: the screen of one conversation and its keys."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from dataclasses import replace
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Markdown, Static
from textual.worker import Worker

from localrun.chat.history import History
from localrun.chat.messages import ChatModel, ReplyOptions
from localrun.engine.request import FinishReason
from localrun.errors import EngineError, LocalrunError
from localrun.tui.actions import ChatActions
from localrun.tui.commands import ChatCommands
from localrun.tui.composer import Composer
from localrun.tui.draft import Draft
from localrun.tui.help import Welcome
from localrun.tui.plain import model_label, one_line, plain
from localrun.tui.record import Record, Turn
from localrun.tui.status import MUTED, Status, StatusLine
from localrun.tui.transcript import Transcript
from localrun.tui.turn import AssistantTurn, ErrorTurn, UserTurn

TICK_S = 0.25
KEEP_S = 2.0


class ChatScreen(ChatActions, Screen[None]):
    """The conversation, the box, the status line; one answer at a time."""

    COMMANDS: ClassVar = {ChatCommands}
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "stop", "Stop the answer", show=False, priority=True),
        Binding("ctrl+n", "new_chat", "New chat", show=False, priority=True),
        Binding("ctrl+s", "conversations", "Conversations", show=False, priority=True),
        Binding("ctrl+o", "models", "Models", show=False, priority=True),
        Binding("ctrl+y", "copy_answer", "Copy the answer", show=False, priority=True),
        Binding("ctrl+t", "fold_thoughts", "Fold thoughts", show=False, priority=True),
        Binding("ctrl+r", "regenerate", "Answer again", show=False, priority=True),
        Binding("f1", "help", "Help", show=False, priority=True),
        Binding("pageup", "scroll('page_up')", "Scroll up", show=False, priority=True),
        Binding("pagedown", "scroll('page_down')", "Scroll down", show=False, priority=True),
        Binding("ctrl+home", "scroll('home')", "First message", show=False, priority=True),
        Binding("ctrl+end", "scroll('end')", "Last message", show=False, priority=True),
    ]

    def __init__(self, history: History, options: ReplyOptions, system: str | None) -> None:
        super().__init__()
        self.history, self.options, self.system = history, options, system
        self.record = Record(history)
        self._kept_draft = ""
        self.fold: bool | None = None
        self.status = Status()
        self._answering: Worker[None] | None = None
        self._draft: Draft | None = None
        self._kept_at = 0.0

    def compose(self) -> ComposeResult:
        yield Static(markup=False, id="title")
        yield Transcript(self.drawn, id="transcript")
        yield Composer(id="composer")
        yield StatusLine(id="status")

    def on_mount(self) -> None:
        self.composer.focus()
        self.load_draft()
        self.show_title()
        self.show_status(self.status)
        self.set_interval(TICK_S, self._tick)

    @property
    def transcript(self) -> Transcript:
        return self.query_one(Transcript)

    @property
    def composer(self) -> Composer:
        return self.query_one(Composer)

    @property
    def answering(self) -> bool:
        """An answer is on its way."""
        return self._answering is not None

    def show_title(self) -> None:
        name = Content.styled("localrun", "bold $primary")
        rest = Content.styled(f"  {self.record.title or 'New chat'}", MUTED)
        self.query_one("#title", Static).update(Content.assemble(name, rest))

    def show_status(self, status: Status) -> None:
        self.status = status
        for line in self.query(StatusLine):  # none before the screen is composed
            line.status = status
        for welcome in self.query(Welcome):
            welcome.model = status.model

    # -- the model's life, told by the app

    def model_loads(self, ref: str) -> None:
        self.show_status(Status(state="loading", model=model_label(ref)))

    def model_loaded(self, model: ChatModel) -> None:
        name, backend = model_label(model.name), one_line(model.backend)
        self.show_status(Status("ready", name, backend, n_ctx=model.n_ctx))

    async def model_failed(self, ref: str, error: LocalrunError) -> None:
        self.show_status(Status(state="failed", model=model_label(ref)))
        if not self.answering:  # whoever waits for an answer shows the error itself
            await self.transcript.add(ErrorTurn(error.message, error.hint))

    # -- one answer

    @on(Composer.Sent)
    async def send(self, event: Composer.Sent) -> None:
        if self.answering:
            self.chat_app.say("Esc stops the running answer first; your text is kept")
            return
        text = plain(event.text).strip("\n")
        self.composer.take()
        self.keep_draft()
        try:
            self.record.say(text, self.chat_app.model_ref)
        except LocalrunError as error:
            self.composer.put(text)
            await self.transcript.add(ErrorTurn(error.message, error.hint))
            return
        self.composer.sent = self.record.prompts
        self.show_title()
        self.begin_answer(question=text)

    def begin_answer(self, *, question: str | None = None, instead_of: Turn | None = None) -> None:
        """Answer the last message of the record, a new ``question`` to show or one asked before.

        If nothing comes, ``instead_of`` stays.
        """
        self._draft, self._kept_at = Draft(), time.monotonic()
        self._answering = self.answer(self._draft, question, instead_of)

    @work(group="answer")
    async def answer(self, draft: Draft, question: str | None, instead_of: Turn | None) -> None:
        turn = AssistantTurn(self.status.model, fold=self.fold)
        error: LocalrunError | None = None
        try:
            if question is not None:
                await self.transcript.hide_old(self.record.turns[:-1])
                await self.transcript.add(UserTurn(question))
            await self.transcript.add(turn)
            turn.begin()
            model = await self.chat_app.model()
            await self._read(model, draft, turn)
        except asyncio.CancelledError:
            draft.finish = FinishReason.CANCELLED
            self._keep(draft)  # before anything else: the app may be going down
            task = asyncio.current_task()
            if task is not None:
                task.uncancel()
        except LocalrunError as caught:
            error = caught
            draft.finish = FinishReason.ERROR
        finally:
            self._answering, self._draft = None, None
        if draft.finish in (None, FinishReason.ERROR) and error is None:
            draft.finish = FinishReason.ERROR
            error = draft.error or EngineError("the model broke the answer off")
        self._keep(draft)
        if self.is_attached:
            await self._show_end(draft, turn)
            if draft.empty:
                await self._take_back(turn, instead_of)
            if error is not None:
                await self.transcript.add(ErrorTurn(error.message, error.hint))

    async def _read(self, model: ChatModel, draft: Draft, turn: AssistantTurn) -> None:
        messages = self.record.messages(self.system)
        async with aclosing(model.reply(messages, self.options)) as events:
            async for event in events:
                reasoning, text = draft.take(event, time.monotonic())
                if reasoning:
                    await turn.think(reasoning)
                if text:
                    turn.feed(text)
                # A stream that never waits would leave the screen no time to draw.
                await asyncio.sleep(0)

    async def _show_end(self, draft: Draft, turn: AssistantTurn) -> None:
        now = time.monotonic()
        status = self.status if draft.empty else draft.status(self.status, now)
        self.show_status(replace(status, state=self._resting_state(), now_tps=None))
        await turn.finish(draft.note())

    def _resting_state(self) -> str:
        return "ready" if self.status.n_ctx is not None else self.status.state

    async def _take_back(self, turn: AssistantTurn, instead_of: Turn | None) -> None:
        """Nothing was answered: the message goes back to the box, where it can be changed."""
        await turn.remove()
        if instead_of is not None:
            self.record.restore(instead_of)
            await self.transcript.add(self.drawn(instead_of))
            return
        text = self.record.withdraw()
        if text is not None:
            for asked in list(self.query(UserTurn))[-1:]:
                await asked.remove()
            if not self.composer.text:
                self.composer.put(text)

    def _keep(self, draft: Draft) -> None:
        if not draft.empty:
            complete = draft.finish in (FinishReason.STOP, FinishReason.LENGTH)
            with self.telling_errors():
                self.record.keep_answer(draft.text, draft.reasoning, complete=complete)

    def _tick(self) -> None:
        now = time.monotonic()
        if self._draft is not None:
            self.query_one(StatusLine).status = self._draft.status(self.status, now)
        if now - self._kept_at >= KEEP_S:
            self._kept_at = now
            self.keep_draft()
            if self._draft is not None:
                self._keep(self._draft)

    def interrupt(self) -> bool:
        """Stop a running answer; False if there is none."""
        if self._answering is None:
            return False
        self._answering.cancel()
        return True

    async def stop_answer(self) -> None:
        """Stop a running answer and wait until it is kept."""
        worker = self._answering
        if worker is not None:
            worker.cancel()
            await worker.wait()

    def action_stop(self) -> None:
        self.interrupt()

    @on(Markdown.LinkClicked)
    def show_link(self, event: Markdown.LinkClicked) -> None:
        event.stop()
        self.chat_app.say(f"links are not opened: {event.href}")
