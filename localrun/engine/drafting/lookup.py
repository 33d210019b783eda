"""Knows no model: guesses that a text goes on as it did the last time it came by here.

Prompt lookup (https://github.com/apoorvumang/prompt-lookup-decoding): answers repeat names, code
and sentences of their prompt and of themselves, and what followed then is a guess that costs
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from localrun.engine.drafting.odds import Odds
from localrun.engine.runner import Vocabulary

# A match is at least so long; of longer ones no more is known than that they are that long.
_SHORTEST: Final = 2
_LONGEST: Final = 32
# Of so many latest places with the same last two tokens the one with the longest match counts.
_PLACES: Final = 16
# Shortest match of each kind, and the chance that its next token is right: what was seen in chats
# with a small model. The text at hand corrects it.
_KINDS: Final = (2, 3, 4, 5, 7, 10, 16, 24, 32)
_BELIEVED: Final = (0.3, 0.45, 0.5, 0.65, 0.75, 0.85, 0.9, 0.95, 0.98)
_KIND: Final = tuple(
    max((at for at, least in enumerate(_KINDS) if least <= length), default=0)
    for length in range(_LONGEST + 1)
)


class PromptLookup:
    """Drafting from a sequence's own tokens."""

    def start(self, target: Vocabulary) -> None:
        return

    def drafters(self) -> tuple[LookupDrafter]:
        return (LookupDrafter(),)

    def close(self) -> None:
        return


class LookupDrafter:
    """Guesses for one sequence.

    Each new token is compared with what would have been guessed for it, whether a guess was asked
    for or not, so that the odds follow the text at no cost. Time and memory: a few list and
    dictionary entries for each new token, once.
    """

    costly = False

    def __init__(self) -> None:
        self._tokens: list[int] = []
        # The place after the latest pair of tokens, and for each place the one before with the
        # same pair.
        self._latest: dict[tuple[int, int], int] = {}
        self._before: list[int] = [0]
        # What follows is guessed to be what stands at _at: the _length tokens before agree.
        self._at = 0
        self._length = 0
        self._odds = Odds(_BELIEVED)
        self._proposed: list[float] = []

    @property
    def odds(self) -> Sequence[float]:
        """Of each guess proposed last, the chance that it is right if those before it are."""
        return self._proposed

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        """At most ``most`` guesses for what follows ``tokens``, which only grow between calls."""
        self._read(tokens)
        if self._length < _SHORTEST or most < 1:
            self._proposed = []
            return []
        guesses = self._tokens[self._at : self._at + most]
        while len(guesses) < most:  # the match reaches to the end: the text goes round
            guesses += guesses[: most - len(guesses)]
        lengths = range(self._length, self._length + most)
        self._proposed = [self._odds[_KIND[min(length, _LONGEST)]] for length in lengths]
        return guesses

    def close(self) -> None:
        return

    def _read(self, tokens: Sequence[int]) -> None:
        """Take note of new tokens."""
        known = len(self._tokens)
        first = known == 0
        for place in range(known, len(tokens)):
            token = tokens[place]
            if not first:
                self._compare(token)
            self._tokens.append(token)
            self._index()
            if not first and self._length < _LONGEST:
                self._find()
        if first:
            self._find()

    def _compare(self, token: int) -> None:
        if self._length < _SHORTEST:
            return
        right = self._tokens[self._at] == token
        self._odds.learn(_KIND[min(self._length, _LONGEST)], right)
        self._at += 1
        self._length = self._length + 1 if right else 0

    def _index(self) -> None:
        end = len(self._tokens)
        if end < 2:
            self._before.append(0)
            return
        pair = (self._tokens[-2], self._tokens[-1])
        self._before.append(self._latest.get(pair, 0))
        self._latest[pair] = end

    def _find(self) -> None:
        """Look for the longest match, the latest of equals; keep what is as long."""
        place = self._before[-1]
        for _ in range(_PLACES):
            if place == 0:
                return
            length = self._agreeing(place)
            if length > self._length:
                self._at, self._length = place, length
                if length == _LONGEST:
                    return
            place = self._before[place]

    def _agreeing(self, place: int) -> int:
        """How many tokens before ``place`` are those at the end; at least the two indexed."""
        tokens, end = self._tokens, len(self._tokens)
        length = 2
        longest = min(_LONGEST, place)
        while length < longest and tokens[place - 1 - length] == tokens[end - 1 - length]:
            length += 1
        return length
