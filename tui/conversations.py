"""Knows no message: the list of kept conversations."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar

from textual import work
from textual.binding import Binding, BindingType

from localrun.chat.history import History
from localrun.errors import LocalrunError
from localrun.tui.plain import model_label, one_line
from localrun.tui.prompts import Choice, Confirm, Picker


def when(then: datetime, now: datetime) -> str:
    """``14:05`` of today, ``Mon 14:05`` of this week, else the date."""
    days = (now.date() - then.date()).days
    if days == 0:
        return then.strftime("%H:%M")
    return then.strftime("%a %H:%M" if 0 < days < 7 else "%Y-%m-%d")


class Conversations(Picker):
    """Every kept conversation, newest first. Answers the id of the one to open.

    The search looks into the messages too.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+d,delete", "delete", "Delete", show=False, priority=True),
    ]
    EMPTY: ClassVar[str] = "no conversation is kept here"

    def __init__(self, history: History) -> None:
        super().__init__("Conversations", keys="Enter opens · Ctrl+D deletes · Esc closes")
        self.history = history

    def find(self, query: str) -> list[Choice]:
        now = datetime.now().astimezone()
        choices = []
        for kept in self.history.conversations(query):
            date = when(datetime.fromtimestamp(kept.updated, now.tzinfo), now)
            detail = f"{model_label(kept.model, 24)}  {date:>10}"
            choices.append(Choice(str(kept.id), kept.title or "Untitled", detail))
        return choices

    @work(group="delete", exclusive=True)
    async def action_delete(self) -> None:
        choice = self.highlighted()
        if choice is None:
            return
        question = f"Delete “{one_line(choice.title, 60)}”? It cannot be brought back."
        if await self.app.push_screen_wait(Confirm(question, "Delete")):
            try:
                self.history.delete(int(choice.id))
            except LocalrunError as error:
                self.app.notify(one_line(error.message, 300), severity="error", markup=False)
            self.refill()
