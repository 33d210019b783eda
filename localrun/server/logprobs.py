"""Knows no dialect: how likely tokens were, as clients of several dialects read it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from localrun.engine.request import TokenLogprob

# What OpenAI tells of a token that cannot come: JSON has no infinity.
UNLIKELY: Final = -9999.0


def logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any] | None:
    """None where none were asked for. https://platform.openai.com/docs/api-reference/chat/object"""
    return {"content": told_tokens(tokens), "refusal": None} if tokens else None


def told_tokens(tokens: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """Each with its alternatives. A token's text has marks in place of the bytes that are no text
    alone; ``bytes`` has them all."""
    return [
        _told(each.text, each.logprob)
        | {"top_logprobs": [_told(text, logprob) for _, text, logprob in each.top]}
        for each in tokens
    ]


def _told(text: bytes, logprob: float) -> dict[str, Any]:
    shown = text.decode("utf-8", "replace")
    return {"token": shown, "logprob": max(logprob, UNLIKELY), "bytes": list(text)}
