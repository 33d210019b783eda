"""Knows no conversation: the small windows that ask one thing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Button, Input, OptionList
from textual.widgets.option_list import Option

from localrun.tui.plain import one_line, plain
from localrun.tui.status import MUTED
from localrun.tui.turn import text


@dataclass(frozen=True, slots=True)
class Choice:
    """A line of a list: ``id`` is what choosing it answers, ``detail`` stands at its right."""

    id: str
    title: str
    detail: str = ""


class Confirm(ModalScreen[bool]):
    """Asks before something that cannot be taken back. Escape and Enter both mean no."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,n", "answer(False)", "No", show=False),
        Binding("y", "answer(True)", "Yes", show=False),
        Binding("left,right", "app.focus_next", show=False),
    ]

    def __init__(self, question: str, yes: str) -> None:
        super().__init__()
        self.question, self.yes = question, yes

    def compose(self) -> ComposeResult:
        with Vertical(classes="window small"):
            yield text(self.question, classes="question")
            with Horizontal(classes="buttons"):
                yield Button(Content("Keep (n)"), id="no")
                yield Button(Content(f"{self.yes} (y)"), id="yes", variant="error")

    @on(Button.Pressed)
    def pressed(self, event: Button.Pressed) -> None:
        self.dismiss(event.button.id == "yes")

    def action_answer(self, yes: bool) -> None:
        self.dismiss(yes)


class Ask(ModalScreen[str | None]):
    """Asks for one line of text. None is Escape."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", show=False)]

    def __init__(self, question: str, value: str = "") -> None:
        super().__init__()
        self.question, self.value = question, plain(value)

    def compose(self) -> ComposeResult:
        with Vertical(classes="window small"):
            yield text(self.question, classes="question")
            yield Input(self.value)
            yield text("Enter saves · Esc closes", classes="keys")

    def on_input_submitted(self, event: Input.Submitted) -> None:
        if event.value.strip():
            self.dismiss(event.value.strip())


class Picker(ModalScreen[str | None]):
    """A list with a search box. Answers the chosen ``Choice.id``, or None.

    ``choices`` are searched by every word of title and detail; subclasses may ``find`` elsewhere.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", show=False),
        Binding("down", "move('down')", show=False),
        Binding("up", "move('up')", show=False),
        Binding("pagedown", "move('page_down')", show=False),
        Binding("pageup", "move('page_up')", show=False),
    ]
    EMPTY: ClassVar[str] = "nothing here"

    def __init__(self, title: str, choices: Sequence[Choice] = (), *, keys: str) -> None:
        super().__init__()
        self.heading, self.keys = title, keys
        self._choices = choices
        self._shown: list[Choice] = []

    def find(self, query: str) -> list[Choice]:
        """The choices to show for what stands in the search box."""
        words = query.casefold().split()
        return [
            choice
            for choice in self._choices
            if all(word in f"{choice.title} {choice.detail}".casefold() for word in words)
        ]

    def compose(self) -> ComposeResult:
        with Vertical(classes="window"):
            yield text(self.heading, classes="question")
            yield Input(placeholder="Search")
            yield OptionList(markup=False)
            yield text(self.keys, classes="keys")

    def on_mount(self) -> None:
        self.query_one(OptionList).can_focus = False
        self.call_after_refresh(self.refill)

    @on(Input.Changed)
    def refill(self) -> None:
        """List what the search finds."""
        options = self.query_one(OptionList)
        options.clear_options()
        self._shown = self.find(self.query_one(Input).value)
        for choice in self._shown:
            line = self._line(one_line(choice.title, 200), choice.detail)
            options.add_option(Option(line, id=choice.id))
        if self._shown:
            options.highlighted = 0
        else:
            options.add_option(Option(Content.styled(self.EMPTY, MUTED), disabled=True))

    def _line(self, title: str, detail: str) -> Content:
        detail = one_line(detail, 40)
        width = max(20, self.query_one(OptionList).scrollable_content_region.width - 2)
        title = one_line(title, max(8, width - Content(detail).cell_length - 2))
        gap = width - Content(title).cell_length - Content(detail).cell_length
        return Content.assemble(title, " " * max(2, gap), (detail, MUTED))

    def highlighted(self) -> Choice | None:
        """The choice under the bar."""
        options = self.query_one(OptionList)
        if options.highlighted is None:
            return None
        id = options.get_option_at_index(options.highlighted).id
        return next((choice for choice in self._shown if choice.id == id), None)

    def action_move(self, how: str) -> None:
        options = self.query_one(OptionList)
        moves: dict[str, Callable[[], None]] = {
            "down": options.action_cursor_down,
            "up": options.action_cursor_up,
            "page_down": options.action_page_down,
            "page_up": options.action_page_up,
        }
        moves[how]()

    def on_input_submitted(self) -> None:
        if chosen := self.highlighted():
            self.dismiss(chosen.id)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option.id)
