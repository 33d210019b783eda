"""Knows no dialect: prompts that are no conversations: texts, ids of tokens, or both mixed."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from itertools import groupby
from typing import Annotated, Final, TypeGuard

from pydantic import Field

from localrun.chat.messages import Prompt, ReplyEvent, ServedModel
from localrun.errors import ContextLengthError
from localrun.server.fields import MAX_TOKENS

# As many as may wait at an engine.
MAX_ANSWERS: Final = 64
TokenId = Annotated[int, Field(ge=0, le=MAX_TOKENS)]


def is_id(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_TOKENS


async def naming(events: AsyncGenerator[ReplyEvent], field: str) -> AsyncGenerator[ReplyEvent]:
    """The events; a text that is too long is told by the ``field`` that it came in."""
    try:
        async with aclosing(events):
            async for event in events:
                yield event
    except ContextLengthError as error:
        error.field = error.field or field
        raise


async def text_of(prompt: Prompt, model: ServedModel) -> str:
    """A prompt as text: what its ids stand for among it.

    Raises:
        RequestError: an id is no token of the model's.
    """
    told: list[bytes] = []
    # Ids in a row are asked for at once: each question goes to the engine's process and back.
    for kind, parts in groupby(prompt.parts, type):
        if kind is str:
            told += [part.encode() for part in parts if isinstance(part, str)]
        else:
            told += await model.pieces([part for part in parts if isinstance(part, int)])
    return b"".join(told).decode("utf-8", "replace")
