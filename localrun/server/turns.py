"""Knows no dialect: where a conversation is turned into our words."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, TypeVar

Result = TypeVar("Result")

# A turn takes some ten microseconds: so many take as long as a step of the event loop may.
MANY_TURNS: Final = 500


async def converted(turns: int, convert: Callable[[], Result]) -> Result:
    """What ``convert`` makes of a conversation of so many turns; in a thread where they are many,
    as nobody else's tokens would be sent meanwhile.

    Raises:
        LocalrunError: what ``convert`` raised.
    """
    return convert() if turns < MANY_TURNS else await asyncio.to_thread(convert)
