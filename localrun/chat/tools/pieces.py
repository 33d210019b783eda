"""Knows no format: what an answer is made of, as it is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

Kind = Literal["text", "reasoning", "call", "arguments"]


@dataclass(frozen=True, slots=True)
class Piece:
    """Some of the answer; never part of a mark.

    ``text`` of a ``call`` is the function's name, of ``arguments`` the next part of their JSON.
    ``index`` is which call of the answer it belongs to, ``id`` the one that the model gave it.
    """

    kind: Kind
    text: str
    index: int = 0
    id: str = ""


class AnswerReader(Protocol):
    """Reads one answer. The pieces' texts do not depend on how the text was cut."""

    @property
    def marks(self) -> tuple[str, ...]:
        """What it must see of the text, control tokens or not."""
        ...

    def feed(self, text: str) -> list[Piece]:
        """What is certain so far."""
        ...

    def finish(self) -> list[Piece]:
        """What was held back; call once, at the answer's end."""
        ...
