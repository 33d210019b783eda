"""Knows no wire: what ``/api/chat`` and ``/api/generate`` do alike with a request and a model."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from localrun.chat.messages import ReplyEvent, ServedModel
from localrun.chat.reasoning import thinks
from localrun.errors import RequestError
from localrun.server.answering import Answering, Asked
from localrun.server.ollama import answer
from localrun.server.ollama.answer import Answer
from localrun.server.ollama.fields import GeneratingBody, ModelBody

LINES: Final = "application/x-ndjson"
# Ollama has no field for it: how long the context is, where less was planned than is asked for.
CONTEXT_HEADER: Final = "localrun-context-length"

Ask = Callable[[ServedModel], AsyncGenerator[ReplyEvent]]


@dataclass(frozen=True, slots=True)
class Wanted:
    """One request for an answer."""

    request: Request
    body: GeneratingBody
    answer: Answer
    ask: Ask

    def asked(self, form: str) -> Asked:
        body = self.body

        def ask(model: ServedModel) -> AsyncGenerator[ReplyEvent]:
            self.answer.course.started(model)
            if body.think and not thinks(model.info.chat_template):
                raise RequestError(
                    f"think: {body.model} does not support thinking",
                    hint="leave think out, or choose a model that reasons",
                    field="think",
                )
            return self.ask(model)

        return Asked(self.request, body.model_id, ask, form=form, keep_s=body.keep_alive)


async def generated(answering: Answering, wanted: Wanted, *, form: str) -> Response:
    """The answer, as a stream unless it was asked for whole.

    Nothing is ever cut to fit: a ``num_ctx`` beyond the context that was planned is told of in a
    header, and a prompt that does not fit is refused with both numbers.
    """
    asked = wanted.asked(form)
    if wanted.body.streams:
        response = await answering.streamed(
            asked, wanted.answer.lines, goodbye=answer.goodbye(), media_type=LINES
        )
    else:
        response = await answering.whole(asked, wanted.answer.whole)
    options, model = wanted.body.options, wanted.answer.course.model
    if options and options.num_ctx and model is not None and options.num_ctx > model.n_ctx:
        response.headers[CONTEXT_HEADER] = str(model.n_ctx)
    return response


async def kept(answering: Answering, request: Request, body: ModelBody, told: Answer) -> Response:
    """A request with nothing to answer: the model is loaded, or unloaded by ``keep_alive`` 0."""
    name = body.model_id
    if body.keep_alive != 0:

        async def ready(model: ServedModel) -> dict[str, Any]:
            return told.ended("load")

        return await answering.with_model(request, name, ready, keep_s=body.keep_alive)
    models = answering.models
    if not await models.unload(name) and any(each.id == name for each in models.loaded()):
        # Others use it: it goes with the last of them.
        async with models.lease(name, keep_s=0):
            pass
    return JSONResponse(told.ended("unload"))
