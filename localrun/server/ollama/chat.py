"""Knows no model: ``POST /api/chat``.

https://docs.ollama.com/api/chat
"""

from __future__ import annotations

from functools import partial

from fastapi import FastAPI, Request
from fastapi.responses import Response

from localrun.server.answering import Answering, conversation
from localrun.server.context import asker
from localrun.server.ollama.answer import Answer, Course, chat_part
from localrun.server.ollama.chat_asked import FORM, messages_of, options_of
from localrun.server.ollama.chat_request import ChatRequest
from localrun.server.ollama.generating import Wanted, generated, kept
from localrun.server.turns import converted


def add_routes(app: FastAPI, answering: Answering) -> None:
    @app.post("/api/chat")
    async def chat(body: ChatRequest, request: Request) -> Response:
        answer = Answer(body.model, chat_part, Course())
        if not body.messages:
            return await kept(answering, request, body, answer)
        options = options_of(body, asker(request))
        said = await converted(len(body.messages), partial(messages_of, body.messages))
        ask = conversation(said, options)
        form = "tools" if body.format is None else FORM
        return await generated(answering, Wanted(request, body, answer, ask), form=form)
