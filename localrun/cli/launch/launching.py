"""Knows no program by name: what is asked of ``localrun launch``, from settings to their start."""

from __future__ import annotations

import json as jsonlib
import shlex
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localrun.cli.launch.connecting import Found, Wish, connect
from localrun.cli.launch.description import (
    KEY,
    KEY_VARIABLE,
    Agent,
    Connection,
    Merged,
    Places,
    ProgramSettings,
    Snippet,
    Whole,
)
from localrun.cli.launch.editors import EDITORS
from localrun.cli.launch.jsonc import merged, plain
from localrun.cli.launch.starting import ending_on_signals, own_server, program, run
from localrun.cli.launch.terminal import TERMINAL
from localrun.cli.output import clean_text, emit_json, note, say
from localrun.cli.user_files import changed, read, write
from localrun.config import environment
from localrun.errors import BackendMissingError, UsageError

if TYPE_CHECKING:
    from localrun.config import Settings

AGENTS: dict[str, Agent] = {**TERMINAL, **EDITORS}


@dataclass(frozen=True, slots=True)
class Manner:
    """What becomes of the settings. ``rest``: the user's own arguments for the program."""

    print_only: bool = False
    json: bool = False
    yes: bool = False
    rest: tuple[str, ...] = ()


def launch(name: str, asked: Wish, manner: Manner, here: Settings) -> int:
    """Set an editor or agent up and start it; returns the exit code.

    Raises:
        UsageError: no such editor, or its file cannot be written. BackendMissingError: its program
        is not installed. Otherwise as ``connect`` and ``own_server``.
    """
    agent = AGENTS.get(name)
    if agent is None:
        raise UsageError(
            f"no editor or agent is called {name!r}", hint=f"one of {', '.join(AGENTS)}"
        )
    if agent.terminal and not (manner.print_only or manner.json):
        program(agent)  # before any model is looked at
    found = connect(replace(asked, wanted_n_ctx=agent.wanted_n_ctx), here)
    if found.connection.n_ctx < agent.wanted_n_ctx:
        note(
            f"{found.connection.model} has a context of {found.connection.n_ctx} tokens here, "
            f"{agent.title} is better off with {agent.wanted_n_ctx}: {agent.short}"
        )
    if manner.json:
        emit_json(_document(name, agent, found, _places(here)))
        return 0
    if manner.print_only:
        _print(agent, found, _places(here))
        return 0
    if agent.terminal:
        return _in_terminal(agent, found, here, asked.api_key, manner)
    return _editor(agent, found, here, asked.api_key, manner)


def _in_terminal(
    agent: Agent, found: Found, here: Settings, api_key: str | None, manner: Manner
) -> int:
    with ExitStack() as stack:
        stack.enter_context(ending_on_signals())
        connection = found.connection
        if not found.running:
            connection = stack.enter_context(own_server(connection, here.state, api_key))
        needed = agent.settings(connection, _places(here))
        if isinstance(needed.file, Whole) and needed.file.ours:
            write(needed.file.file, needed.file.text)
        command = [program(agent), *needed.arguments, *manner.rest]
        return run(command, _with_key(needed, api_key), needed.unset)


def _editor(agent: Agent, found: Found, here: Settings, api_key: str | None, manner: Manner) -> int:
    """An editor goes on when this command has ended: nothing is served for it alone."""
    places = _places(here)
    needed = agent.settings(found.connection, places)
    if needed.file is None:
        _print(agent, found, places)
        return 0
    file, text = _after(needed.file)
    try:
        written = changed(file, text, yes=manner.yes)
    except UsageError:
        _paste(needed)
        raise
    if not written:
        _paste(needed)
        return 1
    _tell(needed, found)
    if not agent.programs:
        return 0
    try:
        command = program(agent)
    except BackendMissingError as error:
        note(f"{error.message}: start it yourself")
        return 0
    return run([command, *manner.rest], _with_key(needed, api_key), needed.unset)


def _after(file: Merged | Whole) -> tuple[Path, str]:
    """What the file will hold.

    Raises:
        UsageError: what it holds now cannot be added to.
    """
    if isinstance(file, Whole):
        return file.file, file.text
    try:
        return file.file, merged(read(file.file) or "", file.wanted)
    except UsageError as error:
        raise UsageError(
            f"{file.file}: {error.message}", hint="correct it, or paste what --print shows"
        ) from error


def _places(here: Settings) -> Places:
    home = Path.home()
    config = environment().get("XDG_CONFIG_HOME")
    return Places(
        home=home,
        config=Path(config) if config else home / ".config",
        state=here.state,
        mac=sys.platform == "darwin",
    )


def _with_key(needed: ProgramSettings, api_key: str | None) -> dict[str, str]:
    env = {name: api_key or "" if value == KEY else value for name, value in needed.env.items()}
    return env | ({KEY_VARIABLE: api_key} if api_key else {})


def _snippets(needed: ProgramSettings) -> list[Snippet]:
    """All that may be pasted, the file that would be written among it."""
    match needed.file:
        case Whole(file, text):
            return [Snippet(str(file), text), *needed.snippets]
        case Merged(file, wanted):
            text = jsonlib.dumps(plain(wanted), indent=2) + "\n"
            return [Snippet(str(file), text), *needed.snippets]
        case None:
            return list(needed.snippets)


def _print(agent: Agent, found: Found, places: Places) -> None:
    needed = agent.settings(found.connection, places)
    lines = [f"unset {name}" for name in needed.unset]
    lines += [f"export {name}={_quoted(value)}" for name, value in needed.env.items()]
    if agent.terminal:
        lines.append(shlex.join([agent.programs[0], *needed.arguments]))
    for line in lines:
        say(line)
    _paste(needed)
    _tell(needed, found, say if not lines and not _snippets(needed) else note)


def _quoted(value: str) -> str:
    return f'"${KEY_VARIABLE}"' if value == KEY else shlex.quote(value)


def _paste(needed: ProgramSettings) -> None:
    for snippet in _snippets(needed):
        note(f"in {snippet.where}:")
        sys.stderr.flush()
        sys.stdout.write(clean_text(snippet.text))
        sys.stdout.flush()


def _tell(needed: ProgramSettings, found: Found, tell: Callable[[str], None] = note) -> None:
    for step in needed.steps:
        tell(step)
    if not found.running:
        note(f"no server runs: {_serve(found.connection)} starts one at {found.connection.url}")


def _serve(connection: Connection) -> str:
    return f"`localrun serve {shlex.quote(connection.model)} --ctx {connection.n_ctx}`"


def _document(name: str, agent: Agent, found: Found, places: Places) -> dict[str, Any]:
    needed = agent.settings(found.connection, places)
    command = [agent.programs[0], *needed.arguments] if agent.programs else []
    return {
        "agent": name,
        **asdict(found.connection),
        "running": found.running,
        "serve": None if found.running else _serve(found.connection).strip("`"),
        "env": dict(needed.env),
        "unset": list(needed.unset),
        "command": command,
        "files": [asdict(snippet) for snippet in _snippets(needed)],
        "steps": list(needed.steps),
    }
