"""Knows no disk: what the port asks of whoever keeps the models."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

from localrun.chat.messages import ServedModel
from localrun.engine.runner import RunnerStats

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

    ``n_ctx_train`` is the longest context that it was made for, ``quantization`` what its file says
    of its weights (``Q4_K_M``), ``fields`` what of the header clients ask for by its own names
    (``llama.context_length``), ``licence`` its makers', where they state one.
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
    licence: str = ""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is ready. ``held`` is what its plan promises of each tier, in bytes; it is
    unloaded ``idle_s`` after its last request, None never; that is in ``left_s`` if nobody asks
    any more. ``requests`` are under way."""

    id: str
    n_ctx: int
    held: dict[str, int]
    requests: int
    idle_s: float | None
    left_s: float | None = None


@dataclass(frozen=True, slots=True)
class PullProgress:
    """How much of ``label`` is here, in bytes; ``total`` 0 where nobody knows."""

    label: str
    total: int
    completed: int


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

    async def stats(self) -> Mapping[str, RunnerStats]:
        """The counters of each model that is ready and says them at once; idle ones stay so."""
        ...

    async def unload(self, name: str) -> bool:
        """Free a model that nobody uses; whether it was loaded and is no more."""
        ...

    def pull(self, name: str) -> AsyncGenerator[PullProgress]:
        """Bring a model to this disk; ends when it is here. Closing it early ends the transfer,
        unless others wait for the same.

        Raises:
            RefError, ModelNotFoundError: nothing that can be fetched is called that.
            BusyError: too many are being fetched.
            LocalrunError: what the transfer ended with.
        """
        ...

    async def close(self) -> None: ...
