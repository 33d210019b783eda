"""Knows no model: ``POST /v1/embeddings``.

https://platform.openai.com/docs/api-reference/embeddings
"""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import Sequence
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import Field, field_validator

from localrun.chat.messages import Prompt, ServedModel
from localrun.engine.limits import MAX_TEXTS
from localrun.errors import RequestError
from localrun.server.answering import AT_A_TIME, Answering
from localrun.server.context import asker
from localrun.server.fields import MAX_NAME_CHARS, MAX_TOKENS, Body, refuse
from localrun.server.openai.completions_request import Texts


class EmbeddingsRequest(Body):
    """The body of ``POST /v1/embeddings``."""

    model: str = Field(min_length=1, max_length=4096)
    input: Texts
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    user: str | None = Field(default=None, max_length=MAX_NAME_CHARS)

    @field_validator("input")
    @classmethod
    def _few_enough(cls, value: tuple[Prompt, ...]) -> tuple[Prompt, ...]:
        if len(value) > MAX_TEXTS:
            raise refuse(f"{len(value)} texts, at most {MAX_TEXTS} are allowed")
        return value


def add_routes(app: FastAPI, answering: Answering) -> None:
    @app.post("/v1/embeddings")
    async def embeddings(body: EmbeddingsRequest, request: Request) -> Response:
        context = asker(request, body.user)

        async def work(model: ServedModel) -> dict[str, Any]:
            try:
                embedded = await model.embed(
                    body.input, dimensions=body.dimensions, context=context
                )
            except RequestError as error:
                error.field = error.field or "input"
                raise
            return await _document(body, embedded.vectors, embedded.tokens)

        return await answering.with_model(request, body.model, work)


async def _document(
    body: EmbeddingsRequest, vectors: Sequence[Sequence[float]], tokens: int
) -> dict[str, Any]:
    packed = body.encoding_format == "base64"
    data: list[dict[str, Any]] = []
    for index, vector in enumerate(vectors):
        if index % AT_A_TIME == 0:
            await asyncio.sleep(0)
        told = _packed(vector) if packed else vector
        data.append({"object": "embedding", "index": index, "embedding": told})
    return {
        "object": "list",
        "data": data,
        "model": body.model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _packed(vector: Sequence[float]) -> str:
    """Single precision, least byte first, in base64: what OpenAI's client asks for."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
