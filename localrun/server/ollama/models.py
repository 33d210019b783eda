"""Knows no disk: which models there are, and what is known of each, as Ollama's clients read it.

https://docs.ollama.com/api/tags, https://docs.ollama.com/api-reference/show-model-details
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse, Response
from pydantic import Field, ValidationInfo, field_validator

from localrun.errors import LocalrunError
from localrun.server.answering import Answering
from localrun.server.errors import Refusal, response
from localrun.server.fields import Body, refuse
from localrun.server.models import Capability, LoadedModel, ModelCard, ModelFacts, ModelProvider
from localrun.server.ollama.answer import stamped
from localrun.server.ollama.names import plain, tagged

# The Ollama whose API this is, not our own version: clients compare it to what they need, and take
# nothing but numbers. 0.14.0 is the first that answers Anthropic's clients beside its own (VS Code
# asks for 0.6.4, ids of tool calls came with 0.12.10, Codex wants /v1/responses of 0.13.4).
VERSION: Final = "0.14.0"
# Clients look for these words, some of them for no others.
RUNNING: Final = "Ollama is running"
_NEVER: Final = "9999-12-31T23:59:59Z"
_ORDER: Final[tuple[Capability, ...]] = (
    "completion",
    "tools",
    "insert",
    "embedding",
    "thinking",
    "vision",
)
# Continue looks for `.Suffix` in the template to know whether a model fills gaps. As a comment of
# the language that Ollama's own templates are in it says so; ours follow in Jinja.
_FILLS: Final = "{{- /* .Prompt and .Suffix: filled in by tokens of the model's own */ -}}\n"
_ELSEWHERE: Final = {
    "/api/copy": "`localrun import` gives a model another name",
    "/api/create": "`localrun quantize` and `localrun import` make models",
    "/api/delete": "`localrun rm` removes models",
    "/api/push": "localrun publishes nothing",
}


class ShowRequest(Body):
    """``name`` is what ``model`` was called before."""

    name: str | None = Field(default=None, max_length=4096)
    model: str | None = Field(default=None, max_length=4096, validate_default=True)
    verbose: bool | None = None

    @field_validator("model")
    @classmethod
    def _named(cls, value: str | None, info: ValidationInfo) -> str | None:
        if not value and not info.data.get("name"):
            raise refuse("missing: which model is meant")
        return value

    @property
    def model_id(self) -> str:
        return plain(self.model or self.name or "")


def add_routes(app: FastAPI, answering: Answering) -> None:
    models = answering.models

    @app.head("/", include_in_schema=False)
    @app.get("/", response_class=PlainTextResponse)
    async def running() -> PlainTextResponse:
        return PlainTextResponse(RUNNING)

    @app.head("/api/version", include_in_schema=False)
    @app.get("/api/version")
    async def version() -> dict[str, str]:
        return {"version": VERSION}

    @app.head("/api/tags", include_in_schema=False)
    @app.get("/api/tags")
    async def tags() -> dict[str, Any]:
        return {"models": await asyncio.to_thread(_tags, models)}

    @app.post("/api/show")
    async def show(body: ShowRequest) -> dict[str, Any]:
        facts = await asyncio.to_thread(models.facts, body.model_id)
        loaded = {model.id: model for model in models.loaded()}
        return shown(facts, loaded.get(facts.id))

    @app.get("/api/ps")
    async def ps() -> dict[str, Any]:
        loaded = models.loaded()
        now = datetime.now(UTC)
        return {"models": await asyncio.to_thread(_ps, models, loaded, now)}

    for path in _ELSEWHERE:
        _add_refusal(app, path)


def _add_refusal(app: FastAPI, path: str) -> None:
    """The port answers and fetches: nobody who reaches it can change or remove what is here."""
    refusal = Refusal(403, f"{path} is not served through the port: {_ELSEWHERE[path]}")

    @app.api_route(path, methods=["POST", "DELETE"], include_in_schema=False)
    async def refused() -> Response:
        return response(path, refusal)


def _tags(models: ModelProvider) -> list[dict[str, Any]]:
    return [_tag(card, _facts(models, card.id)) for card in models.names()]


def _facts(models: ModelProvider, name: str) -> ModelFacts | None:
    """None where its header says nothing: one damaged model must not hide the others."""
    try:
        return models.facts(name)
    except LocalrunError:
        return None


def _tag(card: ModelCard, facts: ModelFacts | None) -> dict[str, Any]:
    changed = datetime.fromtimestamp(card.created, UTC)
    size = card.bytes or (facts.bytes if facts else 0)
    return _head(card.id, facts) | {"modified_at": stamped(changed), "size": size}


def _ps(
    models: ModelProvider, loaded: Sequence[LoadedModel], now: datetime
) -> list[dict[str, Any]]:
    told = []
    for model in loaded:
        until = _NEVER
        if model.left_s is not None:
            until = stamped(now + timedelta(seconds=model.left_s))
        told.append(
            _head(model.id, _facts(models, model.id))
            | {
                "size": sum(model.held.values()),
                "size_vram": _on_cards(model.held),
                "expires_at": until,
                "context_length": model.n_ctx,
            }
        )
    return told


def _on_cards(held: Mapping[str, int]) -> int:
    """A Mac's one memory is its card's."""
    return sum(size for tier, size in held.items() if tier.startswith("vram") or tier == "unified")


def _head(name: str, facts: ModelFacts | None) -> dict[str, Any]:
    shown_as = tagged(name)
    return {
        "name": shown_as,
        "model": shown_as,
        # Clients cut twelve characters off it, so it is never empty.
        "digest": (facts.sha256 if facts else "") or hashlib.sha256(name.encode()).hexdigest(),
        "details": details(facts),
    }


def details(facts: ModelFacts | None) -> dict[str, Any]:
    family = facts.architecture if facts else ""
    return {
        "parent_model": "",
        "format": facts.format if facts else "",
        "family": family,
        "families": [family] if family else [],
        "parameter_size": size_of(facts.parameters) if facts else "",
        "quantization_level": facts.quantization if facts else "",
    }


def size_of(parameters: int) -> str:
    """``135M``, ``7.6B``."""
    if parameters >= 999_500_000:
        billions = f"{parameters / 1e9:.1f}".removesuffix(".0")
        return f"{billions}B"
    return f"{parameters / 1e6:.0f}M" if parameters >= 1_000_000 else f"{parameters / 1e3:.0f}K"


def shown(facts: ModelFacts, loaded: LoadedModel | None) -> dict[str, Any]:
    """Of a model that is loaded, the context is the one that it has: clients size prompts by it."""
    # VS Code shows the base name to whoever chooses: names that makers give are no help there.
    info: dict[str, Any] = {"general.basename": facts.id} | facts.fields
    parameters = ""
    if loaded is not None:
        length = f"{facts.architecture}.context_length"
        info[length] = min(loaded.n_ctx, facts.n_ctx_train or loaded.n_ctx)
        parameters = f"num_ctx {loaded.n_ctx}"
    fills = _FILLS if "insert" in facts.capabilities else ""
    return {
        "license": facts.licence,
        "modelfile": f"FROM {facts.id}\n",
        "parameters": parameters,
        "template": fills + (facts.chat_template or ""),
        "details": details(facts),
        "model_info": info,
        "capabilities": [each for each in _ORDER if each in facts.capabilities],
    }
