"""Knows no model and no disk: one message of the conversation, drawn."""

from __future__ import annotations

import time
from typing import ClassVar

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.reactive import reactive
from textual.widgets import Markdown, Static
from textual.widgets.markdown import MarkdownStream

from localrun.tui.markdown import ModelMarkdown
from localrun.tui.plain import one_line, plain

# Drawing may take this share of a core, and waits between these seconds to stay within it.
DRAW_SHARE = 0.15
FLUSH_S, FLUSH_MAX_S = 1 / 15, 0.6
UNFINISHED = "Thinking…"


def text(content: str, *, classes: str = "", id: str | None = None) -> Static:
    """Text as it is: no markup in it is read."""
    return Static(plain(content), markup=False, classes=classes, id=id)


class UserTurn(Vertical):
    """What the person wrote, exactly: Markdown would change it."""

    def __init__(self, content: str) -> None:
        super().__init__(classes="turn user")
        self.content = content

    def compose(self) -> ComposeResult:
        yield text("You", classes="speaker")
        yield text(self.content, classes="words")


class ErrorTurn(Vertical):
    """What went wrong and what to do about it."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(classes="turn error")
        self.message, self.hint = message, hint

    def compose(self) -> ComposeResult:
        yield text("✗ Error", classes="speaker")
        yield text(self.message, classes="words")
        yield text(f"hint: {self.hint}", classes="hint")


class _Growing:
    """Text on its way into one Markdown widget: buffered here, written a few times a second."""

    def __init__(self, widget: ModelMarkdown) -> None:
        self.widget = widget
        self._buffer: list[str] = []
        self._stream: MarkdownStream | None = None

    def feed(self, piece: str) -> None:
        self._buffer.append(piece)

    async def flush(self) -> None:
        if self._buffer and self.widget.is_attached:
            if self._stream is None:
                self._stream = Markdown.get_stream(self.widget)
            pieces, self._buffer = "".join(self._buffer), []
            await self._stream.write(pieces)

    async def finish(self) -> None:
        await self.flush()
        if self._stream is not None:
            await self._stream.stop()
            self._stream = None


class Thinking(Vertical):
    """Reasoning that folds away. A click on its first line or Ctrl+T folds and unfolds it."""

    folded: reactive[bool] = reactive(True, toggle_class="-folded")

    def __init__(self, content: str = "", *, title: str = "Thoughts", folded: bool = True) -> None:
        super().__init__(classes="thinking")
        self.title = title
        self.body = ModelMarkdown(plain(content) or None)
        self.head = Static(markup=False, classes="head")
        self.set_reactive(Thinking.folded, folded)
        self.set_class(folded, "-folded")

    def compose(self) -> ComposeResult:
        yield self.head
        yield self.body

    def on_mount(self) -> None:
        self.watch_folded()

    def entitle(self, title: str) -> None:
        """Change the first line."""
        self.title = title
        self.watch_folded()

    def watch_folded(self) -> None:
        self.head.update(Content(f"{'▸' if self.folded else '▾'} {self.title}"))

    def on_click(self) -> None:
        self.folded = not self.folded


class AssistantTurn(Vertical):
    """An answer, whole or still growing: reasoning, Markdown, and a last line of facts.

    ``fold`` None shows reasoning while it streams and folds it when the answer begins.
    """

    BUSY: ClassVar[str] = "…"

    def __init__(
        self,
        speaker: str,
        content: str = "",
        *,
        reasoning: str = "",
        note: str = "",
        fold: bool | None = None,
    ) -> None:
        super().__init__(classes="turn assistant")
        self.speaker = one_line(speaker, 60)
        self.fold = fold
        self.thinking = Thinking(reasoning, folded=fold is not False) if reasoning else None
        self.body = ModelMarkdown(plain(content) or None)
        self.foot = Static(Content(plain(note)), markup=False, classes="foot")
        self.foot.display = bool(note)
        self._answer = _Growing(self.body)
        self._thought: _Growing | None = None
        self._thought_since = 0.0
        self._answered = bool(content)
        self._next_flush = self._thread_time = 0.0

    def compose(self) -> ComposeResult:
        yield text(f"◆ {self.speaker}", classes="speaker")
        if self.thinking is not None:
            yield self.thinking
        yield self.body
        yield self.foot

    def on_mount(self) -> None:
        self._ticker = self.set_interval(FLUSH_S, self._tick, pause=True)

    def begin(self) -> None:
        """The answer is being made: draw what is fed from now on."""
        self.say(self.BUSY)
        self._thread_time = time.thread_time()
        self._ticker.resume()

    def say(self, note: str) -> None:
        """Set the last line; empty hides it."""
        self.foot.update(Content(plain(note)))
        self.foot.display = bool(note)

    def feed(self, piece: str) -> None:
        """More of the answer; drawn at the next flush."""
        if piece and not self._answered:
            self._answered = True
            self._end_thought(fold=self.fold is not False)
            self.say("")
        self._answer.feed(plain(piece))

    async def think(self, piece: str) -> None:
        """More of the reasoning; shown while it streams, folded when the answer begins."""
        if self._thought is None:
            self._thought_since = time.monotonic()
            self.thinking = Thinking(title=UNFINISHED, folded=self.fold is True)
            self.say("")
            self._thought = _Growing(self.thinking.body)
            await self.mount(self.thinking, before=self.body)
        self._thought.feed(plain(piece))

    async def _tick(self) -> None:
        now, used = time.monotonic(), time.thread_time()
        if now >= self._next_flush:
            wait = min(FLUSH_MAX_S, (used - self._thread_time) / DRAW_SHARE)
            self._next_flush, self._thread_time = now + wait, used
            await self.flush()

    async def flush(self) -> None:
        """Draw what has been fed since the last time."""
        if self._thought is not None:
            await self._thought.flush()
        await self._answer.flush()

    async def finish(self, note: str) -> None:
        """The answer has ended: draw all of it and leave ``note`` under it."""
        self._ticker.pause()
        if self._thought is not None:
            await self._thought.finish()
        self._end_thought(fold=False)
        await self._answer.finish()
        self.say(note)

    def _end_thought(self, *, fold: bool) -> None:
        if self.thinking is None or self.thinking.title != UNFINISHED:
            return
        seconds = time.monotonic() - self._thought_since
        self.thinking.entitle(f"Thought for {seconds:.0f} s")
        self.thinking.folded = self.thinking.folded or fold
