"""Knows no tensors and no files: the routes of the local port, behind its guards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute

from localrun import __version__
from localrun.errors import LocalrunError
from localrun.server import errors
from localrun.server.answering import Answering
from localrun.server.fields import field_name
from localrun.server.guards import OPEN_PATH, Guards, Receive, Scope, Send, ServerOptions
from localrun.server.models import ModelProvider
from localrun.server.openai import chat, models

# One for each dialect's part: what adds its routes.
_ROUTES = (models.add_routes, chat.add_routes)


class ServedApp:
    """The ASGI application: ``routes`` behind the guards.

    ``stopping`` is set by whoever runs it when it ought to end: streams then say so and close.
    """

    def __init__(self, models: ModelProvider, options: ServerOptions) -> None:
        self.stopping = asyncio.Event()
        inner = FastAPI(
            title="localrun",
            version=__version__,
            docs_url="/docs" if options.docs else None,
            redoc_url=None,
            openapi_url="/openapi.json" if options.docs else None,
            redirect_slashes=False,
            lifespan=_closing(models),
        )
        _add_errors(inner)
        _add_health(inner)
        answering = Answering(models, self.stopping)
        for add_routes in _ROUTES:
            add_routes(inner, answering)
        self._door = Guards(inner, options)
        self.routes: Sequence[BaseRoute] = inner.routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._door(scope, receive, send)


def create_app(models: ModelProvider, options: ServerOptions | None = None) -> ServedApp:
    """The application that ``serving.serve`` runs. It closes ``models`` when it ends."""
    return ServedApp(models, options or ServerOptions())


def _closing(models: ModelProvider) -> Any:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await models.close()

    return lifespan


def _add_health(app: FastAPI) -> None:
    @app.get(OPEN_PATH)
    async def health() -> dict[str, str]:
        return {"status": "ok"}


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(LocalrunError)
    async def typed(request: Request, error: LocalrunError) -> Response:
        return errors.response_of(request.url.path, error)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> Response:
        # The first is enough to act on, and the input itself is not repeated.
        first = error.errors()[0]
        name = field_name(tuple(first["loc"]))
        message = f"{name}: {first['msg']}" if name else str(first["msg"])
        refusal = errors.Refusal(400, message, code="invalid_request", param=name or None)
        return errors.response(request.url.path, refusal)

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> Response:
        refusal = errors.Refusal(error.status_code, str(error.detail))
        return errors.response(request.url.path, refusal, headers=error.headers)

    # The request boundary: what nobody foresaw is logged by the server and told without details.
    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> Response:
        message = f"an error in localrun itself ({type(error).__name__})"
        return errors.response(request.url.path, errors.Refusal(500, message))
