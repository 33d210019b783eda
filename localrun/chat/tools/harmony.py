"""Knows no wire: gpt-oss' harmony, messages that each have a channel and perhaps a recipient.

    <|channel|>analysis<|message|>I need the weather.<|end|>
    <|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>
    {"city": "Paris"}<|call|>

https://cookbook.openai.com/articles/openai-harmony. The recipient may stand before the channel too.
What is said on the commentary channel to nobody is text, the analysis is reasoning.
"""

from __future__ import annotations

import re
from typing import Final

from localrun.chat.tools.declared import Tools
from localrun.chat.tools.family import Asked, Forced
from localrun.chat.tools.lark import alternatives
from localrun.chat.tools.pieces import Kind, Piece
from localrun.chat.tools.tape import first_mark, held

_CHANNEL, _MESSAGE, _START = "<|channel|>", "<|message|>", "<|start|>"
_CONSTRAIN: Final = " <|constrain|>json"
_HEADER_MAX: Final = 256
CLOSING: Final = "<|call|>"
_ENDS: Final = ("<|end|>", "<|return|>", CLOSING, _START)
_RECIPIENT: Final = re.compile(r"\bto=([^\s<]+)")
_FUNCTIONS: Final = "functions."


def is_harmony(template: str | None) -> bool:
    return _CHANNEL in (template or "") and _MESSAGE in (template or "")


class HarmonyReader:
    """Header (up to ``<|message|>``) and body (up to an end mark) alternate.

    ``tools`` None reads calls as text: none were asked for.
    """

    def __init__(self, prompt_tail: str, tools: Tools | None = None) -> None:
        constrain = () if tools is None else ("<|constrain|>",)
        self.marks: tuple[str, ...] = (_CHANNEL, _MESSAGE, *_ENDS, *constrain)
        self._tools = tools
        self._kind: Kind | None = None
        self._calls = 0
        self._empty = False
        self._buffer = ""
        # A generation prompt ends in <|start|>assistant; one that opens a channel has said which.
        if "<|end|>" not in (header := _last_header(prompt_tail)):
            self.feed(header[header.find(_CHANNEL) :] if _CHANNEL in header else "")

    def feed(self, text: str) -> list[Piece]:
        self._buffer += text
        pieces: list[Piece] = []
        while self._header(pieces) if self._kind is None else self._body(self._kind, pieces):
            pass
        return pieces

    def finish(self) -> list[Piece]:
        rest, self._buffer = self._buffer, ""
        pieces: list[Piece] = []
        if self._kind is not None:
            self._say(self._kind, rest, pieces)
            self._end(pieces)
        # A model that never opened a channel has simply answered.
        elif rest.strip() and _CHANNEL not in rest:
            pieces.append(Piece("text", rest))
        return pieces

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
        if name := self._called(header, channel):
            self._kind, self._empty = "arguments", True
            pieces.append(Piece("call", name, self._calls))
            self._calls += 1
        self._buffer = rest
        return True

    def _called(self, header: str, channel: str) -> str:
        """The function that a message is for, if one; built-in tools are called in thought."""
        recipient = _RECIPIENT.search(header)
        if self._tools is None or recipient is None:
            return ""
        said = recipient.group(1)
        name = said.removeprefix(_FUNCTIONS)
        if said == name and name not in self._tools and not channel.startswith("commentary"):
            return ""
        return name

    def _body(self, kind: Kind, pieces: list[Piece]) -> bool:
        marks = (*_ENDS, _CHANNEL)
        mark = first_mark(self._buffer, marks)
        end = mark[0] if mark else len(self._buffer) - held(self._buffer, marks)
        self._say(kind, self._buffer[:end], pieces)
        self._buffer = self._buffer[end:]
        if mark is None:
            return False
        self._end(pieces)
        if mark[1] != _CHANNEL:
            self._buffer = self._buffer[len(mark[1]) :]
        return True

    def _say(self, kind: Kind, text: str, pieces: list[Piece]) -> None:
        if kind != "arguments":
            if text:
                pieces.append(Piece(kind, text))
            return
        if self._empty:
            text = text.lstrip()
        if text:
            self._empty = False
            pieces.append(Piece(kind, text, self._calls - 1))

    def _end(self, pieces: list[Piece]) -> None:
        """A message is over: a call that said nothing has no arguments."""
        if self._kind == "arguments" and self._empty:
            pieces.append(Piece("arguments", "{}", self._calls - 1))
        self._kind, self._empty = None, False


def _last_header(prompt_tail: str) -> str:
    return prompt_tail.rstrip().rpartition(_START)[2]


def answering(prompt_tail: str) -> str:
    """What opens the message that a user reads; empty where the prompt has opened one."""
    return "" if _MESSAGE in _last_header(prompt_tail) else f"{_CHANNEL}final{_MESSAGE}"


def forced(asked: Asked, prompt_tail: str) -> Forced:
    """One call, on a channel of its own."""
    header = _last_header(prompt_tail)
    opening = f"<|end|>{_START}assistant" if _MESSAGE in header and "<|end|>" not in header else ""
    calls = alternatives(asked.tools, lambda tool: f"{tool.name}{_CONSTRAIN}{_MESSAGE}")
    return Forced(f"{opening}{_CHANNEL}commentary to={_FUNCTIONS}", *calls)
