"""Knows no family: what each says of itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from localrun.chat.tools.declared import Tool, Tools
from localrun.chat.tools.pieces import Piece
from localrun.chat.tools.tape import NotACall, Steps, Tape

Body = Callable[[Tape], Steps[None]]


@dataclass(frozen=True, slots=True)
class Opening:
    """What begins calls, and what reads them from there on.

    ``body`` raises NotACall where they are none; the mark and what was taken are then text.
    ``bare``: it is an ordinary word, and counts at the start of a line alone.
    """

    mark: str
    body: Body
    bare: bool = False


@dataclass(frozen=True, slots=True)
class Asked:
    """A call that must come: one of ``tools``; ``several`` may follow each other."""

    tools: tuple[Tool, ...]
    several: bool
    template: str


@dataclass(frozen=True, slots=True)
class Forced:
    """``opening`` begins the answer; ``start`` and ``rules`` say what follows, as Lark."""

    opening: str
    start: str
    rules: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Family:
    """One way to write calls.

    known_by: it is a template's family where all of one of these stand in its source.
    marks: control tokens that its readers must see.
    closings: the texts of which one ends a call; the template says which, else the first.
    """

    name: str
    known_by: tuple[tuple[str, ...], ...]
    marks: tuple[str, ...]
    openings: Callable[[Tools], Iterable[Opening]]
    forced: Callable[[Asked], Forced]
    closings: tuple[str, ...] = ()


@dataclass(slots=True)
class CallReader:
    """Reads the text of one answer that has no reasoning (any more)."""

    marks: tuple[str, ...]
    openings: tuple[Opening, ...]
    _tape: Tape = field(default_factory=Tape, init=False)
    _steps: Steps[None] = field(init=False)

    def __post_init__(self) -> None:
        self._steps = _reading(self._tape, {each.mark: each for each in self.openings})
        next(self._steps)

    def feed(self, text: str) -> list[Piece]:
        self._tape.add(text)
        next(self._steps)
        return self._tape.pieces()

    def finish(self) -> list[Piece]:
        self._tape.ended = True
        next(self._steps, None)
        self._tape.finish()
        return self._tape.pieces()


def _reading(tape: Tape, openings: dict[str, Opening]) -> Steps[None]:
    marks = tuple(openings)
    while mark := (yield from tape.passing(marks, tape.say)):
        opening = openings[mark]
        if opening.bare and not tape.line_start:
            tape.say(mark)
            continue
        tape.hold(mark)
        before = tape.calls
        try:
            yield from opening.body(tape)
            if tape.calls == before:
                raise NotACall
        except NotACall:
            # An answer that was cut within a call has no text at its end.
            if not (tape.exhausted and tape.calls > before):
                tape.give_back()
        tape.drop()
    while not tape.ended:
        yield
