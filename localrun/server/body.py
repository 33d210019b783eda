"""Knows no dialect: a request's body from bytes to its checked model, off the event loop if long.

JSON as RFC 8259 has it: no NaN, no half of a surrogate pair, UTF-8 alone; and no number beyond 64
bits of floating point, which would be read as infinity. Python's own reader takes all of these, and
no tokenizer, template or answer could take them from there.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.requests import Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from localrun.errors import ContextLengthError
from localrun.server.models import ModelProvider

# From here on a body is read in a thread.
LONG_BODY_BYTES = 64 * 1024


class BodyRoute(APIRoute):
    """A route whose body is checked here; where FastAPI expects JSON, it then finds a model.

    Raises:
        RequestValidationError: no JSON, or not of the model's shape.
        ContextLengthError: see ``parsed``.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        kind = None if self.body_field is None else self.body_field.field_info.annotation
        model = kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None

        async def handler(request: Request) -> Response:
            data = await request.body()
            if not data or self.body_field is None:
                return await handle(request)
            if len(data) < LONG_BODY_BYTES:
                value = parsed(data, model)
            else:
                models: ModelProvider = request.app.state.models
                n_ctx = {each.id: each.n_ctx for each in models.loaded()}
                value = await asyncio.to_thread(parsed, data, model, n_ctx)
            return await handle(_Parsed(request, value))

        return handler


class _Parsed(Request):
    """A request whose JSON is parsed already."""

    def __init__(self, request: Request, value: Any) -> None:
        super().__init__(request.scope, request.receive)
        self._body = b"{}"
        self._value = value

    async def json(self) -> Any:
        return self._value


def parsed(
    data: bytes, model: type[BaseModel] | None, n_ctx: Mapping[str, int] | None = None
) -> Any:
    """The document that ``data`` is, as an instance of ``model`` where there is one.

    ``n_ctx`` are the contexts of models that are loaded.

    Raises:
        RequestValidationError: see ``BodyRoute``.
        ContextLengthError: its turns are more than its model's context holds.
    """
    try:
        document = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise _not_json(str(error)) from error
    if n_ctx and isinstance(document, dict):
        _check_turns(document, n_ctx)
    try:
        value = document if model is None else model.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise RequestValidationError([{**first, "loc": ("body", *first["loc"])}]) from error
    # After the model, which names the field where it knows it; schemas may hold any.
    if not finite(document):
        raise _not_json("a number is too large")
    return value


def _not_json(why: str) -> RequestValidationError:
    fault = {"type": "json_invalid", "loc": ("body",), "msg": f"not JSON: {why}"}
    return RequestValidationError([fault])


def finite(document: object) -> bool:
    """Whether no number of a JSON document is infinite or none: JSON could not tell it again."""
    left = [document]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            left += value.values()
        elif isinstance(value, list):
            left += value
        elif isinstance(value, float) and not math.isfinite(value):
            return False
    return True


def _check_turns(document: dict[str, Any], n_ctx: Mapping[str, int]) -> None:
    """A turn is a token at least: what cannot fit is refused before a model of each is made."""
    held = n_ctx.get(str(document.get("model")))
    if held is None:
        return
    for field in ("messages", "input"):
        turns = document.get(field)
        if isinstance(turns, list) and len(turns) >= held and isinstance(turns[0], dict):
            error = ContextLengthError(len(turns), held, at_least=True)
            error.field = field
            raise error
