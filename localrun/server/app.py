"""Knows no tensors and no files: the routes of the local port, behind its guards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Route

from localrun import __version__
from localrun.errors import LocalrunError
from localrun.server import errors
from localrun.server.answering import Answering
from localrun.server.anthropic import messages
from localrun.server.body import BodyRoute
from localrun.server.fields import field_name
from localrun.server.guards import OPEN_PATH, Guards, Receive, Scope, Send, ServerOptions
from localrun.server.llamacpp import routes as llama
from localrun.server.log import log_request
from localrun.server.metrics import Metrics
from localrun.server.metrics import add_routes as add_metrics
from localrun.server.models import ModelProvider
from localrun.server.ollama import routes as ollama
from localrun.server.openai import chat, completions, embeddings, models
from localrun.server.openai.responses import routes as responses
from localrun.server.openapi import DocumentedAPI
from localrun.server.record import NO_ROUTE, Recorder, RequestRecord

# One for each dialect's part: what adds its routes.
_ROUTES = (
    models.add_routes,
    chat.add_routes,
    responses.add_routes,
    messages.add_routes,
    ollama.add_routes,
    completions.add_routes,
    embeddings.add_routes,
    llama.add_routes,
)


class ServedApp:
    """The ASGI application: ``routes`` behind the guards.

    ``stopping`` is set by whoever runs it when it ought to end: streams then say so and close.
    """

    def __init__(self, models: ModelProvider, options: ServerOptions) -> None:
        self.stopping = asyncio.Event()
        inner = DocumentedAPI(
            title="localrun",
            version=__version__,
            docs_url="/docs" if options.docs else None,
            redoc_url=None,
            openapi_url="/openapi.json" if options.docs else None,
            redirect_slashes=False,
            lifespan=_closing(models),
        )
        inner.router.route_class = BodyRoute
        inner.state.models = models
        _add_errors(inner)
        _add_health(inner)
        answering = Answering(models, self.stopping)
        for add_routes in _ROUTES:
            add_routes(inner, answering)
        told: list[Callable[[RequestRecord], None]] = [log_request]
        # Outermost: what the guards refuse, and what fails in them, is logged and counted too.
        self._recorder = Recorder(Guards(inner, options), _route_of(inner.routes), _id_names, told)
        metrics = Metrics(models, self._recorder.under_way)
        told.append(metrics.observe)
        add_metrics(inner, metrics)
        self.routes: Sequence[BaseRoute] = inner.routes
        self.openapi = inner.openapi

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._recorder(scope, receive, send)

    def refused(self, status: int) -> None:
        """Note that the connection itself refused what it could not read as HTTP."""
        self._recorder.refused(status)


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


def _route_of(routes: Sequence[BaseRoute]) -> Callable[[str], str]:
    """The template of the route that a path has, ``NO_ROUTE`` where none has it."""

    def route_of(path: str) -> str:
        for route in routes:
            if isinstance(route, Route) and route.path_regex.match(path):
                return route.path_format
        return NO_ROUTE

    return route_of


def _id_names(path: str) -> Sequence[bytes]:
    # https://docs.claude.com/en/api/errors#request-id
    return (b"request-id",) if errors.shape_of(path) is errors.anthropic_shape else ()


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
