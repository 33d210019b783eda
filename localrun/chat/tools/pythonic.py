"""Knows no mark: calls written as Python, ``[f(a=1), g(b="x")]``, made into JSON on the way.

Llama 3.2, Llama 4, LFM2 and prompted Gemma 3 write them. Values are Python's literals, or JSON, or
have bare keys and Gemma's quotes; a bare word is a string. An argument without a name gets that of
its place among the tool's properties.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Final

from localrun.chat.tools.declared import STRING, Tools
from localrun.chat.tools.json_text import NAME_MAX, decoded, escaped, valid
from localrun.chat.tools.tape import NotACall, Steps, Tape

DEPTH_MAX: Final = 64
TypesOf = Callable[[str], frozenset[str]]
_WORD = re.compile(r"[^\s,:=()\[\]{}<>\"'`;#]+")
_BLANKS = re.compile(r"[ \t;]+")
_QUOTES: Final = frozenset("\"'<")
# Gemma's: nothing between them is escaped.
_RAW_QUOTES: Final = ('<|"|>', "<escape>")
_NAME = re.compile(r"[\w.\-]+")
_CONSTANTS: Final = {"True": "true", "False": "false", "None": "null"}
_CLOSING: Final = {"[": "]", "(": ")", "{": "}"}


def calls(tape: Tape, tools: Tools, *, known: bool = True) -> Steps[None]:
    """Calls up to the closing bracket, from behind the opening one on.

    known: nothing else says that these are calls, so a name must be a tool's.

    Raises:
        NotACall: they are none, or something else stands where a call or the bracket should.
    """
    while True:
        yield from tape.spaces()
        if (yield from tape.literal("]")):
            return
        yield from _call(tape, tools, known=known)
        tape.hold()
        yield from tape.spaces()
        yield from tape.literal(",", ";")


def statements(tape: Tape, tools: Tools, *, known: bool = True) -> Steps[None]:
    """One or more calls, each a statement or printed, up to the end or a mark.

    known: as for ``calls``.

    Raises:
        NotACall: the first is none.
    """
    first = True
    while True:
        yield from tape.spaces()
        if not first and (yield from tape.peek()) in {"", "`", "<"}:
            return
        yield from _call(tape, tools, known=known)
        first = False
        tape.hold()
        yield from tape.word(_BLANKS, NAME_MAX)


def _call(tape: Tape, tools: Tools, *, known: bool) -> Steps[None]:
    name = yield from tape.word(_NAME, NAME_MAX)
    printed = name == "print"
    if printed:
        yield from tape.expect("(")
        name = yield from tape.word(_NAME, NAME_MAX)
    name = name.removeprefix("default_api.").removesuffix(".call")
    if not name or (known and name not in tools):
        raise NotACall
    yield from tape.spaces()
    yield from tape.expect("(")
    tape.call(name)
    yield from _arguments(tape, name, tools)
    if printed:
        yield from tape.spaces()
        yield from tape.literal(")")


def _arguments(tape: Tape, name: str, tools: Tools) -> Steps[None]:
    """From behind the opening parenthesis on."""
    tool = tools.by_name.get(name)
    places = list(tool.properties) if tool is not None else []
    between = "{"
    count = 0
    while True:
        yield from tape.spaces()
        mark = yield from tape.peek()
        if not mark:
            raise NotACall
        if mark == ")":
            tape.take(1)
            tape.arguments("{}" if between == "{" else "}")
            return
        if between != "{":
            yield from tape.expect(",")
            yield from tape.spaces()
            if (yield from tape.peek()) == ")":
                continue
        place = places[count] if count < len(places) else f"argument_{count + 1}"
        yield from _argument(tape, between, place, partial(tools.types, name))
        between = ", "
        count += 1


def _argument(tape: Tape, between: str, place: str, types: TypesOf) -> Steps[None]:
    word = ""
    if (yield from tape.peek()) not in _QUOTES:
        word = yield from tape.word(_WORD, NAME_MAX)
    if word:
        yield from tape.spaces()
        mark = yield from tape.peek()
        if not mark:
            raise NotACall
        if mark == "=":
            tape.take(1)
            yield from tape.spaces()
            place, word = word, ""
    tape.arguments(f'{between}"{escaped(place)}": ')
    if word:
        tape.arguments(_scalar(word, types(place)))
    else:
        yield from value(tape, types(place))


def value(
    tape: Tape, types: frozenset[str] = frozenset(), members: TypesOf | None = None
) -> Steps[None]:
    """One value, as JSON.

    types: what it may be, where that is known.
    members: the same of an object's members, by their keys.

    Raises:
        NotACall: none stands here; what was made of it so far cannot be taken back.
    """
    open_: list[str] = []
    while True:
        yield from tape.spaces()
        mark = yield from tape.peek()
        if mark and mark in _CLOSING and len(open_) < DEPTH_MAX:
            tape.take(1)
            open_.append(_CLOSING[mark])
            tape.arguments("{" if mark == "{" else "[")
            if (yield from _empty(tape, open_)):
                pass
            else:
                types = frozenset()
                if mark == "{":
                    key = yield from _key(tape)
                    types = members(key) if members and len(open_) == 1 else types
                continue
        else:
            yield from _simple(tape, types)
        following = yield from _following(tape, open_)
        if following is None:
            return
        types = members(following) if members and len(open_) == 1 else frozenset()


def _empty(tape: Tape, open_: list[str]) -> Steps[bool]:
    yield from tape.spaces()
    if (yield from tape.peek()) != open_[-1]:
        return False
    tape.take(1)
    tape.arguments("}" if open_.pop() == "}" else "]")
    return True


def _following(tape: Tape, open_: list[str]) -> Steps[str | None]:
    """What comes after a value: the key of another, empty in a list, or None where all is said."""
    while open_:
        yield from tape.spaces()
        mark = yield from tape.peek()
        comma = mark == ","
        if comma:
            tape.take(1)
            yield from tape.spaces()
            mark = yield from tape.peek()
        if mark and mark == open_[-1]:
            tape.take(1)
            tape.arguments("}" if open_.pop() == "}" else "]")
            continue
        if not comma:
            raise NotACall
        tape.arguments(", ")
        return (yield from _key(tape)) if open_[-1] == "}" else ""
    return None


def _key(tape: Tape) -> Steps[str]:
    """A key and its colon; empty where it is quoted, as its value will be."""
    yield from tape.spaces()
    key = yield from _simple(tape, STRING)
    yield from tape.spaces()
    yield from tape.expect(":")
    tape.arguments(": ")
    return key


def _simple(tape: Tape, types: frozenset[str]) -> Steps[str]:
    """A string, a number, a constant or a bare word, which is returned."""
    mark = yield from tape.peek()
    if not mark or mark not in _QUOTES:
        word = yield from tape.word(_WORD, NAME_MAX)
        if not word or tape.exhausted:
            raise NotACall
        tape.arguments(_scalar(word, types))
        return word
    quote = yield from tape.expect(*_RAW_QUOTES, '"""', '"', "'''", "'")
    tape.arguments('"')
    if quote in _RAW_QUOTES:
        yield from _raw(tape, quote)
        return ""
    if not (yield from decoded(tape, quote, lambda text: tape.arguments(escaped(text)))):
        raise NotACall
    tape.arguments('"')
    return ""


def _raw(tape: Tape, quote: str) -> Steps[None]:
    def sink(text: str) -> None:
        if text:
            tape.arguments(escaped(text))

    if not (yield from tape.passing((quote,), sink)):
        raise NotACall
    tape.arguments('"')


def _scalar(word: str, types: frozenset[str]) -> str:
    """What a word without quotes is in JSON."""
    if types == STRING:
        return f'"{escaped(word)}"'
    if word in _CONSTANTS:
        return _CONSTANTS[word]
    try:
        valid(word)
    except ValueError:
        return f'"{escaped(word)}"'
    return word
