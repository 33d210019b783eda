"""Knows no model: ``POST /v1/completions``.

https://platform.openai.com/docs/api-reference/completions
"""

from __future__ import annotations

from functools import partial

from fastapi import FastAPI, Request
from fastapi.responses import Response

from localrun.server.answering import Answering, Asked
from localrun.server.context import asker
from localrun.server.openai import chat_answer, completions_answer
from localrun.server.openai.completions_asked import ask_of, form_of
from localrun.server.openai.completions_request import CompletionRequest


def add_routes(app: FastAPI, answering: Answering) -> None:
    @app.post("/v1/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        n = body.n or 1
        ask = ask_of(body, asker(request, body.user))
        asked = Asked(request, body.model, ask, form=form_of(body))
        answer = completions_answer.Wanted(body.model, len(body.prompt), n)
        if not body.stream:
            return await answering.whole(asked, partial(completions_answer.completion, answer))
        options = body.stream_options
        include_usage = options is not None and options.include_usage
        chunks = partial(completions_answer.chunks, answer, include_usage=include_usage)
        return await answering.events(asked, chunks, goodbye=chat_answer.goodbye())
