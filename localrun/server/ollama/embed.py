"""Knows no model: ``POST /api/embed``, and ``POST /api/embeddings`` that was before it.

https://docs.ollama.com/api/embed
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import BeforeValidator, Field

from localrun.chat.messages import Embedded, Prompt, ServedModel
from localrun.engine import limits
from localrun.server.answering import Answering
from localrun.server.context import asker
from localrun.server.fields import list_of
from localrun.server.ollama.answer import Course
from localrun.server.ollama.fields import Count, ModelBody, Options

MAX_DIMENSIONS = 65536


def texts_of(given: object) -> object:
    """One text or several; an empty one alone asks for the model to be loaded."""
    return [] if given == "" else list_of(given)


class EmbedRequest(ModelBody):
    """``truncate`` cuts a text that is too long at its end; else it is refused."""

    input: Annotated[
        Annotated[list[str], Field(max_length=limits.MAX_TEXTS)],
        BeforeValidator(texts_of, json_schema_input_type=str | list[str]),
    ]
    truncate: bool | None = None
    dimensions: Annotated[Count, Field(ge=1, le=MAX_DIMENSIONS)] | None = None
    options: Options | None = None


class EmbeddingsRequest(ModelBody):
    """The older form: one text, one vector."""

    prompt: str = ""
    options: Options | None = None


def add_routes(app: FastAPI, answering: Answering) -> None:
    @app.post("/api/embed")
    async def embed(body: EmbedRequest, request: Request) -> Response:
        course = Course()

        async def work(model: ServedModel) -> dict[str, Any]:
            course.started(model)
            truncate = body.truncate is not False
            found = await _embedded(model, request, body.input, body.dimensions, truncate)
            return {
                "model": body.model,
                "embeddings": found.vectors,
                **course.durations(),
                "prompt_eval_count": found.tokens,
            }

        return await answering.with_model(request, body.model_id, work, keep_s=body.keep_alive)

    @app.post("/api/embeddings")
    async def embeddings(body: EmbeddingsRequest, request: Request) -> Response:
        async def work(model: ServedModel) -> dict[str, Any]:
            texts = [body.prompt] if body.prompt else []
            found = await _embedded(model, request, texts, None, truncate=True)
            return {"embedding": found.vectors[0] if found.vectors else []}

        return await answering.with_model(request, body.model_id, work, keep_s=body.keep_alive)


async def _embedded(
    model: ServedModel, request: Request, texts: list[str], dimensions: int | None, truncate: bool
) -> Embedded:
    if not texts:
        return Embedded([], 0)
    return await model.embed(
        [Prompt.of(text) for text in texts],
        dimensions=dimensions,
        truncate=truncate,
        context=asker(request),
    )
