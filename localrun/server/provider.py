"""Knows no engine: models that are loaded when they are first asked for, and kept."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from localrun.chat.messages import ChatModel
from localrun.errors import ServerError
from localrun.server.app import ModelCard

OpenModel = Callable[[str], Awaitable[ChatModel]]


class LoadingProvider:
    """A ModelProvider over a factory.

    open_model: loads the model of that canonical name; may raise any LocalrunError.
    cards: what is served, read anew each time.
    canonical: the one name of a model that has several; raises for a name that none has.
    """

    def __init__(
        self,
        open_model: OpenModel,
        *,
        cards: Callable[[], Sequence[ModelCard]],
        canonical: Callable[[str], str] = str,
    ) -> None:
        self._open = open_model
        self._cards = cards
        self._canonical = canonical
        self._models: dict[str, asyncio.Task[ChatModel]] = {}
        self._closed = False

    def names(self) -> Sequence[ModelCard]:
        return self._cards()

    async def get(self, name: str) -> ChatModel:
        """The model, loaded once whoever asks; a load that failed is tried again.

        Raises:
            ServerError: the provider was closed.
            LocalrunError: what ``canonical`` or ``open_model`` raised.
        """
        name = await asyncio.to_thread(self._canonical, name)
        if self._closed:
            raise ServerError("the server is shutting down")
        loading = self._models.get(name)
        if loading is None or (loading.done() and _failed(loading)):
            loading = asyncio.create_task(self._load(name))
            self._models[name] = loading
        # One client that leaves must not undo what another waits for.
        return await asyncio.shield(loading)

    async def close(self) -> None:
        """Stop loading and close every model."""
        self._closed = True
        loadings = list(self._models.values())
        self._models.clear()
        for loading in loadings:
            loading.cancel()
        await asyncio.gather(*loadings, return_exceptions=True)
        models = [loading.result() for loading in loadings if not _failed(loading)]
        await asyncio.gather(*(model.close() for model in models))

    async def _load(self, name: str) -> ChatModel:
        return await self._open(name)


def _failed(loading: asyncio.Task[ChatModel]) -> bool:
    return loading.cancelled() or loading.exception() is not None
