"""The `llm` program with a model of `extra-openai-models.yaml`."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from asked import CITY_SCHEMA, QUESTION, SHORT, UNKNOWN, City
from served import CHAT_MODEL, ENVIRONMENTS, Served

LLM = ENVIRONMENTS / "wrappers" / "bin" / "llm"
DEADLINE_S = 120.0


class Llm:
    """The program in a directory of its own that knows two models of the server."""

    def __init__(self, served: Served, place: Path, env: dict[str, str]) -> None:
        self._env = env | {"LLM_USER_PATH": str(place)}
        models = [
            {
                "model_id": f"local-{name}",
                "model_name": name,
                "api_base": served.v1,
                "api_key_name": "none",
                "supports_schema": True,
                "supports_tools": True,
            }
            for name in (CHAT_MODEL, UNKNOWN)
        ]
        # JSON is YAML too.
        (place / "extra-openai-models.yaml").write_text(json.dumps(models))
        (place / "keys.json").write_text(json.dumps({"none": "none"}))

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(LLM), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=self._env,
            timeout=DEADLINE_S,
            check=False,
        )

    def ask(self, *arguments: str, model: str = CHAT_MODEL) -> subprocess.CompletedProcess[str]:
        return self("-m", f"local-{model}", *arguments)


@pytest.fixture
def llm(server: Served, tmp_path: Path, home: dict[str, str]) -> Llm:
    return Llm(server, tmp_path, home)


@pytest.mark.parametrize("streamed", [(), ("--no-stream",)], ids=["streamed", "whole"])
def test_a_question_is_answered_with_its_tokens(llm: Llm, streamed: tuple[str, ...]) -> None:
    ran = llm.ask(QUESTION, "-o", "max_tokens", str(SHORT), "--usage", *streamed)

    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip()
    assert "Token usage:" in ran.stderr


def test_a_form_is_answered(llm: Llm) -> None:
    ran = llm.ask(QUESTION, "--schema", json.dumps(CITY_SCHEMA))

    assert ran.returncode == 0, ran.stderr
    City.model_validate_json(ran.stdout)


def test_a_tool_is_offered_and_an_answer_taken(llm: Llm) -> None:
    tool = 'def upper(text: str) -> str:\n    "Upper case."\n    return text.upper()'

    ran = llm.ask("Hi", "--functions", tool, "-o", "max_tokens", str(SHORT))

    assert ran.returncode == 0, ran.stderr


def test_a_conversation_goes_on(llm: Llm) -> None:
    llm.ask(QUESTION, "-o", "max_tokens", str(SHORT))

    ran = llm("-c", "And of Italy?", "-o", "max_tokens", str(SHORT))

    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip()


def test_an_unknown_model_is_named(llm: Llm) -> None:
    ran = llm.ask(QUESTION, model=UNKNOWN)

    assert ran.returncode == 1
    assert "404" in ran.stderr
    assert UNKNOWN in ran.stderr
