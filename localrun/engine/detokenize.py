"""Knows no vocabulary: bytes of tokens as they come → text, in whole code points."""

from __future__ import annotations

import codecs

_decoder = codecs.getincrementaldecoder("utf-8")


class Detokenizer:
    """Holds the beginning of a code point until it is whole.

    Bytes that are no UTF-8 become U+FFFD, never nothing: all texts together are
    ``b"".join(tokens).decode("utf-8", "replace")``.
    """

    __slots__ = ("_decode",)

    def __init__(self) -> None:
        self._decode = _decoder(errors="replace").decode

    def push(self, token: bytes) -> str:
        """The text that ``token`` completes; empty while a code point is unfinished."""
        return self._decode(token)

    def flush(self) -> str:
        """What is held, as U+FFFD: nothing will complete it."""
        return self._decode(b"", True)
