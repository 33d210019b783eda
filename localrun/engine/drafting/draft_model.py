"""Knows no text: guesses by a second, smaller model of the same vocabulary.

It proposes what it finds likeliest, token by token, and stops where it is not sure itself. Whether
the target would say so too is learned for each degree of its own confidence
(https://arxiv.org/abs/2211.17192 is the way of drafting; guesses here are single points).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from localrun.engine.cache.common import common
from localrun.engine.drafting.odds import Odds
from localrun.engine.runner import (
    BatchItem,
    ForwardAborted,
    Logits,
    ModelRunner,
    SequenceId,
    Vocabulary,
)
from localrun.errors import EngineError, UsageError

# Below this the model drafts no further: a wrong guess costs the target as much as a right one.
_LEAST: Final = 0.5
# Its confidence is the likeliest token's share among so many, which a GPU can find by itself.
_AMONG: Final = 10
# Tokens of a prompt that a step's drafting reads: other streams wait for it.
_CHUNK: Final = 256
# Least confidence of each kind of guess, and the chance that it is right.
_KINDS: Final = (0.0, 0.6, 0.7, 0.8, 0.9, 0.97)
_BELIEVED: Final = (0.45, 0.55, 0.65, 0.75, 0.85, 0.95)
# Padding that the sizes of two vocabularies may differ by (llama.cpp allows as much).
_PADDING: Final = 128


def compatible(target: Vocabulary, draft: Vocabulary) -> str | None:
    """Why a model of the one vocabulary cannot guess for one of the other; None if it can.

    Ids must be the same bytes and the same control tokens. Sizes may differ, as models are padded.
    """
    sizes = len(target.tokens), len(draft.tokens)
    if abs(sizes[0] - sizes[1]) > _PADDING:
        return f"its vocabulary has {sizes[1]} tokens, the model's {sizes[0]}"
    for token in range(min(sizes)):
        one, other = _token(target, token), _token(draft, token)
        if one != other:
            return f"its token {token} is {other!r}, the model's {one!r}"
    if target.end != draft.end:
        return f"its turns end with {sorted(draft.end)}, the model's with {sorted(target.end)}"
    return None


def _token(vocabulary: Vocabulary, token: int) -> str | bytes:
    return vocabulary.names.get(token) or vocabulary.tokens[token]


class DraftModel:
    """Drafting by a model of its own, which it closes. Each drafter has a sequence there."""

    def __init__(self, runner: ModelRunner) -> None:
        """Take the runner over."""
        self.runner = runner
        # Ids from here on are none of the target's. Before ``start`` nothing is guessed.
        self.size = 0
        # Of all drafters: how far the two models agree is theirs, less the text's.
        self.odds = Odds(_BELIEVED)

    def start(self, target: Vocabulary) -> None:
        """Raises UsageError where the two vocabularies do not fit; EngineError: the runner's."""
        reason = compatible(target, self.runner.vocabulary())
        if reason is not None:
            raise UsageError(
                f"--draft: this model cannot guess for the other: {reason}",
                hint="take a smaller model of the same family",
            )
        self.size = len(target.tokens)

    def drafters(self) -> tuple[ModelDrafter]:
        return (ModelDrafter(self),)

    def close(self) -> None:
        self.runner.close()


class ModelDrafter:
    """Guesses for one sequence. Where its model has no seat for it or fails, none."""

    costly = True

    def __init__(self, model: DraftModel) -> None:
        self._model = model
        self._runner = model.runner
        self._seat: SequenceId | None = None
        self._held: list[int] = []
        self._failed = False
        # Where the guesses proposed last begin, and what kind each is.
        self._from = 0
        self._guesses: list[int] = []
        self._kinds: list[int] = []

    @property
    def odds(self) -> Sequence[float]:
        """Of each guess proposed last, the chance that it is right if those before it are."""
        return [self._model.odds[kind] for kind in self._kinds]

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        """At most ``most`` guesses for what follows ``tokens``; none while it reads a prompt."""
        self._learn(tokens)
        self._from, self._guesses, self._kinds = len(tokens), [], []
        most = min(most, self._runner.capabilities.n_ctx - len(tokens))
        if most < 1 or self._failed or not self._seated():
            return []
        try:
            logits = self._follow(tokens)
            while logits is not None and self._guess(logits) and len(self._guesses) < most:
                logits = self._append(self._guesses[-1:])
        except (EngineError, ForwardAborted):
            # Nobody knows what it holds now.
            self.close()
            self._failed = True
            self._guesses, self._kinds = [], []
        return list(self._guesses)

    def close(self) -> None:
        seat, self._seat = self._seat, None
        self._held.clear()
        if seat is not None:
            # A runner that cannot free it has nothing better to be told.
            with suppress(EngineError):
                self._runner.free(seat)

    def _learn(self, tokens: Sequence[int]) -> None:
        """Compare the guesses proposed last with what came, up to the first that was wrong."""
        came = tokens[self._from : self._from + len(self._guesses)]
        for guess, kind, token in zip(self._guesses, self._kinds, came, strict=False):
            self._model.odds.learn(kind, guess == token)
            if guess != token:
                return

    def _seated(self) -> bool:
        if self._seat is None:
            # All seats are others': one may be free the next time.
            with suppress(EngineError):
                self._seat = self._runner.new_sequence()
        return self._seat is not None

    def _follow(self, tokens: Sequence[int]) -> Logits | None:
        """Hold ``tokens`` and nothing else; None where more of them are left than one step reads.

        Raises:
            EngineError, ForwardAborted: the runner's.
        """
        assert self._seat is not None
        length = min(common(self._held, tokens), len(tokens) - 1)
        if length < len(self._held):
            # It may keep fewer: those are read again.
            del self._held[self._runner.truncate(self._seat, length) :]
        limit = min(_CHUNK, self._runner.capabilities.max_tokens)
        logits = self._append(tokens[len(self._held) : len(self._held) + limit])
        return logits if len(self._held) == len(tokens) else None

    def _append(self, tokens: Sequence[int]) -> Logits:
        assert self._seat is not None
        logits = self._runner.forward([BatchItem(self._seat, list(tokens), "last")])
        self._held.extend(tokens)
        return logits

    def _guess(self, logits: Logits) -> bool:
        """Add the likeliest token; False where the model is not sure enough of it."""
        ids, values = logits.topk(0, _AMONG)
        token = int(ids[0])
        largest = float(values[0])
        share = 1 / sum(math.exp(float(value) - largest) for value in values)
        # A share that is not a number compares as false too.
        if not share >= _LEAST or token >= self._model.size:
            return False
        self._guesses.append(token)
        self._kinds.append(max(at for at, least in enumerate(_KINDS) if share >= least))
        return True
