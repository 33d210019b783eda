"""Knows no model: ``POST /v1/responses``.

https://platform.openai.com/docs/api-reference/responses
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.responses import Response

from localrun.errors import ContextLengthError
from localrun.server.answering import Answering, Asked, conversation
from localrun.server.context import asker
from localrun.server.errors import Refusal, response
from localrun.server.openai.responses import answer
from localrun.server.openai.responses.asked import (
    client_of,
    form_of,
    messages_of,
    options_of,
    toolbox_of,
)
from localrun.server.openai.responses.request import ResponsesRequest
from localrun.server.openai.responses.tools import Toolbox
from localrun.server.turns import converted

PATH: Final = "/v1/responses"
# A model may load, and a long prompt may wait: clients hear that it goes on before they give up.
BEGIN_WITHIN_S: Final = 10.0


def add_routes(app: FastAPI, answering: Answering) -> None:
    @app.post(PATH)
    async def responses(body: ResponsesRequest, request: Request) -> Response:
        if body.previous_response_id is not None:
            return response(PATH, _not_kept(body.previous_response_id))
        turns = len(body.input)
        tools = await converted(turns, partial(toolbox_of, body))
        options = options_of(body, tools, asker(request, client_of(body)))
        ask = conversation(await converted(turns, partial(messages_of, body, tools)), options)
        asked = Asked(request, body.model, ask, form=form_of(body))
        try:
            return await _answered(answering, asked, _answer(body, tools), stream=body.stream)
        except ContextLengthError as error:
            # An engine knows a prompt, and not by which field it was sent.
            error.field = error.field or "input"
            raise


async def _answered(
    answering: Answering, asked: Asked, told: answer.Answer, *, stream: bool | None
) -> Response:
    if not stream:
        return await answering.whole(asked, partial(answer.whole, told))
    chunks = partial(answer.chunks, told)
    return await answering.streamed(asked, chunks, goodbye=told.goodbye(), within_s=BEGIN_WITHIN_S)


def _not_kept(id_: str) -> Refusal:
    """As OpenAI says it of one that is gone: clients then send the whole conversation."""
    message = (
        f"Previous response with id {id_[:80]!r} not found: this server keeps none "
        "(send the whole conversation as input)"
    )
    code = "previous_response_not_found"
    return Refusal(400, message, code=code, param="previous_response_id")


def _answer(body: ResponsesRequest, tools: Toolbox) -> answer.Answer:
    summary = None if body.reasoning is None else body.reasoning.summary
    return answer.Answer(
        body.model,
        echoed=_echoed(body),
        tools=tools,
        summary=summary not in (None, "none"),
        seal=body.includes("reasoning.encrypted_content"),
    )


def _echoed(body: ResponsesRequest) -> dict[str, Any]:
    """What a response says again of its request."""
    choice = body.tool_choice
    told = "auto" if choice is None else choice.model_dump(exclude_unset=True)
    if isinstance(told, dict) and set(told) == {"type"} and told["type"] in _MODES:
        told = told["type"]
    return {
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": _dumped(body.reasoning) or {"effort": None, "summary": None},
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "temperature": body.temperature,
        "text": {"format": {"type": "text"}} | _dumped(body.text),
        "tool_choice": told,
        "tools": [tool.model_dump(exclude_unset=True) for tool in body.tools or ()],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": body.top_p,
        "user": body.user,
    }


_MODES: Final = ("auto", "none", "required")


def _dumped(value: Any) -> dict[str, Any]:
    dumped: dict[str, Any] = (
        {} if value is None else value.model_dump(exclude_none=True, by_alias=True)
    )
    return dumped
