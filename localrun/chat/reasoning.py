"""Knows no model's name: tells what an assistant thought from what it says, while it streams.

A model writes its reasoning between marks that its chat template names. Two shapes exist:

    paired     <think> … </think> answer          one block, before the answer
    channels   <|channel|>analysis<|message|> … <|end|><|start|>assistant<|channel|>final…
               gpt-oss' harmony (https://cookbook.openai.com/articles/openai-harmony)

A pair counts only at the start of an answer: later it is the answer's own words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

Kind = Literal["text", "reasoning"]


class Piece(NamedTuple):
    """Some of the answer; never part of a mark."""

    kind: Kind
    text: str


@dataclass(frozen=True, slots=True)
class Pair:
    """The marks around a reasoning block."""

    opening: str
    closing: str


PAIRS = (
    Pair("<think>", "</think>"),  # DeepSeek, Qwen, GLM, Kimi K2, MiniMax, Nemotron
    Pair("[THINK]", "[/THINK]"),  # Mistral
    Pair("<|channel>thought", "<channel|>"),  # Gemma 4
    Pair("<|START_THINKING|>", "<|END_THINKING|>"),  # Cohere
    Pair("<seed:think>", "</seed:think>"),  # Seed-OSS
    Pair("<mm:think>", "</mm:think>"),  # MiniMax M3
    Pair("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    Pair("◁think▷", "◁/think▷"),  # Kimi-VL
)
_CHANNEL, _MESSAGE = "<|channel|>", "<|message|>"
_HEADER_MAX = 256
_ENDS = ("<|end|>", "<|return|>", "<|call|>", "<|start|>")


class ReasoningSplitter(Protocol):
    """One answer's splitter. The pieces' texts do not depend on how the text was cut."""

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


def for_template(template: str | None, prompt_tail: str) -> ReasoningSplitter:
    """The splitter for one answer.

    ``prompt_tail`` is the rendered prompt or its end: a generation prompt that ends in an opening
    mark has begun the reasoning already.
    """
    source = template or ""
    if _CHANNEL in source and _MESSAGE in source:
        return _Channels(prompt_tail)
    pairs = [pair for pair in PAIRS if pair.opening in source or pair.closing in source]
    tail = prompt_tail.rstrip()
    for pair in pairs:
        if tail.endswith(pair.opening):
            return _Paired((pair,), opened=pair)
    return _Paired(tuple(pairs), opened=None)


def held(text: str, marks: tuple[str, ...]) -> int:
    """Length of the longest end of ``text`` that may be the start of a mark."""
    longest = max((len(mark) for mark in marks), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        end = text[-length:]
        if any(mark.startswith(end) for mark in marks):
            return length
    return 0


def first_mark(text: str, marks: tuple[str, ...]) -> tuple[int, str] | None:
    """Where the earliest mark stands, the longer one where two start together."""
    found = [(text.find(mark), -len(mark), mark) for mark in marks if mark in text]
    if not found:
        return None
    index, _, mark = min(found)
    return index, mark


class _Paired:
    """``start`` (a pair may open) → ``inside`` → ``after`` (line breaks dropped) → ``text``."""

    def __init__(self, pairs: tuple[Pair, ...], *, opened: Pair | None) -> None:
        self._pairs = pairs
        self.marks = tuple(mark for pair in pairs for mark in (pair.opening, pair.closing))
        self._pair = opened
        self._state = "inside" if opened else ("start" if pairs else "text")
        self._begun = False
        self._buffer = ""

    def feed(self, text: str) -> list[Piece]:
        if self._state == "text" and not self._buffer:
            return [Piece("text", text)] if text else []
        self._buffer += text
        pieces: list[Piece] = []
        while self._step(pieces):
            pass
        return pieces

    def finish(self) -> list[Piece]:
        rest, self._buffer = self._buffer, ""
        if self._state == "inside":
            rest = rest.rstrip() if self._begun else rest.strip()
            return [Piece("reasoning", rest)] if rest else []
        if self._state == "after":
            rest = rest.lstrip("\r\n")
        return [Piece("text", rest)] if rest else []

    def _step(self, pieces: list[Piece]) -> bool:
        """Take what is certain from the buffer; True where the state changed."""
        if self._state == "start":
            return self._start()
        if self._state == "inside":
            return self._inside(pieces)
        if self._state == "after":
            self._buffer = self._buffer.lstrip("\r\n")
            if not self._buffer:
                return False
            self._state = "text"
        if self._buffer:
            pieces.append(Piece("text", self._buffer))
            self._buffer = ""
        return False

    def _start(self) -> bool:
        words = self._buffer.lstrip()
        for pair in self._pairs:
            if words.startswith(pair.opening):
                self._buffer = words[len(pair.opening) :]
                self._pair, self._state = pair, "inside"
                return True
        if any(pair.opening.startswith(words) for pair in self._pairs):
            return False
        self._state = "text"
        return True

    def _inside(self, pieces: list[Piece]) -> bool:
        assert self._pair is not None
        marks = (self._pair.closing,)
        if not self._begun:
            # A block's first and last line breaks belong to the marks, not to the thought.
            self._buffer = self._buffer.lstrip()
        mark = first_mark(self._buffer, marks)
        if mark is not None:
            self._emit(self._buffer[: mark[0]].rstrip(), pieces)
            self._buffer = self._buffer[mark[0] + len(mark[1]) :]
            self._state = "after"
            return True
        certain = self._buffer[: len(self._buffer) - held(self._buffer, marks)].rstrip()
        self._emit(certain, pieces)
        self._buffer = self._buffer[len(certain) :]
        return False

    def _emit(self, text: str, pieces: list[Piece]) -> None:
        if text:
            self._begun = True
            pieces.append(Piece("reasoning", text))


class _Channels:
    """Header (up to ``<|message|>``) and body (up to an end mark) alternate."""

    marks = (_CHANNEL, _MESSAGE, *_ENDS)

    def __init__(self, prompt_tail: str) -> None:
        self._kind: Kind | None = None
        self._buffer = ""
        # A generation prompt ends in <|start|>assistant; one that opens a channel has said which.
        _, _, header = prompt_tail.rstrip().rpartition("<|start|>")
        if "<|end|>" not in header:
            self.feed(header[header.find(_CHANNEL) :] if _CHANNEL in header else "")

    def feed(self, text: str) -> list[Piece]:
        self._buffer += text
        pieces: list[Piece] = []
        while self._header(pieces) if self._kind is None else self._body(self._kind, pieces):
            pass
        return pieces

    def finish(self) -> list[Piece]:
        rest, self._buffer = self._buffer, ""
        if self._kind is not None:
            return [Piece(self._kind, rest)] if rest else []
        # A model that never opened a channel has simply answered.
        return [Piece("text", rest)] if rest.strip() and _CHANNEL not in rest else []

    def _header(self, pieces: list[Piece]) -> bool:
        header, mark, rest = self._buffer.partition(_MESSAGE)
        # An answer that is no header at all must not be held back to its end. What was held is
        # taken as it is: a mark left at its start would be read as the next header for ever.
        if len(header) - (0 if mark else held(header, (_MESSAGE,))) >= _HEADER_MAX:
            self._kind = "text"
            pieces.append(Piece("text", self._buffer[:_HEADER_MAX]))
            self._buffer = self._buffer[_HEADER_MAX:]
            return True
        if not mark:
            return False
        _, _, channel = header.rpartition(_CHANNEL)
        self._kind = "reasoning" if channel.startswith("analysis") else "text"
        self._buffer = rest
        return True

    def _body(self, kind: Kind, pieces: list[Piece]) -> bool:
        marks = (*_ENDS, _CHANNEL)
        mark = first_mark(self._buffer, marks)
        end = mark[0] if mark else len(self._buffer) - held(self._buffer, marks)
        if end:
            pieces.append(Piece(kind, self._buffer[:end]))
        self._buffer = self._buffer[end:]
        if mark is None:
            return False
        self._kind = None
        if mark[1] != _CHANNEL:
            self._buffer = self._buffer[len(mark[1]) :]
        return True
