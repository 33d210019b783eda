"""Knows only the names of actions: what the command palette offers."""

from __future__ import annotations

from functools import partial

from textual.command import DiscoveryHit, Hit, Hits, Provider

COMMANDS: tuple[tuple[str, str, str], ...] = (
    ("New chat", "new_chat", "Ctrl+N"),
    ("Switch conversation", "conversations", "Ctrl+S · search, open, delete"),
    ("Rename this conversation", "rename", "Give it another title"),
    ("Delete this conversation", "delete", "Asks first"),
    ("Export as Markdown", "export('md')", "Write this conversation to a file"),
    ("Export as JSON", "export('json')", "Write this conversation to a file"),
    ("Copy the last answer", "copy_answer", "Ctrl+Y"),
    ("Copy the last message", "copy_message", "Yours"),
    ("Answer again", "regenerate", "Ctrl+R · replaces the last answer"),
    ("Fold or unfold thoughts", "fold_thoughts", "Ctrl+T"),
    ("Switch model", "models", "Ctrl+O"),
    ("Change theme: light or dark", "theme", "The other of the two"),
    ("Help", "help", "F1"),
    ("Quit", "app.quit", "Ctrl+Q"),
)


class ChatCommands(Provider):
    """Every entry is a fixed text: no title or model name is ever read as markup here."""

    async def discover(self) -> Hits:
        for name, action, about in COMMANDS:
            yield DiscoveryHit(name, partial(self.screen.run_action, action), help=about)

    async def search(self, query: str) -> Hits:
        matcher = self.matcher(query)
        for name, action, about in COMMANDS:
            if (score := matcher.match(name)) > 0:
                command = partial(self.screen.run_action, action)
                yield Hit(score, matcher.highlight(name), command, help=about)
