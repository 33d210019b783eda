"""Knows no format: JSON and the values of Python calls, while they are written.

JSON is handed on as it stands; what is decided is only where it ends.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

from localrun.chat.tools.tape import NotACall, Sink, Steps, Tape, bounded

NAME_MAX: Final = 256
_PLAIN = re.compile(r'[^"{}\[\]]+')
_IN_STRING = re.compile(r'[^"\\]+')
_SCALAR = re.compile(r"[\w.+\-]+")
_HEX = re.compile(r"[0-9A-Fa-f]+")
_SHORT = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "\n": ""}
_LONG = {"x": 2, "u": 4, "U": 8}


def escaped(text: str) -> str:
    """``text`` as part of a JSON string. Parts of a text may be escaped one by one."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def valid(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is none; ``NaN`` and ``Infinity`` are none either.
    """
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def value(tape: Tape, sink: Sink) -> Steps[bool]:
    """One value, as it is written; whether it has ended.

    Raises:
        NotACall: none begins here.
    """
    first = yield from tape.peek()
    if first == '"':
        return (yield from string(tape, sink))
    if first and first in "{[":
        return (yield from _nested(tape, sink))
    text = yield from tape.word(_SCALAR, NAME_MAX)
    if not text:
        raise NotACall
    sink(text)
    return True


def _nested(tape: Tape, sink: Sink) -> Steps[bool]:
    depth = 0
    while mark := (yield from tape.peek()):
        if mark == '"':
            if not (yield from string(tape, sink)):
                return False
            continue
        if run := tape.run(_PLAIN):
            sink(run)
            continue
        sink(tape.take(1))
        depth += 1 if mark in "{[" else -1
        if depth == 0:
            return True
    return False


def string(tape: Tape, sink: Sink) -> Steps[bool]:
    """A string with its quotes, as it is written; whether it has ended."""
    sink(tape.take(1))
    while mark := (yield from tape.peek()):
        if mark == '"':
            sink(tape.take(1))
            return True
        if mark == "\\":
            sink(tape.take(1))
            if not (yield from tape.peek()):
                return False
            sink(tape.take(1))
        else:
            sink(tape.run(_IN_STRING))
    return False


def short_string(tape: Tape) -> Steps[str]:
    """A string's meaning: a name or a key.

    Raises:
        NotACall: none begins here, or it is no name.
    """
    if (yield from tape.peek()) != '"':
        raise NotACall
    parts, keep = bounded(NAME_MAX)
    if not (yield from string(tape, keep)):
        raise NotACall
    try:
        text = json.loads("".join(parts), strict=False)
    except ValueError as error:
        raise NotACall from error
    assert isinstance(text, str)
    return text


def decoded(tape: Tape, quote: str, sink: Sink) -> Steps[bool]:
    """What a string means, up to its ``quote``, which is taken; whether it has ended.

    Its escapes are JSON's or Python's. Half of a surrogate pair is U+FFFD.
    """
    plain = re.compile(rf"[^\\{re.escape(quote[0])}]+")
    high = 0
    while mark := (yield from tape.peek()):
        code = None
        text = ""
        if mark == "\\":
            tape.take(1)
            code, text = yield from _escape(tape)
        elif mark == quote[0]:
            if (yield from tape.literal(quote)):
                _lone(high, sink)
                return True
            text = tape.take(1)
        else:
            text = tape.run(plain)
        if code is not None and high and 0xDC00 <= code < 0xE000:
            sink(chr(0x10000 + ((high - 0xD800) << 10) + (code - 0xDC00)))
            high = 0
            continue
        _lone(high, sink)
        high = 0
        if code is None:
            sink(text)
        elif 0xD800 <= code < 0xDC00:
            high = code
        else:
            sink("\ufffd" if 0xDC00 <= code < 0xE000 or code > 0x10FFFF else chr(code))
    _lone(high, sink)
    return False


def _lone(high: int, sink: Sink) -> None:
    if high:
        sink("\ufffd")


def _escape(tape: Tape) -> Steps[tuple[int | None, str]]:
    """What follows a backslash: a code point, or text."""
    kind = yield from tape.peek()
    if not kind:
        return None, "\\"
    tape.take(1)
    digits = ""
    while kind in _LONG and len(digits) < _LONG[kind]:
        following = yield from tape.peek()
        if not following or not _HEX.fullmatch(following):
            return None, f"\\{kind}{digits}"
        digits += tape.take(1)
    if digits:
        return int(digits, 16), ""
    return None, _SHORT.get(kind, kind)
