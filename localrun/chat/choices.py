"""Knows no model: several answers that are made at once, as one stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import TypeVar

Event = TypeVar("Event")


async def merged(
    streams: Sequence[AsyncGenerator[Event]],
) -> AsyncGenerator[tuple[int, Event]]:
    """Every stream's events as they come, each with the index of its stream.

    At most one event of each is taken ahead of the reader. The first that raises ends the others,
    as does closing this one; when it is over, all of them are.
    """
    async with AsyncExitStack() as closing:
        for stream in streams:
            await closing.enter_async_context(aclosing(stream))
        pending = {asyncio.ensure_future(anext(stream)): at for at, stream in enumerate(streams)}
        try:
            while pending:
                done, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                # By choice: the order of a set is no order.
                for task in sorted(done, key=pending.__getitem__):
                    at = pending.pop(task)
                    try:
                        event = task.result()
                    except StopAsyncIteration:
                        continue
                    yield at, event
                    pending[asyncio.ensure_future(anext(streams[at]))] = at
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
