"""Knows no disk: ``GET /v1/models``, as clients of OpenAI, Anthropic and llama.cpp read it.

https://platform.openai.com/docs/api-reference/models, https://docs.claude.com/en/api/models-list
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

from fastapi import FastAPI

from localrun.errors import ModelNotFoundError
from localrun.server.answering import Answering
from localrun.server.models import LoadedModel, ModelCard


def add_routes(app: FastAPI, answering: Answering) -> None:
    models = answering.models

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        cards = await asyncio.to_thread(models.names)
        loaded = {model.id: model for model in models.loaded()}
        data = [_body(card, loaded.get(card.id)) for card in cards]
        ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {}
        return {"object": "list", "data": data, "has_more": False, **ends}

    @app.get("/v1/models/{name:path}")
    async def show_model(name: str) -> dict[str, Any]:
        loaded = {model.id: model for model in models.loaded()}
        for card in await asyncio.to_thread(models.names):
            if card.id == name:
                return _body(card, loaded.get(name))
        raise ModelNotFoundError(f"no model {name[:80]!r} is served here", hint="GET /v1/models")


def _body(card: ModelCard, loaded: LoadedModel | None) -> dict[str, Any]:
    created = datetime.fromtimestamp(card.created, UTC).isoformat().replace("+00:00", "Z")
    body: dict[str, Any] = {
        "object": "model",
        "id": card.id,
        "created": card.created,
        "owned_by": "localrun",
        # Anthropic's.
        "type": "model",
        "display_name": card.id,
        "created_at": created,
    }
    if loaded is not None:
        # llama.cpp's: clients size their prompts by it.
        body["meta"] = {"n_ctx": loaded.n_ctx}
        body["context_length"] = loaded.n_ctx
    return body
