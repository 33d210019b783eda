"""Knows only keys: the help window, and the few keys an empty chat shows."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Center, Vertical, VerticalScroll
from textual.content import Content
from textual.reactive import reactive
from textual.screen import ModalScreen
from textual.widgets import Static

from localrun.tui.plain import model_label
from localrun.tui.turn import text

KEYS: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    (
        "Write",
        (
            ("Enter", "send the message"),
            ("Shift+Enter, Ctrl+J", "new line"),
            ("Up", "in an empty box: the last message again"),
        ),
    ),
    (
        "Answer",
        (
            ("Esc", "stop the answer, keep what it said"),
            ("Ctrl+R", "answer the last message anew"),
            ("Ctrl+Y", "copy the last answer"),
            ("Ctrl+T", "fold or unfold the thoughts"),
            ("PgUp, PgDn", "scroll"),
            ("Ctrl+Home, Ctrl+End", "to the first message, to the last"),
        ),
    ),
    (
        "Conversations",
        (
            ("Ctrl+N", "new chat"),
            ("Ctrl+S", "all chats: search, open, delete"),
            ("Ctrl+O", "another model"),
            ("Ctrl+P", "every command: rename, export, theme …"),
        ),
    ),
    (
        "Leave",
        (
            ("Ctrl+C", "stop the answer; twice: quit"),
            ("Ctrl+Q", "quit"),
            ("F1", "this help"),
        ),
    ),
)
FIRST_KEYS = (
    ("Enter", "send"),
    ("Ctrl+J", "new line"),
    ("Esc", "stop the answer"),
    ("Ctrl+S", "past chats"),
    ("Ctrl+O", "another model"),
    ("Ctrl+P", "all commands"),
)


def _rows(rows: tuple[tuple[str, str], ...], width: int) -> Content:
    return Content("\n").join(
        Content.assemble((key.ljust(width), "bold $primary"), what) for key, what in rows
    )


class HelpScreen(ModalScreen[None]):
    """Every key."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,f1,q,enter", "dismiss", "Close", show=False)
    ]

    def compose(self) -> ComposeResult:
        with VerticalScroll(classes="window help"):
            for number, (title, rows) in enumerate(KEYS):
                yield text(title, classes="question" if number == 0 else "question later")
                yield Static(_rows(rows, 22))
            yield text("Esc closes", classes="keys")


class Welcome(Vertical):
    """What an empty chat shows."""

    model: reactive[str] = reactive("")

    def __init__(self, model: str) -> None:
        super().__init__(id="welcome")
        self.set_reactive(Welcome.model, model)

    def watch_model(self, model: str) -> None:
        for label in self.query("#welcome-model").results(Static):
            label.update(Content(model_label(model, 60)))

    def compose(self) -> ComposeResult:
        with Center():
            yield text("l o c a l r u n", id="wordmark")
        with Center():
            yield text(model_label(self.model, 60), id="welcome-model")
        with Center():
            yield Static(_rows(FIRST_KEYS, 10), id="first-keys")
