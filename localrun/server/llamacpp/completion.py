"""Knows no model: ``POST /completion`` and ``POST /infill``.

https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import Response

from localrun.server.answering import Answering, Ask, Asked
from localrun.server.context import asker
from localrun.server.llamacpp import completion_answer
from localrun.server.llamacpp.completion_asked import (
    Told,
    completion_of,
    form_of,
    infill_of,
    told_of,
)
from localrun.server.llamacpp.completion_request import (
    CompletionRequest,
    InfillRequest,
    LlamaFields,
)
from localrun.server.llamacpp.meant import meant

Body = TypeVar("Body", bound=LlamaFields)


def add_routes(app: FastAPI, answering: Answering) -> None:
    @app.post("/completions")
    @app.post("/completion")
    async def completion(body: CompletionRequest, request: Request) -> Response:
        name = await meant(answering.models, body.model)
        return await _answered(answering, request, name, body, completion_of)

    @app.post("/infill")
    async def infill(body: InfillRequest, request: Request) -> Response:
        name = await meant(answering.models, body.model, fills=True)
        return await _answered(answering, request, name, body, infill_of)


async def _answered(
    answering: Answering,
    request: Request,
    name: str,
    body: Body,
    ask_of: Callable[[Body, Told], Ask],
) -> Response:
    told = told_of(body, asker(request))
    asked = Asked(request, name, ask_of(body, told), form=form_of(body))
    answer = completion_answer.Answer(name, body, told)
    if not body.stream:
        return await answering.whole(asked, partial(completion_answer.completion, answer))
    chunks = partial(completion_answer.chunks, answer)
    return await answering.events(asked, chunks, goodbye=completion_answer.goodbye())
