"""Knows no editor: what there is to say of one, and of the server that it is to use.

The API key itself never comes in here: settings name the variable that holds it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from localrun.cli.launch.jsonc import Wanted

KEY_VARIABLE = "LOCALRUN_API_KEY"
# Stands for the key until a program is started.
KEY = "${" + KEY_VARIABLE + "}"
# What clients are given that insist on a key where the server asks for none.
NO_KEY = "localrun"

# A prompt of tens of thousands of tokens is prefilled in silence: no client may give up before.
# Claude Code takes no more.
PATIENCE_MS = 30 * 60 * 1000
MAX_OUTPUT = 8192


@dataclass(frozen=True, slots=True)
class Connection:
    """Where the model is. ``url`` ends without a slash and without ``/v1``; ``n_ctx`` in tokens;
    ``keyed`` where the server asks for an API key."""

    url: str
    model: str
    n_ctx: int
    keyed: bool = False

    @property
    def v1(self) -> str:
        return f"{self.url}/v1"

    @property
    def key(self) -> str:
        return KEY if self.keyed else NO_KEY

    @property
    def max_output(self) -> int:
        """Tokens of an answer; the rest of the context is the conversation's."""
        return min(self.n_ctx // 4, MAX_OUTPUT)


@dataclass(frozen=True, slots=True)
class Places:
    """Where programs look for their settings. ``state`` is localrun's own directory."""

    home: Path
    config: Path
    state: Path
    mac: bool = False


@dataclass(frozen=True, slots=True)
class Merged:
    """A JSON file of the user's, with or without comments, that has to hold ``wanted`` too."""

    file: Path
    wanted: Wanted


@dataclass(frozen=True, slots=True)
class Whole:
    """A file that holds nothing but our settings. ``ours``: in our own directory, so nobody is
    asked."""

    file: Path
    text: str
    ours: bool = False


@dataclass(frozen=True, slots=True)
class Snippet:
    """What a person pastes, and where."""

    where: str
    text: str


@dataclass(frozen=True, slots=True)
class ProgramSettings:
    """All that one program needs.

    env, unset: of its environment. arguments: before the user's own. file: what is written.
    snippets: for files that are written in a language, not in data, and for whoever starts it
    without us. steps: what is left to a person.
    """

    env: Mapping[str, str] = field(default_factory=dict)
    unset: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    file: Merged | Whole | None = None
    snippets: tuple[Snippet, ...] = ()
    steps: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Agent:
    """One editor or agent.

    programs: its names on PATH, the first found is started. terminal: it runs in this terminal, so
    a server can be kept for as long as it runs. wanted_n_ctx: a context below it is said to be
    short, 0 for none; ``short`` says why. install: how it is installed.
    """

    title: str
    settings: Callable[[Connection, Places], ProgramSettings]
    programs: tuple[str, ...] = ()
    terminal: bool = False
    wanted_n_ctx: int = 0
    short: str = ""
    install: str = ""
