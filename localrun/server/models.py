"""Knows no disk: what the port asks of whoever keeps the models."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

from localrun.chat.messages import ServedModel

Capability = Literal["completion", "tools", "insert", "embedding", "thinking", "vision"]


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A model as the lists show it. ``created``: seconds since 1970; ``bytes`` of its weights."""

    id: str
    created: int
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a model's header says, loaded or not.

    ``n_ctx_train`` is the longest context that it was made for, ``quantization`` the type of most
    of its weights (``Q4_K``), ``fields`` what of the header clients ask for by its own names
    (``llama.context_length``).
    """

    id: str
    architecture: str
    format: str
    quantization: str
    parameters: int
    bytes: int
    sha256: str
    n_ctx_train: int
    width: int
    chat_template: str | None
    capabilities: frozenset[Capability]
    fields: dict[str, str | int | float | bool]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is ready. ``held`` is what its plan promises of each tier, in bytes; it is
    unloaded ``idle_s`` after its last request, None never. ``requests`` are under way."""

    id: str
    n_ctx: int
    held: dict[str, int]
    requests: int
    idle_s: float | None


class ModelProvider(Protocol):
    """Where the server gets its models from."""

    def lease(
        self, name: str, *, keep_s: float | None = None
    ) -> AbstractAsyncContextManager[ServedModel]:
        """The model, loaded, and kept so until the block ends; then for ``keep_s`` more, negative
        for ever, None as long as any.

        Raises:
            ModelNotFoundError: none by that name is served here.
            LocalrunError: it cannot be loaded.
        """
        ...

    def names(self) -> Sequence[ModelCard]:
        """May read the disk; called off the event loop."""
        ...

    def facts(self, name: str) -> ModelFacts:
        """May read the disk; called off the event loop.

        Raises:
            ModelNotFoundError: none by that name is served here.
        """
        ...

    def loaded(self) -> Sequence[LoadedModel]: ...

    async def unload(self, name: str) -> bool:
        """Free a model that nobody uses; whether it was loaded and is no more."""
        ...

    async def close(self) -> None: ...
