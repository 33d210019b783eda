"""One server for all clients of a run, and an empty home for those that are programs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from served import Served, serving

# What a person's own settings say of another server or account.
FOREIGN = ("OPENAI_", "ANTHROPIC_", "OLLAMA_", "LITELLM_", "LLM_", "AIDER_", "CODEX_", "OPENCODE")
FOREIGN += ("CLAUDE", "LOCALRUN_")
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
# litellm fetches its table of prices when it is imported, unless it is told not to.
OURS = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}


def plain_environment() -> dict[str, str]:
    return OURS | {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(FOREIGN) and name.upper() not in PROXIES
    }


def pytest_configure(config: pytest.Config) -> None:
    """Before the clients are imported: some read their settings then."""
    plain = plain_environment()
    os.environ.clear()
    os.environ.update(plain)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The models are those of the developer's own store; the list of running servers is not."""
    place = tmp_path_factory.mktemp("server")
    env = plain_environment() | {"XDG_STATE_HOME": str(place / "state")}
    with serving(place / "server.log", env) as served:
        yield served


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """The environment of a program that finds no settings, and may write where nobody looks."""
    place = tmp_path / "home"
    place.mkdir()
    kept = {name: value for name, value in plain_environment().items() if name[:4] != "XDG_"}
    return kept | {"HOME": str(place), "NO_COLOR": "1", "TERM": "dumb"}
