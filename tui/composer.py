"""Knows no model: the box a message is written in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import TextArea

from localrun.tui.plain import plain


class Composer(TextArea):
    """Enter sends; Shift+Enter and Ctrl+J break the line; Up in an empty box recalls.

    ``sent`` are the prompts of this conversation, oldest first; a paste only ever inserts.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "up_or_recall", "Last message", show=False),
        Binding("down", "down_or_recall", "Next message", show=False),
        Binding("ctrl+shift+z", "redo", "Redo", show=False),
    ]

    @dataclass
    class Sent(Message):
        """The person wants ``text`` answered. The box keeps it until ``take`` is called."""

        text: str

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id, placeholder="Write a message", highlight_cursor_line=False)
        self.sent: Sequence[str] = ()
        self._recalled: int | None = None

    def take(self) -> None:
        """Empty the box after its text was sent."""
        self.put("")

    def put(self, text: str) -> None:
        """Replace what the box holds, with the cursor at the end."""
        self._recalled = None
        self.load_text(text)
        self.move_cursor(self.document.end)

    async def _on_key(self, event: events.Key) -> None:
        # Not bindings: those with priority overtake the letters typed just before them.
        if event.key not in ("enter", "shift+enter", "ctrl+j"):
            return
        event.prevent_default()
        event.stop()
        if event.key != "enter":
            self._replace_via_keyboard("\n", *self.selection)
        elif self.text.strip():
            self.post_message(self.Sent(self.text))

    def action_up_or_recall(self) -> None:
        if (self.text and not self._shows_recalled()) or not self.cursor_at_first_line:
            self.action_cursor_up()
        else:
            self._recall(-1)

    def action_down_or_recall(self) -> None:
        if self._shows_recalled() and self.cursor_at_last_line:
            self._recall(+1)
        else:
            self.action_cursor_down()

    def _shows_recalled(self) -> bool:
        index = self._recalled
        return index is not None and index < len(self.sent) and self.text == self.sent[index]

    def _recall(self, step: int) -> None:
        here = self._recalled if self._shows_recalled() else None
        index = (len(self.sent) if here is None else here) + step
        if index < 0 or not self.sent:
            return
        if index >= len(self.sent):
            self.put("")
            return
        self.put(self.sent[index])
        self._recalled = index

    async def _on_paste(self, event: events.Paste) -> None:
        # Textual calls every _on_paste of the class's ancestors unless told not to.
        event.prevent_default()
        event.stop()
        if result := self._replace_via_keyboard(plain(event.text), *self.selection):
            self.move_cursor(result.end_location)
