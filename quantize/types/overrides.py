"""Knows no tensor: what ``--tensor-type REGEX=TYPE`` says.

As llama-quantize reads it: the pattern is looked for anywhere in a tensor's name, letters of either
case, and of several patterns that fit a name the first counts
(https://github.com/ggml-org/llama.cpp/blob/master/tools/quantize/README.md).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from localrun.errors import UsageError
from localrun.formats.text import shown
from localrun.ggml.types import WEIGHT_TYPES

_EXAMPLE: Final = "for example --tensor-type 'attn_v=Q8_0'"
_SHOWN: Final = 3


@dataclass(frozen=True, slots=True)
class Override:
    """``text`` is what the user wrote, ``type`` is GGUF's name of a type of weights."""

    text: str
    pattern: re.Pattern[str]
    type: str

    def fits(self, name: str) -> bool:
        return self.pattern.search(name) is not None


def parse_override(text: str) -> Override:
    """``REGEX=TYPE``; the last ``=`` divides them.

    Raises:
        UsageError: no pattern, a pattern that is no regular expression, or no such type.
    """
    pattern, sign, type = text.rpartition("=")
    if not sign or not pattern or not type:
        raise UsageError(f"--tensor-type {shown(text)}: not REGEX=TYPE", hint=_EXAMPLE)
    name = type.strip().upper()
    if name not in WEIGHT_TYPES:
        raise UsageError(
            f"--tensor-type {shown(text)}: {shown(type)} is not a type of tensors",
            hint=f"one of {', '.join(WEIGHT_TYPES)}",
        )
    try:
        compiled = re.compile(pattern, re.IGNORECASE)
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(
            f"--tensor-type {shown(text)}: no regular expression: {error}", hint=_EXAMPLE
        ) from None
    return Override(text, compiled, name)


def parse_overrides(texts: Iterable[str]) -> tuple[Override, ...]:
    """Each of ``texts``, in their order.

    Raises:
        UsageError: as ``parse_override``.
    """
    return tuple(map(parse_override, texts))


def override_of(name: str, overrides: Iterable[Override]) -> str | None:
    """The type that the first fitting override gives a tensor; None where none fits."""
    return next((each.type for each in overrides if each.fits(name)), None)


def require_matches(overrides: Iterable[Override], names: Iterable[str]) -> None:
    """Hold that every override has a tensor among those that may be quantized.

    Raises:
        UsageError: one fits none of ``names``: most likely a slip.
    """
    listed = list(names)
    for each in overrides:
        if not any(map(each.fits, listed)):
            raise UsageError(
                f"--tensor-type {shown(each.text)}: fits no tensor that may be quantized",
                hint=f"they are named as in GGUF files: {', '.join(listed[:_SHOWN])} …",
            )
