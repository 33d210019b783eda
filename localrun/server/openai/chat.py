"""Knows no model: ``POST /v1/chat/completions``.

https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

from functools import partial

from fastapi import FastAPI, Request
from fastapi.responses import Response

from localrun.server.answering import Answering, Asked, conversation
from localrun.server.context import asker
from localrun.server.openai import chat_answer
from localrun.server.openai.chat_asked import form_of, messages_of, options_of
from localrun.server.openai.chat_request import ChatRequest
from localrun.server.turns import converted


def add_routes(app: FastAPI, answering: Answering) -> None:
    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        n = body.n or 1
        said = await converted(len(body.messages), partial(messages_of, body))
        ask = conversation(said, options_of(body, asker(request, body.user)), n)
        asked = Asked(request, body.model, ask, form=form_of(body))
        if not body.stream:
            return await answering.whole(asked, partial(chat_answer.completion, body.model, n=n))
        chunks = partial(chat_answer.chunks, body.model, n=n, include_usage=_with_usage(body))
        return await answering.events(asked, chunks, goodbye=chat_answer.goodbye())


def _with_usage(body: ChatRequest) -> bool:
    return body.stream_options is not None and body.stream_options.include_usage
