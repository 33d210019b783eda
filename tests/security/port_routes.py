"""Every way into the port, and one honest request for each route that takes a body."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import httpx2
from starlette.routing import Route

from localrun.plan.plan import Plan
from localrun.server.app import ServedApp, create_app
from localrun.server.errors import anthropic_shape, ollama_shape, openai_shape, shape_of
from localrun.server.guards import ServerOptions
from tests.ported import Model, provider_of

BASE: Final = "http://127.0.0.1:7411"
METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "FOO")
SAID: Final = [{"role": "user", "content": "Hi"}]


def examples(model: str) -> dict[str, dict[str, Any]]:
    """A body for each route that takes one; answers are short."""
    asked = {"model": model, "messages": SAID}
    return {
        "/v1/chat/completions": asked | {"max_tokens": 8},
        "/v1/completions": {"model": model, "prompt": "Hi", "max_tokens": 8},
        "/v1/embeddings": {"model": model, "input": "Hi"},
        "/v1/responses": {"model": model, "input": "Hi", "max_output_tokens": 16},
        "/v1/messages": asked | {"max_tokens": 8},
        "/v1/messages/count_tokens": asked,
        "/api/show": {"model": model},
        "/api/pull": {"model": model},
        "/api/chat": asked | {"options": {"num_predict": 8}},
        "/api/generate": {"model": model, "prompt": "Hi", "options": {"num_predict": 8}},
        "/api/embed": {"model": model, "input": "Hi"},
        "/api/embeddings": {"model": model, "prompt": "Hi"},
        "/completion": {"model": model, "prompt": "Hi", "n_predict": 8},
        "/completions": {"model": model, "prompt": "Hi", "n_predict": 8},
        "/infill": {"model": model, "input_prefix": "a", "input_suffix": "b", "n_predict": 8},
        "/tokenize": {"model": model, "content": "Hi"},
        "/detokenize": {"model": model, "tokens": [65, 66]},
        "/apply-template": asked,
    }


def routes(app: ServedApp) -> list[Route]:
    return [route for route in app.routes if isinstance(route, Route)]


def ways_in(app: ServedApp) -> list[tuple[str, str]]:
    """Every route with every method, whether it takes it or not."""
    paths = dict.fromkeys(
        route.path_format.replace("{name}", "fake") for route in routes(app)
    )  # fmt: skip
    return [(method, path) for path in [*paths, "/nowhere"] for method in METHODS]


def with_bodies(app: ServedApp) -> list[str]:
    """The paths of all routes that read a body."""
    return sorted(
        path
        for path, operations in app.openapi()["paths"].items()
        if any("requestBody" in operation for operation in operations.values())
    )


@asynccontextmanager
async def mocked(model: str, plan: Plan) -> AsyncIterator[tuple[ServedApp, httpx2.AsyncClient]]:
    """An application in this process, over the mock runner in a child: no socket between."""
    provider = provider_of({model: Model(plan)}, {})
    app = create_app(provider, ServerOptions(docs=True))
    async with client_of(app) as client:
        try:
            yield app, client
        finally:
            await provider.close()


def client_of(app: ServedApp) -> httpx2.AsyncClient:
    transport = httpx2.ASGITransport(app)
    return httpx2.AsyncClient(transport=transport, base_url=BASE, timeout=60)


_TEXT: Final = (str,)
_MAYBE: Final = (str, type(None))
_KEYS: Final[Mapping[Callable[..., Any], Mapping[str, tuple[type, ...]]]] = {
    openai_shape: {"message": _TEXT, "type": _TEXT, "code": _MAYBE, "param": _MAYBE},
    anthropic_shape: {"message": _TEXT, "type": _TEXT},
}


def is_told_rightly(path: str, document: Any) -> bool:
    """Whether an error is told in the shape of the path's dialect."""
    shape = shape_of(path)
    if shape is ollama_shape:
        return set(document) == {"error"} and isinstance(document["error"], str)
    outer = {"error", "type"} if shape is anthropic_shape else {"error"}
    error = document.get("error")
    return (
        set(document) == outer
        and (shape is not anthropic_shape or document["type"] == "error")
        and all(isinstance(error.get(key), kinds) for key, kinds in _KEYS[shape].items())
    )
