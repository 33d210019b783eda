"""aider without a terminal, by the two ways that it reaches a local server."""

from __future__ import annotations

from pathlib import Path

import pytest
from programs import AIDER, Agent
from served import CHAT_MODEL, Served

# One question, no repository, nothing looked up elsewhere.
ONCE = ("--message", "Say hi", "--yes-always", "--no-git", "--no-check-update")
ONCE += (
    "--analytics-disable",
    "--no-show-release-notes",
    "--no-show-model-warnings",
    "--no-pretty",
)


@pytest.fixture
def aider(server: Served, tmp_path: Path, home: dict[str, str]) -> Agent:
    place = tmp_path / "project"
    place.mkdir()
    # A table of prices of today, or it would fetch one.
    caches = Path(home["HOME"]) / ".aider" / "caches"
    caches.mkdir(parents=True)
    (caches / "model_prices_and_context_window.json").write_text('{"none": {}}')
    return Agent("aider", server, AIDER, place, home)


def test_a_message_is_answered_as_launch_sets_it_up(aider: Agent) -> None:
    ran = aider.launch(*ONCE)

    assert ran.returncode == 0, ran.stderr
    assert "Tokens:" in ran.stdout
    (request,) = aider.asked("/v1/chat/completions")
    assert request["status"] == 200
    assert request["generated_tokens"] > 0


def test_a_message_is_answered_through_ollamas_route(aider: Agent) -> None:
    command = [str(AIDER / "aider"), "--model", f"ollama_chat/{CHAT_MODEL}", *ONCE]

    ran = aider.run(command, {"OLLAMA_API_BASE": aider.served.url})

    assert ran.returncode == 0, ran.stderr
    assert [request["status"] for request in aider.asked("/api/chat")] == [200], ran.stdout
