"""Knows no mark: a call that is a JSON object, ``{"name": …, "arguments": {…}}``.

Its keys come in any order and go by several names. The arguments are handed on as they are
written, once the function's name is known.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from localrun.chat.tools.json_text import decoded, short_string, value
from localrun.chat.tools.tape import NotACall, Sink, Steps, Tape

_NAMES: Final = frozenset({"name", "tool_name", "function", "tool"})
_ARGUMENTS: Final = frozenset({"arguments", "parameters", "args", "input"})
_IDS: Final = frozenset({"id", "tool_call_id", "call_id"})
_KEYS: Final = _NAMES | _ARGUMENTS | _IDS | {"type"}
_SCALAR: Final = re.compile(r"[\w.+\-]+")

Accepts = Callable[[str], bool]


class _Call:
    """What one object has said so far."""

    def __init__(self, *, accepts: Accepts | None) -> None:
        self.accepts = accepts
        self.name = ""
        self.id = ""
        self.early: list[str] | None = None
        self.begun = False


def object_call(tape: Tape, *, accepts: Accepts | None = None) -> Steps[None]:
    """One call, from behind its opening brace on.

    accepts: where nothing else marks the object as a call, whether the name is a tool's; keys that
        calls do not have are not waited for either.

    Raises:
        NotACall: it is none, or the text ends before the name and the beginning of the arguments.
    """
    call = _Call(accepts=accepts)
    yield from _members(tape, call, outer=True)
    if not call.begun and call.name:
        _begin(tape, call)
        tape.arguments("".join(call.early) if call.early else "{}")
    if not call.begun:
        raise NotACall


def _begin(tape: Tape, call: _Call) -> None:
    call.begun = True
    tape.call(call.name, call.id)


def _members(tape: Tape, call: _Call, *, outer: bool) -> Steps[None]:
    first = True
    while True:
        yield from tape.spaces()
        mark = yield from tape.peek()
        if call.begun and not mark:
            return
        if mark == "}":
            tape.take(1)
            return
        if not first:
            yield from tape.expect(",")
            yield from tape.spaces()
        first = False
        key = yield from short_string(tape)
        if call.accepts is not None and key not in _KEYS:
            raise NotACall
        yield from tape.spaces()
        yield from tape.expect(":")
        yield from tape.spaces()
        if not (yield from _member(tape, call, key, outer=outer)):
            return


def _member(tape: Tape, call: _Call, key: str, *, outer: bool) -> Steps[bool]:
    """One member's value; whether it has ended."""
    first = yield from tape.peek()
    if key in _NAMES and not call.name and first == '"':
        call.name = yield from short_string(tape)
        if not call.name or (call.accepts is not None and not call.accepts(call.name)):
            raise NotACall
        return True
    if key == "function" and first == "{" and outer:
        tape.take(1)
        yield from _members(tape, call, outer=False)
        return True
    if key in _ARGUMENTS and not call.begun and call.early is None:
        return (yield from _arguments(tape, call, first))
    if key in _IDS and not call.begun and first == '"':
        call.id = yield from short_string(tape)
        return True
    ended = yield from value(tape, lambda _: None)
    if not ended and not call.begun:
        raise NotACall
    return ended


def _arguments(tape: Tape, call: _Call, first: str) -> Steps[bool]:
    if not first:
        raise NotACall
    if first not in '{["':
        # A function without arguments: null.
        if (yield from tape.word(_SCALAR, 8)) != "null":
            raise NotACall
        call.early = ["{}"]
        return True
    early: list[str] = []
    sink: Sink = early.append
    if call.name:
        _begin(tape, call)
        sink = tape.arguments
    if first == '"':
        # Some write the object as a string.
        tape.take(1)
        ended = yield from decoded(tape, '"', sink)
    else:
        ended = yield from value(tape, sink)
    if not call.begun:
        if not ended:
            raise NotACall
        call.early = early
    return ended
