"""Knows no generation: what the keys and the palette do to the open conversation."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from textual import work
from textual.screen import Screen

from localrun.chat.export import to_json, to_markdown
from localrun.chat.history import History
from localrun.errors import LocalrunError
from localrun.tui import export
from localrun.tui.conversations import Conversations
from localrun.tui.help import HelpScreen
from localrun.tui.plain import plain
from localrun.tui.prompts import Ask, Choice, Confirm, Picker
from localrun.tui.record import Record, Turn
from localrun.tui.status import Status
from localrun.tui.theme import DARK, LIGHT
from localrun.tui.transcript import Transcript
from localrun.tui.turn import AssistantTurn, Thinking, UserTurn

if TYPE_CHECKING:
    from localrun.tui.app import ChatApp
    from localrun.tui.composer import Composer


class ChatActions(Screen[None]):
    """The actions of ``ChatScreen`` that need no answer to be running."""

    history: History
    record: Record
    fold: bool | None
    status: Status
    _kept_draft: str

    if TYPE_CHECKING:

        @property
        def transcript(self) -> Transcript: ...

        @property
        def composer(self) -> Composer: ...

        @property
        def answering(self) -> bool: ...

        def begin_answer(
            self, *, question: str | None = None, instead_of: Turn | None = None
        ) -> None: ...

        def show_title(self) -> None: ...

        def show_status(self, status: Status) -> None: ...

        async def stop_answer(self) -> None: ...

    @property
    def chat_app(self) -> ChatApp:
        from localrun.tui.app import ChatApp

        assert isinstance(self.app, ChatApp)
        return self.app

    @contextmanager
    def telling_errors(self) -> Iterator[None]:
        """Show what the disk refused; the conversation goes on."""
        try:
            yield
        except LocalrunError as error:
            self.chat_app.say(f"{error.message} — {error.hint}", error=True)

    def keep_draft(self) -> None:
        """Keep what stands in the box, for this conversation."""
        text = plain(self.composer.text)
        if text != self._kept_draft:
            with self.telling_errors():
                self.history.save_draft(self.record.id, text)
                self._kept_draft = text

    def load_draft(self) -> None:
        """Put back what stood in the box, or the question that was never answered."""
        with self.telling_errors():
            self._kept_draft = plain(self.history.draft(self.record.id))
            unanswered = self.record.unanswered
            question = unanswered.message.content if unanswered else ""
            self.composer.put(self._kept_draft or question)

    async def open_record(self, record: Record) -> None:
        """Show another conversation; what stands in the box stays with the present one."""
        await self.stop_answer()
        self.keep_draft()
        self.record = record
        self.load_draft()
        self.composer.sent = record.prompts
        await self.transcript.show(record.turns, model=self.status.model)
        # The figures were those of another conversation.
        self.show_status(replace(self.status, used=None, now_tps=None, mean_tps=None, rough=False))
        self.show_title()

    def drawn(self, turn: Turn) -> UserTurn | AssistantTurn:
        """The widget of a kept turn."""
        message = turn.message
        if message.role == "user":
            return UserTurn(message.content)
        return AssistantTurn(
            self.record.model,
            message.content,
            reasoning=message.reasoning or "",
            note="" if turn.complete else "■ cut off",
            fold=self.fold,
        )

    async def action_new_chat(self) -> None:
        await self.open_record(Record(self.history))

    @work(group="window", exclusive=True)
    async def action_conversations(self) -> None:
        chosen = await self.app.push_screen_wait(Conversations(self.history))
        with self.telling_errors():
            kept = {summary.id for summary in self.history.conversations()}
            if chosen is not None and int(chosen) != self.record.id:
                await self.open_record(Record.resume(self.history, int(chosen)))
            elif self.record.id is not None and self.record.id not in kept:
                await self.open_record(Record(self.history))  # it was deleted in the list

    @work(group="window", exclusive=True)
    async def action_rename(self) -> None:
        title = await self.app.push_screen_wait(
            Ask("Title of this conversation", self.record.title)
        )
        if title:
            with self.telling_errors():
                self.record.rename(title)
            self.show_title()

    @work(group="window", exclusive=True)
    async def action_delete(self) -> None:
        if self.record.id is None:
            self.chat_app.say("this conversation is not kept yet")
            return
        question = f"Delete “{self.record.title}”? It cannot be brought back."
        if await self.app.push_screen_wait(Confirm(question, "Delete")):
            await self.stop_answer()
            with self.telling_errors():
                self.record.delete()
                await self.open_record(Record(self.history))

    @work(group="window", exclusive=True)
    async def action_export(self, kind: Literal["md", "json"]) -> None:
        suggested = str(Path.cwd() / export.file_name(self.record.title, kind))
        name = await self.app.push_screen_wait(Ask("Export to the file", suggested))
        if name is None:
            return
        path = Path(name).expanduser().absolute()
        with self.telling_errors():
            whole = self.record.whole()
            if whole is None:
                self.chat_app.say("there is nothing to export yet")
                return
            export.write(path, plain(to_markdown(whole) if kind == "md" else to_json(whole)))
            self.chat_app.say(f"written to {path}")

    @work(group="window", exclusive=True)
    async def action_models(self) -> None:
        names = await asyncio.to_thread(self.chat_app.model_names)
        present = self.chat_app.model_ref
        choices = [Choice(name, name, "in use" if name == present else "") for name in names]
        chosen = await self.app.push_screen_wait(
            Picker("Models", choices, keys="Enter loads it · Esc closes")
        )
        if chosen is not None:
            await self.stop_answer()
            self.chat_app.load(chosen)

    async def action_regenerate(self) -> None:
        if self.answering:
            self.chat_app.say("Esc stops the running answer first")
            return
        dropped = self.record.drop_answer()
        if dropped is None:
            self.chat_app.say("there is no answer yet")
            return
        last = self.query(AssistantTurn).last()
        for child in reversed(self.transcript.turns.children):
            await child.remove()  # with what was noted under it
            if child is last:
                break
        self.begin_answer(instead_of=dropped)

    def action_copy_answer(self) -> None:
        self._copy(self.record.last("assistant"), "the last answer")

    def action_copy_message(self) -> None:
        self._copy(self.record.last("user"), "your last message")

    def _copy(self, text: str | None, what: str) -> None:
        if text is None:
            self.chat_app.say("there is nothing to copy yet")
        else:
            self.app.copy_to_clipboard(text)
            self.chat_app.say(f"copied {what}")

    def action_fold_thoughts(self) -> None:
        thoughts = list(self.query(Thinking))
        self.fold = any(not t.folded for t in thoughts) if thoughts else not self.fold
        for thought in thoughts:
            thought.folded = self.fold

    def action_theme(self) -> None:
        self.app.theme = LIGHT.name if self.app.current_theme.dark else DARK.name

    def action_help(self) -> None:
        self.app.push_screen(HelpScreen())

    async def action_scroll(self, how: str) -> None:
        transcript = self.transcript
        if how == "page_up":
            transcript.scroll_page_up(animate=False)
        elif how == "page_down":
            transcript.scroll_page_down(animate=False)
        elif how == "home":
            await transcript.show_all()
        else:
            transcript.anchor()
