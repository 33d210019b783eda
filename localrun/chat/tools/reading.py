"""Knows no family's form: one reader for an answer's text, reasoning and calls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from localrun.chat import reasoning
from localrun.chat.tools import harmony
from localrun.chat.tools.declared import declared
from localrun.chat.tools.families import family_of
from localrun.chat.tools.family import CallReader
from localrun.chat.tools.harmony import HarmonyReader, is_harmony
from localrun.chat.tools.pieces import AnswerReader, Piece


def reader_for(
    template: str | None, prompt_tail: str, tools: Sequence[Mapping[str, Any]]
) -> AnswerReader:
    """The reader of one answer.

    ``prompt_tail`` is the rendered prompt or its end, as for ``reasoning.for_template``. Without
    ``tools`` nothing is a call.
    """
    if not tools:
        return reasoning.for_template(template, prompt_tail)
    known = declared(tools)
    if is_harmony(template):
        return HarmonyReader(prompt_tail, known)
    family = family_of(template)
    calls = CallReader(family.marks, tuple(family.openings(known)))
    return _Both(reasoning.for_template(template, prompt_tail), calls)


def closing_mark(template: str | None) -> str | None:
    """The text that ends one call, where the family has one."""
    if is_harmony(template):
        return harmony.CLOSING
    closings = family_of(template).closings
    return next((each for each in closings if each in (template or "")), next(iter(closings), None))


class _Both:
    """Reasoning is told apart first; a call within a thought is a thought."""

    def __init__(self, thoughts: AnswerReader, calls: CallReader) -> None:
        self.marks = tuple(dict.fromkeys(thoughts.marks + calls.marks))
        self._thoughts = thoughts
        self._calls = calls

    def feed(self, text: str) -> list[Piece]:
        return self._read(self._thoughts.feed(text))

    def finish(self) -> list[Piece]:
        return self._read(self._thoughts.finish()) + self._calls.finish()

    def _read(self, pieces: Iterable[Piece]) -> list[Piece]:
        read: list[Piece] = []
        for piece in pieces:
            read += self._calls.feed(piece.text) if piece.kind == "text" else [piece]
        return read
