"""Knows no editor: values set within JSON that may have comments, all else kept to the byte.

Editors keep their settings as JSON with ``//`` and ``/* */`` comments and trailing commas. A parser
that reads and writes it again would lose them, so the places are found and only those are changed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from localrun.errors import UsageError

MAX_DEPTH = 64
_SPACE = re.compile(r"(?:[\s\ufeff]|//[^\n]*|/\*.*?\*/)*", re.DOTALL)
_STRING = re.compile(r'"(?:[^"\\\n]|\\.)*"')
_WORD = re.compile(r"[^\s,\]}\[{:\"/]+")
_CLOSING = {"{": "}", "[": "]"}


@dataclass(frozen=True, slots=True)
class Among:
    """An element of an array: the first with the fields of ``match``, else a new one at its end;
    then it is to hold ``fields`` too."""

    match: Mapping[str, Any]
    fields: Mapping[str, Any]


# A mapping is merged key by key, an ``Among`` element by element; anything else takes the place of
# what is there.
Wanted = Mapping[str, Any] | Among


def plain(wanted: Any) -> Any:
    """The same as a document of its own."""
    match wanted:
        case Among(match, fields):
            return [{**match, **plain(fields)}]
        case Mapping():
            return {key: plain(value) for key, value in wanted.items()}
        case _:
            return wanted


def merged(text: str, wanted: Wanted) -> str:
    """``text`` with ``wanted`` in it; an empty text is a document yet to be.

    Raises:
        UsageError: it is no JSON, or something else stands where an object or array is needed.
    """
    newline = "\r\n" if "\r\n" in text else "\n"
    if not _SPACE.sub("", text, count=1):
        between = newline if text and not text.endswith("\n") else ""
        whole = json.dumps(plain(wanted), indent=2) + "\n"
        return text + between + whole.replace("\n", newline)
    document = _Reader(text).document()
    for start, end, new in sorted(_edits(text, document, wanted, ""), reverse=True):
        text = text[:start] + new.replace("\n", newline) + text[end:]
    return text


@dataclass(slots=True)
class _Node:
    """A value and where it stands. Members of an object have keys, those of an array have none."""

    start: int
    end: int = 0
    kind: str = ""
    members: list[tuple[str, _Node]] = field(default_factory=list)
    scalar: Any = None

    def member(self, key: str) -> _Node | None:
        # Of a key that stands twice, readers take the last.
        return dict(self.members).get(key)

    def value(self) -> Any:
        if self.kind == "{":
            return {key: node.value() for key, node in self.members}
        if self.kind == "[":
            return [node.value() for _, node in self.members]
        return self.scalar


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def document(self) -> _Node:
        node = self._value(0)
        self._skip()
        if self._at != len(self._text):
            raise self._error("something follows the end")
        return node

    def _value(self, depth: int) -> _Node:
        self._skip()
        if depth > MAX_DEPTH:
            raise self._error(f"nested more than {MAX_DEPTH} deep")
        node = _Node(self._at)
        opening = self._text[self._at : self._at + 1]
        if opening in _CLOSING:
            node.kind = opening
            self._at += 1
            self._members(node, depth)
        else:
            node.scalar = self._scalar()
        node.end = self._at
        return node

    def _members(self, node: _Node, depth: int) -> None:
        while not self._take(_CLOSING[node.kind]):
            key = self._key() if node.kind == "{" else ""
            node.members.append((key, self._value(depth + 1)))
            if not self._take(","):
                if not self._take(_CLOSING[node.kind]):
                    raise self._error(f"neither ',' nor '{_CLOSING[node.kind]}'")
                return

    def _key(self) -> str:
        self._skip()
        key = self._scalar()
        if not isinstance(key, str) or not self._take(":"):
            raise self._error("no key and ':'")
        return key

    def _scalar(self) -> Any:
        found = _STRING.match(self._text, self._at) or _WORD.match(self._text, self._at)
        if found is None:
            raise self._error("no value")
        try:
            value = json.loads(found.group(), strict=False)
        except ValueError as error:
            raise self._error("no value") from error
        self._at = found.end()
        return value

    def _take(self, character: str) -> bool:
        self._skip()
        if not self._text.startswith(character, self._at):
            return False
        self._at += 1
        return True

    def _skip(self) -> None:
        found = _SPACE.match(self._text, self._at)
        assert found is not None
        self._at = found.end()

    def _error(self, problem: str) -> UsageError:
        line = self._text.count("\n", 0, self._at) + 1
        return UsageError(f"line {line} is no JSON: {problem}")


_Edit = tuple[int, int, str]


def _edits(text: str, node: _Node, wanted: Wanted, where: str) -> Iterator[_Edit]:
    if isinstance(wanted, Among):
        yield from _edits_of_array(text, node, wanted, where)
        return
    if node.kind != "{":
        raise UsageError(f"{where or 'the document'} is not an object")
    new = []
    for key, value in wanted.items():
        there = node.member(key)
        if there is None:
            new.append(f"{json.dumps(key)}: {_rendered(text, node, value)}")
        elif isinstance(value, Mapping | Among):
            yield from _edits(text, there, value, f"{where}.{key}".lstrip("."))
        elif there.value() != value:
            yield there.start, there.end, json.dumps(value)
    if new:
        yield from _inserted(text, node, new)


def _edits_of_array(text: str, node: _Node, wanted: Among, where: str) -> Iterator[_Edit]:
    if node.kind != "[":
        raise UsageError(f"{where or 'the document'} is not an array")
    for _, element in node.members:
        fields = element.value()
        if isinstance(fields, dict) and wanted.match.items() <= _hashable(fields).items():
            yield from _edits(text, element, wanted.fields, f"{where}[]")
            return
    yield from _inserted(text, node, [_rendered(text, node, plain(wanted)[0])])


def _hashable(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if isinstance(value, str)}


def _inserted(text: str, node: _Node, members: list[str]) -> Iterator[_Edit]:
    """Behind what is in ``node``, its comments too, and in front of the bracket that ends it."""
    indent, outer = _indents(text, node)
    lines = ",".join(f"\n{indent}{member}" for member in members)
    bracket = node.end - 1
    behind = len(text[:bracket].rstrip())
    after = _SPACE.match(text, node.members[-1][1].end) if node.members else None
    if after is not None and not text.startswith(",", after.end()):
        end = node.members[-1][1].end
        if end == behind:
            lines = "," + lines
        else:
            yield end, end, ","
    closing = "" if "\n" in text[behind:bracket] else f"\n{outer}"
    yield behind, behind, lines + closing


def _indents(text: str, node: _Node) -> tuple[str, str]:
    """Of the members of ``node``, and of the line that it begins on."""
    outer = _indent_at(text, node.start) or ""
    first = _indent_at(text, node.members[0][1].start) if node.members else None
    if first is not None and "\n" in text[node.start : node.members[0][1].start]:
        return first, outer
    return outer + "  ", outer


def _indent_at(text: str, at: int) -> str:
    line = text[text.rfind("\n", 0, at) + 1 : at]
    return line[: len(line) - len(line.lstrip(" \t"))]


def _rendered(text: str, node: _Node, value: Any) -> str:
    """A value that becomes a member of ``node``, in lines of its indentation."""
    indent, outer = _indents(text, node)
    unit = indent.removeprefix(outer) or "  "
    return json.dumps(plain(value), indent=unit).replace("\n", f"\n{indent}")
