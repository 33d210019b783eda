"""opencode, Codex and Claude Code without a terminal. Each is told to say little of itself: what
they say by default is longer than the small model's context."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from programs import NODE, Agent
from served import N_CTX, Served

pytestmark = pytest.mark.skipif(
    shutil.which("npm") is None, reason="no npm on PATH: opencode, Codex and Claude Code not tested"
)
SHORT_PROMPT = "Answer briefly."
# Some answers of a small model repeat themselves to the end.
FEW_TOKENS = {"CLAUDE_CODE_MAX_OUTPUT_TOKENS": "32"}
OPENCODE = {
    "autoupdate": False,
    "share": "disabled",
    "agent": {
        "short": {
            "mode": "primary",
            "prompt": SHORT_PROMPT,
            "temperature": 0,
            "tools": {"*": False},
        }
    },
}


@pytest.fixture
def agent(server: Served, tmp_path: Path, home: dict[str, str]) -> Callable[[str], Agent]:
    place = tmp_path / "project"
    place.mkdir()
    return lambda name: Agent(name, server, NODE, place, home)


def test_opencode_is_answered(agent: Callable[[str], Agent]) -> None:
    opencode = agent("opencode")
    (opencode.place / "opencode.json").write_text(json.dumps(OPENCODE))
    opencode.env["OPENCODE_DISABLE_MODELS_FETCH"] = "1"

    ran = opencode.launch("run", "--print-logs", "--agent", "short", "--title", "hi", "Say hi")

    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip()
    requests = opencode.asked("/v1/chat/completions")
    assert requests
    assert {request["status"] for request in requests} == {200}


def test_codex_is_answered_with_all_its_tools(agent: Callable[[str], Agent]) -> None:
    codex = agent("codex")
    instructions = codex.place / "instructions.md"
    instructions.write_text(SHORT_PROMPT)

    ran = codex.launch(
        "exec",
        "--skip-git-repo-check",
        "-c",
        f"model_instructions_file={json.dumps(str(instructions))}",
        "Say hi",
    )

    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip()
    requests = codex.asked("/v1/responses")
    assert {request["status"] for request in requests} == {200}
    # Its tools are most of it.
    assert requests[0]["prompt_tokens"] > 2000


def test_codex_knows_a_context_that_is_full(agent: Callable[[str], Agent]) -> None:
    codex = agent("codex")

    ran = codex.launch("exec", "--skip-git-repo-check", "word " * N_CTX)

    assert ran.returncode != 0
    assert "ran out of room in the model's context window" in ran.stderr
    assert [request["status"] for request in codex.asked("/v1/responses")] == [400]


def test_claude_code_is_answered(agent: Callable[[str], Agent]) -> None:
    claude = agent("claude")
    command = [str(NODE / "claude"), "-p", "Say hi", "--output-format", "json"]
    command += ["--system-prompt", SHORT_PROMPT, "--tools", "Read"]

    ran = claude.run(command, claude.settings() | FEW_TOKENS)

    # It calls an answer that is cut again and again an error; text and tokens came all the same.
    result = json.loads(ran.stdout)
    assert result["result"]
    assert result["usage"]["output_tokens"] > 0
    requests = claude.asked("/v1/messages")
    assert requests
    assert {request["status"] for request in requests} == {200}


def test_claude_code_reads_both_numbers_of_a_prompt_over_the_context(
    agent: Callable[[str], Agent],
) -> None:
    claude = agent("claude")

    ran = claude.launch("-p", "Say hi")

    assert ran.returncode == 1
    assert "Prompt is too long" in ran.stdout
    assert f"limit {N_CTX - 1}" in ran.stdout
    assert {request["status"] for request in claude.asked("/v1/messages")} == {400}
