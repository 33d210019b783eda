"""Knows no engine: ``POST /tokenize``, ``/detokenize`` and ``/apply-template``.

https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import Field, PlainValidator

from localrun.chat.messages import ServedModel
from localrun.errors import ContextLengthError
from localrun.server.answering import Answering
from localrun.server.context import asker
from localrun.server.fields import Body, refuse
from localrun.server.llamacpp.completion_request import Mixed, parts_of
from localrun.server.llamacpp.meant import meant
from localrun.server.openai.chat_asked import messages_of, options_of
from localrun.server.openai.chat_request import ChatRequest
from localrun.server.prompts import TokenId
from localrun.server.turns import converted

# Far beyond any context; the list of a text's tokens is longer than the text.
MAX_CHARS = 1 << 20


def _parts(value: object) -> tuple[str | int, ...]:
    parts = parts_of(value)
    if parts is None:
        raise refuse("neither a string nor a list of strings and token ids")
    if sum(len(part) for part in parts if isinstance(part, str)) > MAX_CHARS:
        raise refuse(f"longer than {MAX_CHARS} characters")
    return parts


class TokenizeRequest(Body):
    """``with_pieces`` tells the text of each token beside its id, or its bytes where they are no
    text alone."""

    model: str = Field(default="", max_length=4096)
    content: Annotated[
        tuple[str | int, ...], PlainValidator(_parts, json_schema_input_type=Mixed)
    ] = ()
    add_special: bool = False
    parse_special: bool = True
    with_pieces: bool = False


class DetokenizeRequest(Body):
    model: str = Field(default="", max_length=4096)
    tokens: list[TokenId] = Field(default_factory=list)


class TemplateRequest(ChatRequest):
    """A chat completion's body; only what the template sees has an effect."""

    model: str = Field(default="", max_length=4096)


def add_routes(app: FastAPI, answering: Answering) -> None:
    @app.post("/tokenize")
    async def tokenize(body: TokenizeRequest, request: Request) -> Response:
        async def work(model: ServedModel) -> dict[str, Any]:
            return {"tokens": await _tokens(body, model)}

        name = await meant(answering.models, body.model)
        return await answering.with_model(request, name, work)

    @app.post("/detokenize")
    async def detokenize(body: DetokenizeRequest, request: Request) -> Response:
        async def work(model: ServedModel) -> dict[str, Any]:
            pieces = await model.pieces(body.tokens)
            return {"content": b"".join(pieces).decode("utf-8", "replace")}

        name = await meant(answering.models, body.model)
        return await answering.with_model(request, name, work)

    @app.post("/apply-template")
    async def apply_template(body: TemplateRequest, request: Request) -> Response:
        said = await converted(len(body.messages), partial(messages_of, body))
        options = options_of(body, asker(request, body.user))

        async def work(model: ServedModel) -> dict[str, Any]:
            try:
                prompt, _ = await model.prompt(said, options)
            except ContextLengthError as error:
                error.field = error.field or "messages"
                raise
            return {"prompt": prompt}

        name = await meant(answering.models, body.model)
        return await answering.with_model(request, name, work)


async def _tokens(body: TokenizeRequest, model: ServedModel) -> list[Any]:
    ids: list[int] = []
    for at, part in enumerate(body.content):
        if isinstance(part, int):
            ids.append(part)
            continue
        first = at == 0 and body.add_special
        ids += await model.tokenize(part, add_special=first, parse_special=body.parse_special)
    if not body.with_pieces:
        return ids
    pieces = await model.pieces(ids)
    return [{"id": id_, "piece": _piece(piece)} for id_, piece in zip(ids, pieces, strict=True)]


def _piece(piece: bytes) -> str | list[int]:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)
