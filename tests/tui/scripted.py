"""A chat model that says what it is told to, when it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

from localrun.chat.messages import ChatModel, Message, ReplyEvent, ReplyOptions
from localrun.engine.request import FinishReason, Timings

TIMINGS = Timings(
    prompt_tokens=20, cached_tokens=0, generated_tokens=11, prefill_s=0.1, decode_s=0.2
)
END = ReplyEvent(finish=FinishReason.STOP, timings=TIMINGS)


class Gate:
    """A place in a script where the model waits until the test says ``open``."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self._open = asyncio.Event()

    def open(self) -> None:
        self._open.set()

    async def wait(self) -> None:
        self.reached.set()
        await self._open.wait()


Script = Sequence[ReplyEvent | Gate | Exception]


class ScriptedModel:
    """Plays one script per reply, the last one for ever; remembers what it was asked."""

    def __init__(self, *scripts: Script, name: str = "scripted", n_ctx: int = 4096) -> None:
        self.name, self.backend, self.n_ctx = name, "paper", n_ctx
        self.scripts = list(scripts) or [[ReplyEvent(text="Hello."), END]]
        self.asked: list[list[Message]] = []
        self.cancelled = 0
        self.closed = False

    async def reply(
        self, messages: Sequence[Message], options: ReplyOptions
    ) -> AsyncGenerator[ReplyEvent, None]:
        script = self.scripts[min(len(self.asked), len(self.scripts) - 1)]
        self.asked.append(list(messages))
        ended = False
        try:
            for step in script:
                if isinstance(step, Gate):
                    await step.wait()
                elif isinstance(step, Exception):
                    ended = True
                    raise step
                else:
                    ended = step.finish is not None
                    yield step
        finally:
            self.cancelled += not ended

    async def close(self) -> None:
        self.closed = True


def words(text: str) -> list[ReplyEvent]:
    """``text`` as a stream of words, and its end."""
    return [*(ReplyEvent(text=word) for word in text.split(" ")), END]


def opening(*models: ChatModel) -> object:
    """An ``open_model`` that hands the models out in turn."""
    left = list(models)

    async def open_model(ref: str) -> ChatModel:
        return left.pop(0)

    return open_model
