"""Knows no matcher: llama.cpp's grammar notation, rewritten as the Lark notation of llguidance.

The notation is that of llama.cpp's ``grammars/README.md`` without its token references
(https://github.com/ggml-org/llama.cpp/tree/master/grammars). llguidance has a converter of its own
that refuses escapes such as ``\\u00e9``, tabs, ``{0}``, two rules whose names differ in case, and
reads ``&&`` in a class as an operator, so this is another.

llguidance's lexer takes the longest lexeme, and never goes back to a shorter one that would have
let the text go on. So a grammar without recursion becomes one lexeme, which is exact and fast; in
any other each character is a lexeme of its own, which is exact too, but a mask takes milliseconds
then instead of microseconds.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Final, NoReturn

_DEEPEST: Final = 64
_NAME: Final = re.compile(r"[A-Za-z0-9_-]+")
_SPACE: Final = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_SPACE_AND_LINES: Final = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_ALTERNATIVE: Final = re.compile(_SPACE_AND_LINES.pattern + r"\|")
_COUNT: Final = re.compile(r"\{[ \t]*(\d{1,9})[ \t]*(?:(,)[ \t]*(\d{1,9})?[ \t]*)?\}")
_ESCAPE: Final = re.compile(
    r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|([tnr\"\\\[\]]))"
)
_ESCAPED: Final = {"t": "\t", "n": "\n", "r": "\r"}
_ANY: Final = r"/[\x{0}-\x{10FFFF}]/"
_LAST_POINT: Final = 0x10FFFF


class GbnfError(Exception):
    """The text is no grammar; the message says where and why. Never leaves the engine."""


@dataclass(frozen=True, slots=True)
class _Reference:
    rule: str
    at: int


@dataclass(frozen=True, slots=True)
class _Literal:
    text: str


_Parts = list[str | _Literal | _Reference]
"""A rule's body: Lark, but for strings and for the names of rules."""


def lark_of_gbnf(text: str) -> str:
    """The same grammar for llguidance.

    Raises:
        GbnfError: a mistake, with its line.
    """
    reader = _Reader(text)
    rules = reader.rules()
    if "root" not in rules:
        raise GbnfError("there is no rule called root")
    for parts in rules.values():
        for reference in _references(parts):
            if reference.rule not in rules:
                reader.fail(f"there is no rule called {reference.rule}", reference.at)
    settled = _not_recursive(rules)
    lexeme = "root" in settled
    names = {name: f"{'T' if lexeme else 'r'}{at}" for at, name in enumerate(rules)}
    return "\n".join(
        [
            f"start: {names['root']}",
            *(
                f"{names[name]}: {' '.join(_written(part, names, lexeme) for part in parts)}"
                for name, parts in rules.items()
                if not lexeme or name in settled
            ),
        ]
    )


def quoted(text: str) -> str:
    """A string of Lark's: JSON's, but DEL may not stand in it either."""
    return json.dumps(text).replace("\x7f", "\\u007f")


def _written(part: str | _Literal | _Reference, names: dict[str, str], lexeme: bool) -> str:
    if isinstance(part, _Reference):
        return names[part.rule]
    if isinstance(part, str):
        return part
    if lexeme or len(part.text) < 2:
        return quoted(part.text)
    return f"({' '.join(quoted(mark) for mark in part.text)})"


def _references(parts: _Parts) -> list[_Reference]:
    return [part for part in parts if isinstance(part, _Reference)]


def _not_recursive(rules: dict[str, _Parts]) -> set[str]:
    """The rules from which no way leads back to one."""
    waiting = {name: {part.rule for part in _references(parts)} for name, parts in rules.items()}
    users: defaultdict[str, list[str]] = defaultdict(list)
    for name, used in waiting.items():
        for other in used:
            users[other].append(name)
    ready = [name for name, used in waiting.items() if not used]
    found = set(ready)
    while ready:
        done = ready.pop()
        for user in users[done]:
            waiting[user].discard(done)
            if not waiting[user]:
                found.add(user)
                ready.append(user)
    return found


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def rules(self) -> dict[str, _Parts]:
        found: dict[str, _Parts] = {}
        self._skip(_SPACE_AND_LINES)
        while self._at < len(self._text):
            start = self._at
            name = self._name()
            self._skip(_SPACE)
            if not self._take("::="):
                self.fail("::= is missing after the name of a rule")
            if name in found:
                self.fail(f"the rule {name} is there twice", start)
            self._skip(_SPACE_AND_LINES)
            parts: _Parts = []
            found[name] = parts
            self._alternatives(parts, 0)
            if self._at < len(self._text) and self._text[self._at] not in "\r\n":
                self.fail(f"{self._text[self._at]!r} is out of place")
            self._skip(_SPACE_AND_LINES)
        return found

    def fail(self, problem: str, at: int | None = None) -> NoReturn:
        """Raises GbnfError with the line of ``at``, by default where the reader is."""
        line = self._text.count("\n", 0, self._at if at is None else at) + 1
        raise GbnfError(f"line {line}: {problem}")

    def _alternatives(self, parts: _Parts, depth: int) -> None:
        """``depth`` 0 ends with the line, unless the next goes on with ``|``; a group ends with its
        bracket."""
        if depth > _DEEPEST:
            self.fail(f"groups lie deeper than {_DEEPEST}")
        space = _SPACE_AND_LINES if depth else _SPACE
        self._sequence(parts, depth, space)
        while more := _ALTERNATIVE.match(self._text, self._at):
            self._at = more.end()
            parts.append("|")
            self._skip(_SPACE_AND_LINES)
            self._sequence(parts, depth, space)

    def _sequence(self, parts: _Parts, depth: int, space: re.Pattern[str]) -> None:
        start = len(parts)
        while self._at < len(self._text):
            before = len(parts)
            if not self._element(parts, depth):
                break
            self._skip(space)
            while self._repetition(parts, before):
                self._skip(space)
        if len(parts) == start:
            parts.append('""')

    def _element(self, parts: _Parts, depth: int) -> bool:
        mark = self._text[self._at]
        if mark == '"':
            parts.append(_Literal(self._literal()))
        elif mark == "[":
            parts.append(self._class())
        elif mark == ".":
            self._at += 1
            parts.append(_ANY)
        elif mark == "(":
            self._at += 1
            self._skip(_SPACE_AND_LINES)
            parts.append("(")
            self._alternatives(parts, depth + 1)
            if not self._take(")"):
                self.fail("a group is not closed")
            parts.append(")")
        elif _NAME.match(self._text, self._at):
            at = self._at
            parts.append(_Reference(self._name(), at))
        else:
            return False
        return True

    def _repetition(self, parts: _Parts, start: int) -> bool:
        """A mark of repetition after the element that begins at ``start`` of ``parts``."""
        mark = self._text[self._at : self._at + 1]
        if mark and mark in "*+?":
            self._at += 1
        elif mark == "{":
            count = _COUNT.match(self._text, self._at)
            if count is None:
                self.fail("a repetition is {m}, {m,} or {m,n}")
            self._at = count.end()
            least, most = int(count[1]), count[3] if count[2] else count[1]
            if most is not None and int(most) < least:
                self.fail("a repetition ends below where it begins")
            if most is not None and int(most) == 0:
                parts[start:] = ['""']
                return True
            mark = f"{{{least},{'' if most is None else int(most)}}}"
        else:
            return False
        parts.insert(start, "(")
        parts.append(f"){mark}")
        return True

    def _literal(self) -> str:
        found = []
        self._at += 1
        while not self._take('"'):
            found.append(self._character("a string"))
        return "".join(found)

    def _class(self) -> str:
        """A class in the notation of regular expressions, with no character that means anything."""
        self._at += 1
        negated = "^" if self._take("^") else ""
        ranges = []
        while not self._take("]"):
            first = last = self._point("a class of characters")
            if self._text[self._at : self._at + 1] == "-" and not self._text.startswith(
                "-]", self._at
            ):
                self._at += 1
                last = self._point("a class of characters")
            if last < first:
                self.fail("a range of characters ends before it begins")
            ranges.append(rf"\x{{{first:X}}}-\x{{{last:X}}}")
        if not ranges:
            self.fail("a class of characters is empty")
        return f"/[{negated}{''.join(ranges)}]/"

    def _point(self, inside: str) -> int:
        return ord(self._character(inside))

    def _character(self, inside: str) -> str:
        if self._at >= len(self._text):
            self.fail(f"{inside} is not closed")
        if self._text[self._at] != "\\":
            self._at += 1
            return self._text[self._at - 1]
        escape = _ESCAPE.match(self._text, self._at)
        if escape is None:
            self.fail(f"there is no escape {self._text[self._at : self._at + 2]}")
        self._at = escape.end()
        digits = escape[1] or escape[2] or escape[3]
        if digits is None:
            return _ESCAPED.get(escape[4], escape[4])
        point = int(digits, 16)
        if point > _LAST_POINT or 0xD800 <= point <= 0xDFFF:
            self.fail(f"{escape[0]} is no character")
        return chr(point)

    def _name(self) -> str:
        name = _NAME.match(self._text, self._at)
        if name is None:
            self.fail(f"{self._text[self._at : self._at + 1]!r} stands where a rule should begin")
        self._at = name.end()
        return name[0]

    def _take(self, mark: str) -> bool:
        if not self._text.startswith(mark, self._at):
            return False
        self._at += len(mark)
        return True

    def _skip(self, what: re.Pattern[str]) -> None:
        found = what.match(self._text, self._at)
        assert found is not None
        self._at = found.end()
