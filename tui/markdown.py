"""Knows no chat: a model's Markdown, drawn with nothing in it taken for an instruction.

HTML shows as text, links are never followed, and code is coloured only by the language it names
(Textual's default guesses it by running every lexer at each update).
"""

from __future__ import annotations

from markdown_it import MarkdownIt
from textual.app import ComposeResult
from textual.content import Content
from textual.widgets import Markdown
from textual.widgets._markdown import (
    MarkdownBlock,
    MarkdownFence,
    MarkdownTable,
    MarkdownTableCellContents,
    MarkdownTableContent,
)

HIGHLIGHT_MAX_CHARS = 20_000


def parser() -> MarkdownIt:
    """GitHub's Markdown with raw HTML left as text."""
    return MarkdownIt("gfm-like", {"html": False})


class _Cells(MarkdownTableContent):
    """Cells without tooltips: Textual would read a cell's text there as its own markup."""

    def compose(self) -> ComposeResult:
        for header in self.headers:
            yield MarkdownTableCellContents(header, classes="header")
        for number, row in enumerate(self.rows, 1):
            for cell in row:
                yield MarkdownTableCellContents(cell, classes=f"row{number} cell")


class _Table(MarkdownTable):
    def compose(self) -> ComposeResult:
        self._headers, self._rows = self._get_headers_and_rows()
        yield _Cells(self._headers, self._rows)

    async def _update_from_block(self, block: MarkdownBlock) -> None:
        await MarkdownBlock._update_from_block(self, block)


class _Fence(MarkdownFence):
    @classmethod
    def highlight(cls, code: str, language: str, ansi: bool = False, dark: bool = False) -> Content:
        name = language.split()[0] if language.split() else "text"
        if len(code) > HIGHLIGHT_MAX_CHARS:
            name = "text"
        return super().highlight(code, name, ansi, dark)


class ModelMarkdown(Markdown):
    """A Markdown document that grows. Its text must have gone through ``plain`` before."""

    BLOCKS = {  # noqa: RUF012 - Textual declares it without ClassVar
        **Markdown.BLOCKS,
        "table_open": _Table,
        "fence": _Fence,
        "code_block": _Fence,
    }

    def __init__(self, text: str | None = None, *, classes: str | None = None) -> None:
        super().__init__(text, classes=classes, parser_factory=parser, open_links=False)
