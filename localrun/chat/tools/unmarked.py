"""Knows no mark of its own: calls that look like any other text.

Models without a trained form, and trained ones that forget it, write a call as bare JSON, as a
Python list of calls, or in a code block. Such a text is a call only where it starts a line and
names a tool of the request.
"""

from __future__ import annotations

import re

from localrun.chat.tools import pythonic
from localrun.chat.tools.declared import Tools
from localrun.chat.tools.family import Body, Opening
from localrun.chat.tools.objects import object_call
from localrun.chat.tools.tape import NotACall, Steps, Tape

_LANGUAGE = re.compile(r"[\w+\-]+")


def openings(tools: Tools) -> tuple[Opening, ...]:
    """All forms that need no mark."""

    def braces(tape: Tape) -> Steps[None]:
        yield from object_call(tape, accepts=tools.__contains__)
        yield from _more(tape, tools)

    def brackets(tape: Tape) -> Steps[None]:
        yield from _list(tape, tools)

    return (
        Opening("{", braces, bare=True),
        Opening("[", brackets, bare=True),
        Opening("```", fenced(tools), bare=True),
    )


def fenced(tools: Tools) -> Body:
    """A code block of calls, from behind its mark on. For one answer: it remembers open blocks."""
    inside = False

    def body(tape: Tape) -> Steps[None]:
        nonlocal inside
        language = yield from tape.word(_LANGUAGE, 32)
        if inside and not language:
            # The end of a block that is text opens no other.
            inside = False
            raise NotACall
        inside = True
        yield from tape.spaces()
        if (yield from tape.literal("{")):
            yield from object_call(tape, accepts=tools.__contains__)
            yield from _more(tape, tools)
        elif (yield from tape.literal("[")):
            yield from _list(tape, tools)
        else:
            yield from pythonic.statements(tape, tools)
        yield from tape.spaces()
        inside = not (yield from tape.literal("```"))

    return body


def _more(tape: Tape, tools: Tools) -> Steps[None]:
    """Further objects, as Llama writes them: after a semicolon, a comma or nothing."""
    while True:
        tape.hold()
        yield from tape.spaces()
        separated = yield from tape.literal(";", ",")
        yield from tape.spaces()
        if not (yield from tape.literal("{")):
            if separated:
                raise NotACall
            return
        yield from object_call(tape, accepts=tools.__contains__)


def _list(tape: Tape, tools: Tools) -> Steps[None]:
    """Objects or Python calls, from behind the opening bracket on."""
    yield from tape.spaces()
    if (yield from tape.peek()) == "{":
        yield from objects(tape, tools)
    else:
        yield from pythonic.calls(tape, tools)


def objects(tape: Tape, tools: Tools | None) -> Steps[None]:
    """Objects up to the closing bracket, from behind the opening one on."""
    accepts = None if tools is None else tools.__contains__
    yield from tape.spaces()
    while not (yield from tape.literal("]")):
        yield from tape.expect("{")
        yield from object_call(tape, accepts=accepts)
        tape.hold()
        yield from tape.spaces()
        yield from tape.literal(",")
        yield from tape.spaces()
        if not (yield from tape.peek()):
            return
