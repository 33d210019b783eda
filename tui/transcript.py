"""Knows no model and no disk: the messages on screen, of which long chats show the latest.

Textual lays every mounted message out again at each update of a growing answer, so what stands
far above is mounted only on demand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.widget import Widget
from textual.widgets import Static

from localrun.tui.help import Welcome
from localrun.tui.record import Turn
from localrun.tui.status import MUTED
from localrun.tui.turn import AssistantTurn, UserTurn

RECENT = 12


class Transcript(VerticalScroll, can_focus=False):
    """The conversation. It follows its end unless the person scrolled up.

    ``draw`` makes the widget of one kept turn.
    """

    def __init__(self, draw: Callable[[Turn], Widget], *, id: str | None = None) -> None:
        super().__init__(id=id)
        # Fills the view at least: an anchored view of less than its height would scroll below 0.
        self.turns = Vertical(id="turns", classes="empty")
        self._draw = draw
        self._hidden: list[Turn] = []

    def compose(self) -> ComposeResult:
        with self.turns:
            yield Welcome("")

    def on_mount(self) -> None:
        self.anchor()

    async def show(self, turns: Sequence[Turn], *, model: str) -> None:
        """Show another conversation; an empty one shows the first keys."""
        self._hidden = list(turns[:-RECENT])
        with self.app.batch_update():
            await self.turns.remove_children()
            self.turns.set_class(not turns, "empty")
            if turns:
                await self._mount_line()
                await self.turns.mount_all([self._draw(turn) for turn in turns[-RECENT:]])
            else:
                await self.turns.mount(Welcome(model))
        self.anchor()

    async def add(self, turn: Widget) -> None:
        """Show one more under the others, and follow it."""
        await self.query(Welcome).remove()
        self.turns.remove_class("empty")
        await self.turns.mount(turn)
        self.anchor()

    async def hide_old(self, turns: Sequence[Turn]) -> None:
        """Take away all but the latest of ``turns``, the whole conversation, once they are many."""
        shown = [c for c in self.turns.children if isinstance(c, UserTurn | AssistantTurn)]
        if len(shown) <= 2 * RECENT:
            return
        first = shown[-RECENT]
        with self.app.batch_update():
            for child in list(self.turns.children):
                if child is first:
                    break
                await child.remove()
            self._hidden = list(turns[: max(0, len(turns) - RECENT)])
            await self._mount_line()

    async def show_all(self) -> None:
        """Bring back what was hidden, and go to the first message."""
        self.release_anchor()
        turns, self._hidden = self._hidden, []
        if turns:
            with self.app.batch_update():
                await self.query(".earlier").remove()
                await self.turns.mount_all([self._draw(turn) for turn in turns], before=0)
        self.scroll_home(animate=False)

    async def _mount_line(self) -> None:
        if self._hidden:
            line = Content.styled(f"▴ {len(self._hidden)} earlier messages · Ctrl+Home", MUTED)
            await self.turns.mount(Static(line, markup=False, classes="earlier"), before=0)
