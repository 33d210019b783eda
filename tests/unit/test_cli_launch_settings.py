"""What each editor and agent is told, to the letter, read by a parser of its own format."""

from __future__ import annotations

import json
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from localrun.cli.launch import command
from localrun.cli.launch.description import (
    KEY,
    Connection,
    Merged,
    Places,
    ProgramSettings,
    Whole,
)
from localrun.cli.launch.jsonc import plain
from localrun.cli.launch.launching import AGENTS

PLACES = Places(Path("/home/u"), Path("/home/u/.config"), Path("/home/u/.local/state/localrun"))
REF = "hf:org/repo:Q4_K_M"
OPEN = Connection("http://127.0.0.1:7411", REF, 65536)
KEYED = Connection("http://127.0.0.1:7411", REF, 65536, keyed=True)
HALF_AN_HOUR_MS = 1_800_000


def settings(name: str, connection: Connection = OPEN) -> ProgramSettings:
    return AGENTS[name].settings(connection, PLACES)


CLAUDE = {
    "ANTHROPIC_BASE_URL": "http://127.0.0.1:7411",
    "ANTHROPIC_AUTH_TOKEN": "localrun",
    "ANTHROPIC_API_KEY": "",
    "ANTHROPIC_MODEL": REF,
    "ANTHROPIC_DEFAULT_OPUS_MODEL": REF,
    "ANTHROPIC_DEFAULT_SONNET_MODEL": REF,
    "ANTHROPIC_DEFAULT_HAIKU_MODEL": REF,
    "CLAUDE_CODE_SUBAGENT_MODEL": REF,
    "CLAUDE_CODE_MAX_CONTEXT_TOKENS": "65536",
    "CLAUDE_CODE_MAX_OUTPUT_TOKENS": "8192",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",
    "CLAUDE_STREAM_IDLE_TIMEOUT_MS": str(HALF_AN_HOUR_MS),
    "API_TIMEOUT_MS": str(HALF_AN_HOUR_MS),
}


def test_claude_code_is_told_by_its_environment_alone() -> None:
    assert settings("claude").env == CLAUDE
    assert settings("claude", KEYED).env == CLAUDE | {"ANTHROPIC_AUTH_TOKEN": KEY}
    assert "CLAUDE_CODE_USE_BEDROCK" in settings("claude").unset
    assert settings("claude").file is None


CODEX = {
    "model": REF,
    "model_provider": "localrun",
    "model_context_window": 65536,
    "model_providers": {
        "localrun": {
            "name": "localrun",
            "base_url": "http://127.0.0.1:7411/v1",
            "wire_api": "responses",
            "stream_idle_timeout_ms": HALF_AN_HOUR_MS,
        }
    },
}


@pytest.mark.parametrize("connection", [OPEN, KEYED], ids=["open", "keyed"])
def test_codex_is_told_the_same_by_arguments_and_by_a_profile(connection: Connection) -> None:
    needed = settings("codex", connection)
    expected = json.loads(json.dumps(CODEX))
    if connection.keyed:
        expected["model_providers"]["localrun"]["env_key"] = "LOCALRUN_API_KEY"

    flags = needed.arguments
    assert set(flags[::2]) == {"-c"}
    # Codex reads `a.b=VALUE` as TOML does.
    assert tomllib.loads("\n".join(flags[1::2])) == expected
    (profile,) = needed.snippets
    assert profile.where == "/home/u/.codex/localrun.config.toml"
    assert tomllib.loads(profile.text) == expected


OPENCODE = {
    "$schema": "https://opencode.ai/config.json",
    "provider": {
        "localrun": {
            "npm": "@ai-sdk/openai-compatible",
            "name": "localrun",
            "options": {
                "baseURL": "http://127.0.0.1:7411/v1",
                "apiKey": "localrun",
                "timeout": HALF_AN_HOUR_MS,
            },
            "models": {
                REF: {
                    "name": REF,
                    "tool_call": True,
                    "limit": {"context": 65536, "output": 8192},
                }
            },
        }
    },
    "model": f"localrun/{REF}",
    "small_model": f"localrun/{REF}",
}


def test_opencode_is_told_by_one_variable() -> None:
    (content,) = settings("opencode").env.values()
    keyed = json.loads(settings("opencode", KEYED).env["OPENCODE_CONFIG_CONTENT"])

    assert json.loads(content) == OPENCODE
    assert keyed["provider"]["localrun"]["options"]["apiKey"] == "{env:LOCALRUN_API_KEY}"


def test_aider_is_told_by_its_environment_and_a_file_of_ours() -> None:
    needed = settings("aider")

    file = "/home/u/.local/state/localrun/aider-models.json"
    assert needed.env == {
        "OPENAI_API_BASE": "http://127.0.0.1:7411/v1",
        "OPENAI_API_KEY": "localrun",
        "AIDER_MODEL": f"openai/{REF}",
        "AIDER_WEAK_MODEL": f"openai/{REF}",
        "AIDER_MODEL_METADATA_FILE": file,
        "AIDER_TIMEOUT": "1800",
    }
    assert isinstance(needed.file, Whole)
    assert (str(needed.file.file), needed.file.ours) == (file, True)
    assert json.loads(needed.file.text) == {
        f"openai/{REF}": {
            "max_tokens": 8192,
            "max_input_tokens": 65536,
            "max_output_tokens": 8192,
            "input_cost_per_token": 0,
            "output_cost_per_token": 0,
            "litellm_provider": "openai",
            "mode": "chat",
        }
    }


def test_continue_gets_a_file_that_joins_its_configuration() -> None:
    file = settings("continue").file
    keyed = settings("continue", KEYED).file

    assert isinstance(file, Whole)
    assert isinstance(keyed, Whole)
    assert str(file.file) == "/home/u/.continue/models/localrun.yaml"
    assert yaml.safe_load(file.text) == {
        "name": "localrun",
        "version": "0.0.1",
        "schema": "v1",
        "models": [
            {
                "name": f"localrun: {REF}",
                "provider": "openai",
                "model": REF,
                "apiBase": "http://127.0.0.1:7411/v1",
                "roles": ["chat", "edit", "apply"],
                "capabilities": ["tool_use"],
                "defaultCompletionOptions": {"contextLength": 65536, "maxTokens": 8192},
            }
        ],
    }
    (model,) = yaml.safe_load(keyed.text)["models"]
    assert model["apiKey"] == "${{ secrets.LOCALRUN_API_KEY }}"


ZED = {
    "language_models": {
        "openai_compatible": {
            "localrun": {
                "api_url": "http://127.0.0.1:7411/v1",
                "available_models": [
                    {
                        "name": REF,
                        "display_name": f"{REF} (localrun)",
                        "max_tokens": 65536,
                        "max_output_tokens": 8192,
                        "capabilities": {
                            "tools": True,
                            "images": False,
                            "parallel_tool_calls": True,
                            "prompt_cache_key": False,
                        },
                    }
                ],
            }
        }
    }
}
VSCODE = [
    {
        "vendor": "customendpoint",
        "name": "localrun",
        "apiType": "chat-completions",
        "models": [
            {
                "id": REF,
                "name": REF,
                "url": "http://127.0.0.1:7411/v1/chat/completions",
                "toolCalling": True,
                "vision": False,
                "maxInputTokens": 65536 - 8192,
                "maxOutputTokens": 8192,
            }
        ],
    }
]


@pytest.mark.parametrize(
    ("name", "place", "document"),
    [
        ("zed", "/home/u/.config/zed/settings.json", ZED),
        ("vscode", "/home/u/.config/Code/User/chatLanguageModels.json", VSCODE),
    ],
)
def test_an_editors_file_holds_the_model(name: str, place: str, document: Any) -> None:
    file = settings(name).file

    assert isinstance(file, Merged)
    assert str(file.file) == place
    assert plain(file.wanted) == document


def test_on_a_mac_vs_code_keeps_its_settings_elsewhere() -> None:
    mac = Places(Path("/Users/u"), Path("/Users/u/.config"), Path("/s"), mac=True)

    file = AGENTS["vscode"].settings(OPEN, mac).file

    assert isinstance(file, Merged)
    assert str(file.file) == (
        "/Users/u/Library/Application Support/Code/User/chatLanguageModels.json"
    )


def test_llama_vim_is_told_before_its_plugin_is_loaded() -> None:
    quoted = Connection("http://127.0.0.1:7411", "./it's.gguf", 4096, keyed=True)

    assert settings("llama.vim").arguments == (
        "--cmd",
        "let g:llama_config = {'endpoint_fim': 'http://127.0.0.1:7411/infill', "
        f"'model_fim': '{REF}', "
        "'endpoint_inst': 'http://127.0.0.1:7411/v1/chat/completions', "
        f"'model_inst': '{REF}'}}",
    )
    assert "'model_fim': './it''s.gguf'" in settings("llama.vim", quoted).arguments[1]
    assert settings("llama.vim", quoted).arguments[1].endswith("'api_key': $LOCALRUN_API_KEY}")


def test_minuet_has_its_two_shapes() -> None:
    suffix, raw = settings("minuet").snippets

    for snippet in (suffix, raw):
        assert 'end_point = "http://127.0.0.1:7411/v1/completions"' in snippet.text
        assert f'model = "{REF}"' in snippet.text
        assert "api_key = 'TERM'" in snippet.text
        assert snippet.text.count("{") == snippet.text.count("}")
    assert "template" not in suffix.text
    assert "<|fim_suffix|>" in raw.text
    assert "suffix = false" in raw.text
    assert "api_key = 'LOCALRUN_API_KEY'" in settings("minuet", KEYED).snippets[0].text


def test_jetbrains_is_told_the_url_by_hand() -> None:
    assert "URL: http://127.0.0.1:7411/v1" in settings("jetbrains").steps


def test_cursors_limits_are_said_first() -> None:
    first, *rest = settings("cursor").steps

    assert first.startswith("Cursor cannot reach http://127.0.0.1:7411")
    assert any("API key" in step for step in rest)
    assert any("Tab never uses it" in step for step in rest)


@pytest.mark.parametrize("name", [name for name in AGENTS if name != "cursor"])
def test_where_the_server_asks_for_a_key_everyone_is_told_of_it(name: str) -> None:
    assert settings(name, KEYED) != settings(name, OPEN)


def test_a_small_context_leaves_most_of_it_to_the_conversation() -> None:
    assert Connection("u", "m", 8192).max_output == 2048


def test_the_help_names_every_agent() -> None:
    assert tuple(command.NAMES.split(", ")) == tuple(AGENTS)


def test_what_is_printed_for_a_shell_is_what_the_program_gets() -> None:
    needed = settings("codex")

    assert tuple(shlex.split(shlex.join(needed.arguments))) == needed.arguments
