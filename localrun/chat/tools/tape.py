"""Knows no format: text that comes in any pieces, for readers written as if all of it were there.

A reader is a generator that yields where it needs more text. It takes each character once, so the
work is linear, and what it makes cannot depend on how the text was cut.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from functools import lru_cache
from itertools import groupby
from typing import TypeVar

from localrun.chat.tools.pieces import Kind, Piece

_Result = TypeVar("_Result")
Steps = Generator[None, None, _Result]
Sink = Callable[[str], None]

# White space in front of a call is nobody's, so the end of a text waits; never more than this.
_SPACE_MAX = 64


class NotACall(Exception):
    """What was held since a mark is text after all. Never leaves the package."""


class Tape:
    """The text not taken yet, what is held of the taken, and the pieces made of it."""

    def __init__(self) -> None:
        self.ended = False
        self.calls = 0
        self._text = ""
        self._at = 0
        self._held: list[str] | None = None
        self._space = ""
        self._after_call = False
        self._line_start = True
        self._made: list[Piece] = []

    def add(self, text: str) -> None:
        self._text = self._text[self._at :] + text
        self._at = 0

    def pieces(self) -> list[Piece]:
        """What was made since the last time, neighbours of one kind joined."""
        made, self._made = self._made, []
        pieces: list[Piece] = []
        for (kind, index), group in groupby(made, lambda piece: (piece.kind, piece.index)):
            if kind == "call":
                pieces += group
            elif text := "".join(piece.text for piece in group):
                pieces.append(Piece(kind, text, index))
        return pieces

    # Taking

    @property
    def exhausted(self) -> bool:
        """Whether all the text there will ever be is taken."""
        return self.ended and self._at == len(self._text)

    def take(self, count: int) -> str:
        """The next characters, which must be there."""
        text = self._text[self._at : self._at + count]
        self._at += count
        if self._held is not None:
            self._held.append(text)
        return text

    def run(self, pattern: re.Pattern[str]) -> str:
        """As much as is there of what ``pattern``, a repeated class, matches; perhaps nothing."""
        match = pattern.match(self._text, self._at)
        return self.take(match.end() - self._at) if match else ""

    def peek(self) -> Steps[str]:
        """The next character, not taken; empty at the end."""
        while self._at == len(self._text):
            if self.ended:
                return ""
            yield
        return self._text[self._at]

    def one(self) -> Steps[str]:
        """The next character.

        Raises:
            NotACall: the text has ended.
        """
        if not (yield from self.peek()):
            raise NotACall
        return self.take(1)

    def word(self, pattern: re.Pattern[str], most: int) -> Steps[str]:
        """All that ``pattern``, a repeated class, matches.

        Raises:
            NotACall: it is longer than ``most``.
        """
        word = ""
        while (yield from self.peek()):
            run = self.run(pattern)
            word += run
            if len(word) > most:
                raise NotACall
            if not run:
                break
        return word

    def spaces(self) -> Steps[None]:
        while (yield from self.peek()):
            if not self.run(_SPACES):
                return

    def literal(self, *options: str) -> Steps[str]:
        """Take the longest of ``options`` that comes next, if one does."""
        while True:
            rest = self._text[self._at : self._at + max(map(len, options))]
            could = any(len(rest) < len(option) and option.startswith(rest) for option in options)
            if not could or self.ended:
                found = max(
                    (each for each in options if rest.startswith(each)), key=len, default=""
                )
                self.take(len(found))
                return found
            yield

    def expect(self, *options: str) -> Steps[str]:
        """``literal``, or NotACall."""
        found = yield from self.literal(*options)
        if not found:
            raise NotACall
        return found

    def passing(self, marks: tuple[str, ...], sink: Sink) -> Steps[str]:
        """Hand on what comes before the first of ``marks``, and take that; empty at the end."""
        while True:
            found = first_mark(self._text, marks, self._at)
            if found is not None:
                sink(self.take(found[0] - self._at))
                self.take(len(found[1]))
                return found[1]
            if self.ended:
                sink(self.take(len(self._text) - self._at))
                return ""
            left = len(self._text) - self._at
            sink(self.take(left - held(self._text[self._at :], marks)))
            yield

    def until(self, marks: tuple[str, ...], most: int) -> Steps[str]:
        """What comes before the first of ``marks``, which is taken too.

        Raises:
            NotACall: there is none within ``most`` characters.
        """
        parts, keep = bounded(most)
        if not (yield from self.passing(marks, keep)):
            raise NotACall
        return "".join(parts)

    # Holding

    def hold(self, mark: str = "") -> None:
        """Keep what is taken from now on, with ``mark`` in front: it may be text after all.

        What was held before is part of a call.
        """
        self._held = [mark] if mark else []

    def give_back(self) -> None:
        """What is held was text."""
        taken, self._held = self._held or [], None
        self.say("".join(taken))

    def drop(self) -> None:
        """What is held was no text."""
        self._held = None

    # Making

    @property
    def line_start(self) -> bool:
        """Whether the text so far ends in a line break, or is none."""
        return self._line_start

    def say(self, text: str) -> None:
        if self._after_call:
            text = text.lstrip()
        if not text:
            return
        self._after_call = False
        if words := text.rstrip(" \t"):
            self._line_start = words.endswith("\n")
        text = self._space + text
        certain = max(len(text.rstrip()), len(text) - _SPACE_MAX)
        self._space = text[certain:]
        if certain:
            self._make("text", text[:certain])

    def finish(self) -> None:
        """No more text comes: white space at its end is its own."""
        if self._held is not None:
            self.give_back()
        if self._space and not self._after_call:
            self._make("text", self._space)
        self._space = ""

    def call(self, name: str, id: str = "") -> None:
        """A call begins: nothing held is text. Its arguments follow by ``arguments``.

        What is taken from now on is held until it is made into arguments.
        """
        self.hold()
        self._space = ""
        self._after_call = self._line_start = True
        self._made.append(Piece("call", name, self.calls, id))
        self.calls += 1

    def arguments(self, text: str) -> None:
        """Part of the last call's arguments."""
        self.hold()
        self._made.append(Piece("arguments", text, self.calls - 1))

    def _make(self, kind: Kind, text: str) -> None:
        self._made.append(Piece(kind, text))


_SPACES = re.compile(r"\s+")


def bounded(most: int) -> tuple[list[str], Sink]:
    """A sink and what it was handed. It raises NotACall at more than ``most`` characters."""
    parts: list[str] = []
    size = 0

    def keep(part: str) -> None:
        nonlocal size
        parts.append(part)
        size += len(part)
        if size > most:
            raise NotACall

    return parts, keep


def held(text: str, marks: tuple[str, ...]) -> int:
    """Length of the longest end of ``text`` that may be the start of a mark."""
    longest, firsts = _starts(marks)
    for length in range(min(longest, len(text)), 0, -1):
        if text[-length] in firsts:
            end = text[-length:]
            if any(mark.startswith(end) for mark in marks):
                return length
    return 0


def first_mark(text: str, marks: tuple[str, ...], start: int = 0) -> tuple[int, str] | None:
    """Where the earliest mark stands, the longer one where two start together."""
    if not marks:
        return None
    match = _any_of(marks).search(text, start)
    return None if match is None else (match.start(), match.group())


@lru_cache(maxsize=64)
def _any_of(marks: tuple[str, ...]) -> re.Pattern[str]:
    # One search for all: one for each would pass over the whole text for every mark found.
    longest_first = sorted(marks, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)))


@lru_cache(maxsize=64)
def _starts(marks: tuple[str, ...]) -> tuple[int, frozenset[str]]:
    longest = max((len(mark) for mark in marks), default=1) - 1
    return longest, frozenset(mark[0] for mark in marks)
