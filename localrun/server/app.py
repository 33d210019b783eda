"""Knows no tensors and no files: the routes of the local port, behind its guards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute

from localrun import __version__
from localrun.chat.messages import ReplyEvent, RequestContext, ServedModel
from localrun.errors import LocalrunError, ModelNotFoundError
from localrun.server import openai
from localrun.server.answers import ClientGone, EventStream, Reply, while_connected
from localrun.server.asked import context_of, messages_of, options_of
from localrun.server.guards import OPEN_PATH, Guards, Receive, Scope, Send, ServerOptions
from localrun.server.schemas import ChatRequest, field_name
from localrun.server.shapes import error_response, response_of

# What proxies write into their logs for a client that left; nobody receives it.
CLIENT_CLOSED_REQUEST = 499


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A model as ``/v1/models`` lists it. ``created``: seconds since 1970."""

    id: str
    created: int
    owned_by: str = "localrun"

    def body(self) -> dict[str, Any]:
        return {"object": "model", **asdict(self)}


class ModelProvider(Protocol):
    """Where the server gets its models from."""

    def lease(self, name: str) -> AbstractAsyncContextManager[ServedModel]:
        """The model, loaded, and kept so until the block ends.

        Raises:
            ModelNotFoundError: none by that name is served here.
            LocalrunError: it cannot be loaded.
        """
        ...

    def names(self) -> Sequence[ModelCard]:
        """May read the disk; called off the event loop."""
        ...

    async def close(self) -> None: ...


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
        _add_models(inner, models)
        _add_chat(inner, models, self.stopping)
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


def _add_models(app: FastAPI, models: ModelProvider) -> None:
    @app.get(OPEN_PATH)
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        cards = await asyncio.to_thread(models.names)
        return {"object": "list", "data": [card.body() for card in cards]}

    @app.get("/v1/models/{name:path}")
    async def show_model(name: str) -> dict[str, Any]:
        for card in await asyncio.to_thread(models.names):
            if card.id == name:
                return card.body()
        raise ModelNotFoundError(f"no model {name[:80]!r} is served here", hint="GET /v1/models")


def _add_chat(app: FastAPI, models: ModelProvider, stopping: asyncio.Event) -> None:
    async def events(body: ChatRequest, context: RequestContext) -> AsyncGenerator[ReplyEvent]:
        messages, options = messages_of(body), options_of(body, context)
        async with models.lease(body.model) as model:
            replies = (
                model.reply(messages, options)
                if body.n in (None, 1)
                else model.replies(messages, options, body.n)
            )
            async with aclosing(replies) as stream:
                async for event in stream:
                    yield event

    async def begin(body: ChatRequest, context: RequestContext) -> Reply:
        reply = Reply(events(body, context))
        await reply.begin()
        return reply

    async def whole(body: ChatRequest, context: RequestContext) -> dict[str, Any]:
        async with aclosing(await begin(body, context)) as reply:
            return await openai.completion(body.model, reply, body.n or 1)

    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        receive = request.receive
        peer = request.client.host if request.client else ""
        context = context_of(request.scope["headers"], peer, body.user)
        try:
            if not body.stream:
                answer = await while_connected(receive, stopping, whole(body, context))
                return JSONResponse(answer)
            reply = await while_connected(receive, stopping, begin(body, context))
        except ClientGone:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        with_usage = body.stream_options is not None and body.stream_options.include_usage
        chunks = openai.chunks(body.model, reply, body.n or 1, include_usage=with_usage)
        return EventStream(reply, chunks, stopping=stopping, goodbye=openai.goodbye())


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(LocalrunError)
    async def typed(_: Request, error: LocalrunError) -> Response:
        return response_of(error)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> Response:
        # The first is enough to act on, and the input itself is not repeated.
        first = error.errors()[0]
        name = field_name(tuple(first["loc"]))
        message = f"{name}: {first['msg']}" if name else str(first["msg"])
        return error_response(400, message, code="invalid_request", param=name or None)

    @app.exception_handler(HTTPException)
    async def plain(_: Request, error: HTTPException) -> Response:
        return error_response(error.status_code, str(error.detail), headers=error.headers)

    # The request boundary: what nobody foresaw is logged by the server and told without details.
    @app.exception_handler(Exception)
    async def unforeseen(_: Request, error: Exception) -> Response:
        return error_response(500, f"an error in localrun itself ({type(error).__name__})")
