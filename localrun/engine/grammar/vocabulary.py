"""Knows no grammar: a model's vocabulary as llguidance wants it.

llguidance matches bytes, so it must know what each token stands for, which tokens end a turn, and
how the model would write forced text: a token that the model's own tokenizer would not choose there
makes the rest of the answer worse.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from localrun.engine.runner import Vocabulary
from localrun.errors import EngineError

if TYPE_CHECKING:
    from llguidance import LLTokenizer

# In front of a name it says that the token stands for no text.
_CONTROL: Final = b"\xff"
# Stands for no text of any model's, and is a token of its own wherever it stands.
_MARKER: Final = "\x02"
_BYTES: Final = 256


def tokenizer_of(vocabulary: Vocabulary, tokenize: Callable[[str], list[int]]) -> LLTokenizer:
    """The vocabulary in llguidance's form. Takes a second or two for 260,000 tokens, and holds the
    interpreter meanwhile."""
    from llguidance import LLTokenizer, TokenizerWrapper

    source = _Source(vocabulary, tokenize)
    tokenizer = LLTokenizer(TokenizerWrapper(source), eos_token=source.end)
    source.greedy = tokenizer.greedy_tokenize
    return tokenizer


class _Source:
    """What ``TokenizerWrapper`` reads, by its names."""

    def __init__(self, vocabulary: Vocabulary, tokenize: Callable[[str], list[int]]) -> None:
        texts = list(vocabulary.tokens)
        # Without an end token a text ends when the grammar does; the library wants one all the
        # same: one past the last.
        self.end = sorted(vocabulary.end) or [len(texts)]
        if not vocabulary.end:
            texts.append(_CONTROL + b"end")
        names = {token: f"<[{token}]>" for token in vocabulary.end} | vocabulary.names
        for token, name in names.items():
            texts[token] = _CONTROL + name.encode()
        self.tokens = texts
        self.eos_token_id = self.end[0]
        self.bos_token_id = vocabulary.bos
        self.special_token_ids = sorted(names)
        self.greedy: Callable[[str], list[int]] | None = None
        self._tokenize = tokenize

    def __call__(self, text: str | bytes) -> list[int]:
        """The model's tokens for forced text: exactly that text, whatever a tokenizer likes to put
        in front of it."""
        if isinstance(text, bytes):
            text = text.decode("utf-8", "replace")
        wanted = text.encode()
        try:
            tokens = self._tokenize(text)
            if self._joined(tokens) == wanted:
                return tokens
            marked = self._tokenize(_MARKER + text)
        except EngineError:
            marked = []  # the engine closes
        for at, token in enumerate(marked):
            if self.tokens[token] == _MARKER.encode() and self._joined(marked[at + 1 :]) == wanted:
                return marked[at + 1 :]
        return [] if self.greedy is None else self.greedy(text)

    def _joined(self, tokens: list[int]) -> bytes:
        return b"".join(self.tokens[token] for token in tokens)


def byte_tokenizer(size: int, names: dict[int, str], end: frozenset[int]) -> LLTokenizer:
    """Every byte as a token, in a vocabulary of at least ``size`` with the control tokens ``names``
    and ``end`` where a model has them."""
    taken = names.keys() | end
    free = (token for token in range(size + _BYTES + len(taken)) if token not in taken)
    places = [next(free) for _ in range(_BYTES)]
    texts = [b""] * max(size, places[-1] + 1)
    for value, place in enumerate(places):
        texts[place] = bytes([value])
    vocabulary = Vocabulary(tuple(texts), None, None, end, add_bos=False, names=names)
    return tokenizer_of(vocabulary, lambda text: [places[value] for value in text.encode()])
