"""Knows no file of a user's: agents of the terminal, set up by environment and arguments alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from localrun.cli.launch.description import (
    KEY_VARIABLE,
    PATIENCE_MS,
    Agent,
    Connection,
    Places,
    ProgramSettings,
    Snippet,
    Whole,
)

# What Ollama's documentation asks of a context for coding agents.
AGENT_N_CTX = 65536


def _claude(here: Connection, places: Places) -> ProgramSettings:
    """https://code.claude.com/docs/en/env-vars and https://code.claude.com/docs/en/llm-gateway."""
    models = ("OPUS", "SONNET", "HAIKU")
    return ProgramSettings(
        env={
            "ANTHROPIC_BASE_URL": here.url,
            "ANTHROPIC_AUTH_TOKEN": here.key,
            # Sent as x-api-key where it is set, and asked about at the first start.
            "ANTHROPIC_API_KEY": "",
            "ANTHROPIC_MODEL": here.model,
            **{f"ANTHROPIC_DEFAULT_{model}_MODEL": here.model for model in models},
            "CLAUDE_CODE_SUBAGENT_MODEL": here.model,
            # A model that it does not know is otherwise taken to hold 200,000 tokens.
            "CLAUDE_CODE_MAX_CONTEXT_TOKENS": str(here.n_ctx),
            "CLAUDE_CODE_MAX_OUTPUT_TOKENS": str(here.max_output),
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            # A line that changes from request to request in front of each prompt would cost its
            # whole prefix again: https://github.com/anthropics/claude-code/issues/50085
            "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",
            "CLAUDE_STREAM_IDLE_TIMEOUT_MS": str(PATIENCE_MS),
            "API_TIMEOUT_MS": str(PATIENCE_MS),
        },
        unset=("CLAUDE_CODE_USE_BEDROCK", "CLAUDE_CODE_USE_VERTEX", "CLAUDE_CODE_USE_FOUNDRY"),
    )


def _codex(here: Connection, places: Places) -> ProgramSettings:
    """https://developers.openai.com/codex/config-reference: ``responses`` is the one ``wire_api``,
    and a profile is a file of its own."""
    provider: dict[str, Any] = {
        "name": "localrun",
        "base_url": here.v1,
        "wire_api": "responses",
        "stream_idle_timeout_ms": PATIENCE_MS,
    }
    if here.keyed:
        provider["env_key"] = KEY_VARIABLE
    top: dict[str, Any] = {
        "model": here.model,
        "model_provider": "localrun",
        "model_context_window": here.n_ctx,
    }
    flags = {**top, "model_providers.localrun": provider}
    profile = [f"{key} = {_toml(value)}" for key, value in top.items()]
    profile += ["", "[model_providers.localrun]"]
    profile += [f"{key} = {_toml(value)}" for key, value in provider.items()]
    return ProgramSettings(
        arguments=tuple(
            part for key, value in flags.items() for part in ("-c", f"{key}={_toml(value)}")
        ),
        snippets=(
            Snippet(
                str(places.home / ".codex" / "localrun.config.toml"), "\n".join(profile) + "\n"
            ),
        ),
        steps=("with that file, `codex --profile localrun` does the same",),
    )


def _toml(value: Any) -> str:
    """A string, number or table of them, as TOML writes it in one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + "}"
    # TOML knows the escapes of JSON, and no unescaped DEL.
    return json.dumps(value).replace("\x7f", "\\u007f")


def _opencode(here: Connection, places: Places) -> ProgramSettings:
    """https://opencode.ai/v1/docs/providers; its second version reads the same
    (https://opencode.ai/docs/migrate-v1). The variable goes before every file."""
    document = {
        "$schema": "https://opencode.ai/config.json",
        "provider": {
            "localrun": {
                "npm": "@ai-sdk/openai-compatible",
                "name": "localrun",
                "options": {
                    "baseURL": here.v1,
                    "apiKey": f"{{env:{KEY_VARIABLE}}}" if here.keyed else here.key,
                    "timeout": PATIENCE_MS,
                },
                "models": {
                    here.model: {
                        "name": here.model,
                        "tool_call": True,
                        "limit": {"context": here.n_ctx, "output": here.max_output},
                    }
                },
            }
        },
        "model": f"localrun/{here.model}",
        "small_model": f"localrun/{here.model}",
    }
    return ProgramSettings(
        env={"OPENCODE_CONFIG_CONTENT": json.dumps(document)},
        snippets=(
            Snippet(
                str(places.config / "opencode" / "opencode.json"),
                json.dumps(document, indent=2) + "\n",
            ),
        ),
    )


def _aider(here: Connection, places: Places) -> ProgramSettings:
    """https://aider.chat/docs/llms/openai-compat.html and
    https://aider.chat/docs/config/adv-model-settings.html for the context."""
    name = f"openai/{here.model}"
    metadata = {
        name: {
            "max_tokens": here.max_output,
            "max_input_tokens": here.n_ctx,
            "max_output_tokens": here.max_output,
            "input_cost_per_token": 0,
            "output_cost_per_token": 0,
            "litellm_provider": "openai",
            "mode": "chat",
        }
    }
    file = places.state / "aider-models.json"
    return ProgramSettings(
        env={
            "OPENAI_API_BASE": here.v1,
            "OPENAI_API_KEY": here.key,
            "AIDER_MODEL": name,
            "AIDER_WEAK_MODEL": name,
            "AIDER_MODEL_METADATA_FILE": str(file),
            "AIDER_TIMEOUT": str(PATIENCE_MS // 1000),
        },
        file=Whole(file, json.dumps(metadata, indent=2) + "\n", ours=True),
    )


def _llama_vim(here: Connection, places: Places) -> ProgramSettings:
    """https://github.com/ggml-org/llama.vim, ``doc/llama.txt``. The plugin reads the variable when
    it is loaded, after ``--cmd``; a vimrc that sets it comes later still."""
    fields = {
        "endpoint_fim": _vim(f"{here.url}/infill"),
        "model_fim": _vim(here.model),
        "endpoint_inst": _vim(f"{here.v1}/chat/completions"),
        "model_inst": _vim(here.model),
    }
    if here.keyed:
        fields["api_key"] = f"${KEY_VARIABLE}"
    pairs = [f"'{key}': {value}" for key, value in fields.items()]
    lines = "\n".join(f"    \\ {pair}," for pair in pairs)
    return ProgramSettings(
        arguments=("--cmd", f"let g:llama_config = {{{', '.join(pairs)}}}"),
        snippets=(
            Snippet("vimrc, before the plugin", f"let g:llama_config = {{\n{lines}\n    \\ }}\n"),
        ),
    )


def _vim(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


TERMINAL = {
    "claude": Agent(
        title="Claude Code",
        settings=_claude,
        programs=("claude",),
        terminal=True,
        wanted_n_ctx=AGENT_N_CTX,
        short="its first prompt alone takes 25,000 to 36,000 tokens",
        install="npm install -g @anthropic-ai/claude-code",
    ),
    "codex": Agent(
        title="Codex",
        settings=_codex,
        programs=("codex",),
        terminal=True,
        wanted_n_ctx=AGENT_N_CTX,
        short="an agent fills it within a few turns",
        install="npm install -g @openai/codex",
    ),
    "opencode": Agent(
        title="opencode",
        settings=_opencode,
        programs=("opencode",),
        terminal=True,
        wanted_n_ctx=AGENT_N_CTX,
        short="an agent fills it within a few turns",
        install="npm install -g opencode-ai",
    ),
    "aider": Agent(
        title="aider",
        settings=_aider,
        programs=("aider",),
        terminal=True,
        install="python -m pip install aider-install && aider-install",
    ),
    "llama.vim": Agent(
        title="llama.vim",
        settings=_llama_vim,
        programs=("nvim", "vim"),
        terminal=True,
        install="install vim or neovim, and the plugin https://github.com/ggml-org/llama.vim",
    ),
}
