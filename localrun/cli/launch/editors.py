"""Knows no process: editors, which keep their settings in files or behind their own screens."""

from __future__ import annotations

import json

from localrun.cli.launch.description import (
    KEY_VARIABLE,
    Agent,
    Connection,
    Merged,
    Places,
    ProgramSettings,
    Snippet,
    Whole,
)
from localrun.cli.launch.jsonc import Among


def _continue(here: Connection, places: Places) -> ProgramSettings:
    """https://docs.continue.dev/reference. A file of ``~/.continue/models`` is a block that joins
    every configuration (continuedev/continue, ``core/config/yaml/loadYaml.ts``), so that
    ``config.yaml`` stays as it is. JSON's strings are YAML's."""
    key = f"${{{{ secrets.{KEY_VARIABLE} }}}}"
    lines = [
        "name: localrun",
        "version: 0.0.1",
        "schema: v1",
        "models:",
        f"  - name: {json.dumps(f'localrun: {here.model}')}",
        "    provider: openai",
        f"    model: {json.dumps(here.model)}",
        f"    apiBase: {json.dumps(here.v1)}",
        *([f"    apiKey: {json.dumps(key)}"] if here.keyed else []),
        "    roles: [chat, edit, apply]",
        "    capabilities: [tool_use]",
        "    defaultCompletionOptions:",
        f"      contextLength: {here.n_ctx}",
        f"      maxTokens: {here.max_output}",
    ]
    steps = [f"choose `localrun: {here.model}` in Continue's list of models"]
    if here.keyed:
        steps.append(f"put {KEY_VARIABLE}=… into {places.home / '.continue' / '.env'}")
    return ProgramSettings(
        file=Whole(places.home / ".continue" / "models" / "localrun.yaml", "\n".join(lines) + "\n"),
        steps=tuple(steps),
    )


def _zed(here: Connection, places: Places) -> ProgramSettings:
    """https://zed.dev/docs/ai/use-api-access, OpenAI-compatible: models are listed by hand, and the
    key is in a variable that is called after the provider."""
    wanted = {
        "language_models": {
            "openai_compatible": {
                "localrun": {
                    "api_url": here.v1,
                    "available_models": Among(
                        {"name": here.model},
                        {
                            "display_name": f"{here.model} (localrun)",
                            "max_tokens": here.n_ctx,
                            "max_output_tokens": here.max_output,
                            "capabilities": {
                                "tools": True,
                                "images": False,
                                "parallel_tool_calls": True,
                                "prompt_cache_key": False,
                            },
                        },
                    ),
                }
            }
        }
    }
    return ProgramSettings(
        # Zed offers no model of a provider without a key.
        env={KEY_VARIABLE: here.key},
        file=Merged(places.config / "zed" / "settings.json", wanted),
        steps=(
            f"choose {here.model} in the agent panel; a Zed that was not started from here needs "
            f"{KEY_VARIABLE} in its environment, with any text where the server asks for no key",
        ),
    )


def _vscode(here: Connection, places: Places) -> ProgramSettings:
    """https://code.visualstudio.com/docs/copilot/customization/language-models, Custom Endpoint.
    VS Code keeps keys itself and puts a reference in this file."""
    wanted = Among(
        {"vendor": "customendpoint", "name": "localrun"},
        {
            "apiType": "chat-completions",
            "models": Among(
                {"id": here.model},
                {
                    "name": here.model,
                    "url": f"{here.v1}/chat/completions",
                    "toolCalling": True,
                    "vision": False,
                    "maxInputTokens": here.n_ctx - here.max_output,
                    "maxOutputTokens": here.max_output,
                },
            ),
        },
    )
    steps = [
        f"choose {here.model} in the Chat view's list of models (`Chat: Manage Language Models` "
        "shows it); inline suggestions cannot be local",
        f'for those, the extension llama.vscode takes "llama-vscode.endpoint": "{here.url}"',
    ]
    if here.keyed:
        steps.append("`Chat: Manage Language Models`, localrun, Update API Key: enter the key")
    config = places.home / "Library" / "Application Support" if places.mac else places.config
    return ProgramSettings(
        file=Merged(config / "Code" / "User" / "chatLanguageModels.json", wanted),
        steps=tuple(steps),
    )


def _minuet(here: Connection, places: Places) -> ProgramSettings:
    """https://github.com/milanglacier/minuet-ai.nvim, openai_fim_compatible: the text behind the
    cursor in a field of its own, or the model's tokens written into the prompt."""
    where = "Neovim's init.lua"
    return ProgramSettings(
        snippets=(
            Snippet(f"{where}: any model with fill-in-the-middle tokens", _lua(here, "")),
            Snippet(f"{where}: the tokens in the prompt, here Qwen2.5-Coder's", _lua(here, _RAW)),
        ),
        steps=("take one of the two: with the first, localrun places the model's own tokens",),
    )


_RAW = """
            template = {
                prompt = function(before, after, _)
                    return '<|fim_prefix|>' .. before .. '<|fim_suffix|>' .. after
                        .. '<|fim_middle|>'
                end,
                suffix = false,
            },"""


def _lua(here: Connection, template: str) -> str:
    # Named, never given: minuet takes the name of a variable, which must not be empty.
    key = KEY_VARIABLE if here.keyed else "TERM"
    return f"""require('minuet').setup {{
    provider = 'openai_fim_compatible',
    n_completions = 1,
    context_window = 4096,
    request_timeout = 10,
    provider_options = {{
        openai_fim_compatible = {{
            api_key = '{key}',
            name = 'localrun',
            end_point = {json.dumps(f"{here.v1}/completions")},
            model = {json.dumps(here.model, ensure_ascii=False)},
            stream = true,
            optional = {{ max_tokens = 56, top_p = 0.9 }},{template}
        }},
    }},
}}
"""


def _jetbrains(here: Connection, places: Places) -> ProgramSettings:
    """https://www.jetbrains.com/help/ai-assistant/use-custom-models.html"""
    return ProgramSettings(
        steps=(
            "open Settings | Tools | AI Assistant | Providers & API keys",
            "Third-party AI providers: choose OpenAI-compatible",
            f"URL: {here.v1}",
            f"API key: that of the server, in {KEY_VARIABLE}" if here.keyed else "API key: none",
            "switch tool calling on, press Test Connection, then Apply",
            f"under Models Assignment, choose {here.model}; code completion needs a model with "
            "fill-in-the-middle tokens",
        )
    )


def _cursor(here: Connection, places: Places) -> ProgramSettings:
    """https://docs.cursor.com/settings/api-keys"""
    return ProgramSettings(
        steps=(
            f"Cursor cannot reach {here.url}: its own servers send the requests, not the editor",
            "it takes a tunnel with a public HTTPS address that ends at this port, and whoever "
            f"knows that address can ask: serve with an API key ({KEY_VARIABLE}) and with "
            "`--allowed-host` for the tunnel's name",
            "then: Cursor Settings | Models | Override OpenAI Base URL: https://YOUR-TUNNEL/v1, "
            f"OpenAI API Key: the server's, and a custom model named {here.model}",
            "code and prompts pass through Cursor's servers all the same, and Tab never uses it",
            "`localrun launch zed` and `localrun launch vscode` stay on this machine",
        )
    )


EDITORS = {
    "continue": Agent(title="Continue", settings=_continue),
    "zed": Agent(title="Zed", settings=_zed, programs=("zed", "zeditor")),
    "vscode": Agent(title="VS Code", settings=_vscode, programs=("code",)),
    "minuet": Agent(title="minuet", settings=_minuet),
    "jetbrains": Agent(title="JetBrains AI Assistant", settings=_jetbrains),
    "cursor": Agent(title="Cursor", settings=_cursor),
}
