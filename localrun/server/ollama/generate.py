"""Knows no model: ``POST /api/generate``: an answer to a prompt, a text between two others, or
what follows a raw prompt.

https://docs.ollama.com/api/generate
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import FastAPI, Request
from fastapi.responses import Response

from localrun.chat.messages import (
    Gap,
    Message,
    Prompt,
    ReplyEvent,
    ReplyOptions,
    RequestContext,
    ServedModel,
)
from localrun.server.answering import Answering
from localrun.server.context import asker
from localrun.server.ollama.answer import Answer, Course, Remembered, generate_part
from localrun.server.ollama.chat_asked import FORM, grammar_of
from localrun.server.ollama.fields import Options
from localrun.server.ollama.generate_request import GenerateRequest
from localrun.server.ollama.generating import Ask, Wanted, generated, kept
from localrun.server.sampling import sampling_of


def add_routes(app: FastAPI, answering: Answering) -> None:
    @app.post("/api/generate")
    async def generate(body: GenerateRequest, request: Request) -> Response:
        course = Course()
        options = options_of(body, asker(request))
        if not body.prompt and not body.suffix:
            loading = Answer(body.model, generate_part, course)
            return await kept(answering, request, body, loading)
        answer = Answer(body.model, generate_part, course, _remembered(body, options, course))
        wanted = Wanted(request, body, answer, _ask(body, options))
        return await generated(answering, wanted, form=FORM)


def options_of(body: GenerateRequest, context: RequestContext) -> ReplyOptions:
    options = body.options or Options()
    return ReplyOptions(
        sampling=sampling_of(options, logprobs=body.alternatives),
        max_tokens=options.max_tokens,
        stop=tuple(options.stop or ()),
        variables=body.variables,
        grammar=grammar_of(body.format),
        context=context,
    )


def _ask(body: GenerateRequest, options: ReplyOptions) -> Ask:
    prompt, suffix = body.prompt or "", body.suffix
    if suffix:
        return lambda model: model.infill([Gap(prompt, suffix)], options)
    if body.raw:
        return lambda model: model.completions([Prompt.of(prompt)], options)
    if body.context:
        return lambda model: _continued(model, body, options)
    return lambda model: model.reply(_turn(body), options)


def _turn(body: GenerateRequest) -> list[Message]:
    system = [Message("system", body.system)] if body.system else []
    return [*system, Message("user", body.prompt or "")]


async def _continued(
    model: ServedModel, body: GenerateRequest, options: ReplyOptions
) -> AsyncGenerator[ReplyEvent]:
    """What follows the tokens of an earlier answer and one more turn."""
    tokens = [*(body.context or ()), *await _turn_tokens(model, body, options)]
    prompt = Prompt(tuple(tokens), special=False)
    async with aclosing(model.completions([prompt], options)) as events:
        async for event in events:
            yield event


async def _turn_tokens(
    model: ServedModel, body: GenerateRequest, options: ReplyOptions
) -> list[int]:
    """The turn of this request as tokens, behind those of ``context`` without another beginning."""
    _, tokens = await model.prompt(_turn(body), options)
    begins = bool(tokens) and tokens[0] == model.info.bos_id
    return tokens[1:] if body.context and begins else tokens


def _remembered(body: GenerateRequest, options: ReplyOptions, course: Course) -> Remembered | None:
    """How the tokens are told that may be gone on from; of raw prompts Ollama tells none."""
    if body.raw or body.suffix:
        return None

    async def remembered(text: str) -> list[int]:
        model = course.model
        assert model is not None
        turn = await _turn_tokens(model, body, options)
        said = await model.tokenize(text, add_special=False, parse_special=False)
        return [*(body.context or ()), *turn, *said]

    return remembered
