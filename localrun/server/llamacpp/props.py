"""Knows no wire but its own: ``GET /props`` and ``GET /slots``, which load no model.

https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md
"""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import FastAPI, Query

from localrun import __version__
from localrun.engine.request import SamplingParams
from localrun.server.answering import Answering
from localrun.server.llamacpp.completion_answer import sampling_settings
from localrun.server.llamacpp.meant import shown
from localrun.server.models import LoadedModel, ModelFacts, ModelProvider


def add_routes(app: FastAPI, answering: Answering) -> None:
    models = answering.models

    @app.get("/props")
    async def props(model: str = Query(default="", max_length=4096)) -> dict[str, Any]:
        name = await shown(models, model)
        facts = await asyncio.to_thread(models.facts, name)
        # By its own name: a model may have others.
        loaded = _loaded(models, facts.id)
        if loaded is None:
            return _props(facts, None, "", "")
        # It is loaded, and no other task runs before it is leased: nothing is loaded for this.
        async with models.lease(loaded.id) as served:
            return _props(facts, loaded, served.info.bos, served.info.eos)

    @app.get("/slots")
    async def slots() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for model in models.loaded():
            # One that is free where nobody asks.
            for at in range(max(model.requests, 1)):
                found.append(
                    {
                        "id": len(found),
                        "id_task": -1,
                        "model": model.id,
                        "n_ctx": model.n_ctx,
                        "is_processing": at < model.requests,
                    }
                )
        return found


def _loaded(models: ModelProvider, name: str) -> LoadedModel | None:
    return next((model for model in models.loaded() if model.id == name), None)


def _props(facts: ModelFacts, loaded: LoadedModel | None, bos: str, eos: str) -> dict[str, Any]:
    """``model_path`` is the model's name: paths of this disk are nobody's business. Of a model that
    is not loaded ``n_ctx`` is the longest that it was made for, and its tokens are not known."""
    tools = "tools" in facts.capabilities
    n_ctx = facts.n_ctx_train if loaded is None else loaded.n_ctx
    return {
        "default_generation_settings": {
            "n_ctx": n_ctx,
            "params": {
                **sampling_settings(SamplingParams()),
                "seed": -1,
                "n_predict": -1,
                "max_tokens": -1,
                "stop": [],
                "stream": False,
            },
        },
        "total_slots": 1 if loaded is None else max(loaded.requests, 1),
        "model_alias": facts.id,
        "model_path": facts.id,
        "model_ftype": facts.quantization,
        "modalities": {"vision": "vision" in facts.capabilities, "audio": False, "video": False},
        "endpoint_slots": True,
        "endpoint_props": False,
        "endpoint_metrics": True,
        "chat_template": facts.chat_template or "",
        "chat_template_caps": {"supports_tools": tools, "supports_tool_calls": tools},
        "bos_token": bos,
        "eos_token": eos,
        "build_info": f"localrun {__version__}",
        "is_sleeping": loaded is None,
    }
