"""Models of tests behind a real loopback port, each in a child process of its own."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2

from localrun.chat.local import LocalChatModel
from localrun.chat.messages import ServedModel
from localrun.chat.templates import Renderer
from localrun.engine.process.engine_process import EngineProcess
from localrun.errors import ModelNotFoundError
from localrun.formats.text import shown
from localrun.plan.plan import Plan
from localrun.server.app import create_app
from localrun.server.guards import ServerOptions
from localrun.server.models import ModelCard
from localrun.server.provider import LoadingProvider
from tests.engine_child import LOADER
from tests.loads import unlimited
from tests.mock_runner import CHAT_TEMPLATE
from tests.served import served


@dataclass(frozen=True)
class Model:
    """What a name stands for; ``options`` are those of ``EngineProcess.start``."""

    plan: Plan
    loader: str = LOADER
    template: str = CHAT_TEMPLATE
    options: Mapping[str, Any] = field(default_factory=dict)


class Port:
    """A client of a server, and the engines behind it by their models' names."""

    def __init__(
        self, number: int, client: httpx2.AsyncClient, engines: Mapping[str, EngineProcess]
    ) -> None:
        self.number = number
        self.client = client
        self.engines = engines

    async def ask(self, model: str, text: str = "Hi", **fields: Any) -> httpx2.Response:
        """The response to one question."""
        return await self.client.post(CHAT, json=asked(model, text, **fields))

    async def said(self, model: str, text: str = "Hi", **fields: Any) -> str:
        """The answer to one question, which must have one."""
        response = await self.ask(model, text, **fields)
        assert response.status_code == 200, response.text
        content: str = response.json()["choices"][0]["message"]["content"]
        return content

    async def stream(self, model: str, text: str = "Hi", **fields: Any) -> AsyncIterator[Any]:
        """The events of a streamed answer, without the ``[DONE]`` that ends it."""
        body = asked(model, text, stream=True, **fields)
        async with self.client.stream("POST", CHAT, json=body) as response:
            lines = [line async for line in response.aiter_lines() if line]
        assert lines[-1] == "data: [DONE]", lines
        for line in lines[:-1]:
            yield json.loads(line.removeprefix("data: "))


CHAT = "/v1/chat/completions"


def asked(model: str, text: str, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": model, "messages": messages, "temperature": 0} | fields


def provider_of(models: Mapping[str, Model], engines: dict[str, EngineProcess]) -> LoadingProvider:
    """The models, each loaded when it is first asked for; ``engines`` are those that were."""

    async def open_model(name: str) -> ServedModel:
        model = models[name]
        engine = await EngineProcess.start(
            model.plan, loader=model.loader, chat_template=model.template, **model.options
        )
        engines[name] = engine
        return LocalChatModel(engine, Renderer())

    def canonical(name: str) -> str:
        if name not in models:
            raise ModelNotFoundError(f"no model is called {shown(name)}")
        return name

    return LoadingProvider(
        unlimited(open_model),
        cards=lambda: [ModelCard(name, 0) for name in models],
        canonical=canonical,
    )


@asynccontextmanager
async def ported(models: Mapping[str, Model]) -> AsyncIterator[Port]:
    """Serve the models until the block ends; each is loaded when it is first asked for."""
    engines: dict[str, EngineProcess] = {}
    provider = provider_of(models, engines)
    async with (
        served(create_app(provider, ServerOptions())) as number,
        httpx2.AsyncClient(base_url=f"http://127.0.0.1:{number}", timeout=120) as client,
    ):
        yield Port(number, client, engines)
