"""Candidates for providers in tests: models that always fit, and a memory that is counted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from localrun.chat.messages import ServedModel
from localrun.errors import DoesNotFitError, LocalrunError
from localrun.server.room import Candidate, Holding, Loaded, Opening, left
from tests.fake_chat import FakeChat

OpenModel = Callable[[str], Awaitable[ServedModel]]


@dataclass
class Unlimited:
    """Every model fits beside every other: ``LoadingProvider(unlimited(open_model), …)``."""

    name: str
    open_model: OpenModel

    def beside(
        self, loaded: Sequence[Holding], staying: Sequence[Holding], *, squeezed: bool = False
    ) -> Opening:
        async def opening() -> Loaded:
            return Loaded(await self.open_model(self.name), Holding({}, {}))

        return opening


def unlimited(open_model: OpenModel) -> Callable[[str], Candidate]:
    return lambda name: Unlimited(name, open_model)


@dataclass
class FakeMemory:
    """A machine of ``capacity`` bytes; ``FakeMemory(10, a=6)(name)`` looks for a model.

    Of what a model is promised, ``mapped`` bytes stay available to the system. What does not fit
    as it is meant fits ``squeezed`` with ``least`` bytes, where that is given.
    """

    capacity: int
    sizes: Mapping[str, int]
    mapped: int = 0
    least: Mapping[str, int] = field(default_factory=dict)
    open: dict[str, FakeChat] = field(default_factory=dict)
    looked: list[str] = field(default_factory=list)
    opened: list[str] = field(default_factory=list)
    taken: dict[str, int] = field(default_factory=dict)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    error: LocalrunError | None = None
    peak: int = 0

    def __post_init__(self) -> None:
        self.gate.set()

    def __call__(self, name: str) -> Candidate:
        self.looked.append(name)
        return _Model(self, name)

    @property
    def available(self) -> int:
        return self.capacity - sum(self.taken.values())


@dataclass
class _Model:
    memory: FakeMemory
    name: str

    def beside(
        self, loaded: Sequence[Holding], staying: Sequence[Holding], *, squeezed: bool = False
    ) -> Opening:
        memory = self.memory
        size = memory.sizes[self.name]
        room = left({"ram": memory.available}, loaded, staying)["ram"]
        if squeezed:
            size = min(size, max(room, memory.least.get(self.name, size)))
        if size > room:
            raise DoesNotFitError(
                f"{self.name} does not fit: ram lacks {size - room}", shortfall={"ram": size - room}
            )

        async def opening() -> Loaded:
            memory.opened.append(self.name)
            await memory.gate.wait()
            if memory.error is not None:
                raise memory.error
            assert self.name not in memory.open, "loaded twice"
            chat = _Held(memory, name=self.name)
            memory.open[self.name] = chat
            memory.taken[self.name] = max(0, size - memory.mapped)
            memory.peak = max(memory.peak, sum(memory.sizes[name] for name in memory.open))
            return Loaded(chat, Holding({"ram": size}, {"ram": memory.taken[self.name]}))

        return opening


class _Held(FakeChat):
    """Gives its bytes back when it is closed, a moment later than it is asked to."""

    def __init__(self, memory: FakeMemory, *, name: str) -> None:
        super().__init__(name=name)
        self._memory = memory

    async def close(self) -> None:
        await asyncio.sleep(0)
        await super().close()
        del self._memory.open[self.name]
        del self._memory.taken[self.name]
