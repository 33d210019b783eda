"""Knows no model: ``POST /v1/messages`` and ``/v1/messages/count_tokens``.

https://docs.claude.com/en/api/messages, https://docs.claude.com/en/api/messages-count-tokens
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.responses import Response

from localrun.chat.messages import ServedModel
from localrun.server.answering import Answering, Asked, conversation
from localrun.server.anthropic import messages_answer, messages_stream
from localrun.server.anthropic.counted import counted
from localrun.server.anthropic.messages_asked import (
    form_of,
    messages_of,
    options_of,
    prompting_of,
    warn_of_tools,
)
from localrun.server.anthropic.messages_request import Conversation, MessagesRequest
from localrun.server.context import asker
from localrun.server.turns import converted

# Claude Code's fetch gives up on an answer without a first byte after five minutes; what is refused
# at all is refused sooner than this. https://github.com/tale-project/tale/pull/3396
BEGIN_S: Final = 10.0


def add_routes(app: FastAPI, answering: Answering) -> None:
    @app.post("/v1/messages")
    async def messages(body: MessagesRequest, request: Request) -> Response:
        user = None if body.metadata is None else body.metadata.user_id
        said = await converted(len(body.messages), partial(messages_of, body))
        options = options_of(body, asker(request, user))
        warn_of_tools(body)
        answer = messages_answer.Answer(body.model, options.stop, options.max_tokens)
        if body.stream:
            asked = Asked(request, body.model, counted(said, options), form=form_of(body))
            chunks = partial(messages_stream.chunks, answer)
            goodbye = messages_stream.goodbye()
            return await answering.streamed(asked, chunks, goodbye=goodbye, within_s=BEGIN_S)
        asked = Asked(request, body.model, conversation(said, options), form=form_of(body))
        return await answering.whole(asked, partial(messages_answer.message, answer))

    @app.post("/v1/messages/count_tokens")
    async def count_tokens(body: Conversation, request: Request) -> Response:
        said = await converted(len(body.messages), partial(messages_of, body))
        options = prompting_of(body)

        async def count(model: ServedModel) -> dict[str, Any]:
            _, tokens = await model.prompt(said, options)
            return {"input_tokens": len(tokens)}

        return await answering.with_model(request, body.model, count)
