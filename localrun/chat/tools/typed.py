"""Knows no mark: the text of one argument made into JSON, by what its schema says of it.

Where a format has no quotes, only the schema tells the string 5 from the number 5.
"""

from __future__ import annotations

import ast
import json

from localrun.chat.tools.declared import STRING
from localrun.chat.tools.json_text import escaped, valid
from localrun.chat.tools.tape import NotACall, Steps, Tape

_CONTAINERS = {list: "array", dict: "object"}


def value(
    tape: Tape, types: frozenset[str], closings: tuple[str, ...], *, padded: bool = False
) -> Steps[None]:
    """An argument's text up to the first of ``closings``, which is taken.

    A string is handed on as it comes, anything else once it is whole.
    padded: one line break after the opening and before the closing is the format's.

    Raises:
        NotACall: the text ends first.
    """
    if padded:
        yield from tape.literal("\n")
        closings = (*(f"\n{closing}" for closing in closings), *closings)
    if types == STRING:
        yield from _string(tape, closings)
    elif types == STRING | {"null"}:
        if not (yield from tape.literal("null")):
            yield from _string(tape, closings)
        elif (yield from tape.literal(*closings)):
            tape.arguments("null")
        else:
            yield from _string(tape, closings, begun="null")
    else:
        yield from _whole(tape, types, closings)


def _string(tape: Tape, closings: tuple[str, ...], *, begun: str = "") -> Steps[None]:
    tape.arguments(f'"{begun}')

    def sink(text: str) -> None:
        if text:
            tape.arguments(escaped(text))

    if not (yield from tape.passing(closings, sink)):
        raise NotACall
    tape.arguments('"')


def _whole(tape: Tape, types: frozenset[str], closings: tuple[str, ...]) -> Steps[None]:
    parts: list[str] = []
    ended = yield from tape.passing(closings, parts.append)
    text = "".join(parts)
    if not ended:
        tape.arguments(text)
        raise NotACall
    tape.arguments(json_of(text, types))


def json_of(text: str, types: frozenset[str]) -> str:
    """The JSON for an argument's whole text; a string where it is nothing else of ``types``."""
    words = text.strip()
    try:
        found = valid(words)
    except ValueError:
        found, words = _python(words)
    if words and _fits(found, types):
        return words
    return f'"{escaped(text)}"'


def _python(text: str) -> tuple[object, str]:
    """What a model means that has seen more Python than JSON; no text where it is neither."""
    try:
        found = ast.literal_eval(text)
        return found, json.dumps(found, ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        lowered = text.lower()
        return (lowered == "true", lowered) if lowered in {"true", "false"} else (None, "")


def _fits(found: object, types: frozenset[str]) -> bool:
    if not types or "string" not in types:
        return not isinstance(found, str) or not types
    if isinstance(found, bool):
        return "boolean" in types
    if isinstance(found, int | float):
        whole = isinstance(found, int) or found.is_integer()
        return "number" in types or ("integer" in types and whole)
    if found is None:
        return "null" in types
    return isinstance(found, list | dict) and _CONTAINERS[type(found)] in types
