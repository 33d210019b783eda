"""Knows no vocabulary: a text as BERT's own normalizer leaves it, for llama.cpp to look up.

llama.cpp's normalizer is a simpler one: of a composed character it keeps the first part (of a
Korean syllable one letter of three), it drops every combining mark where BERT drops those without
width, and it looks up words of any length. So it is told to change nothing (``OVERRIDES``), and
what is done here is what the models were trained with
(https://github.com/huggingface/tokenizers, ``normalizers/bert.rs`` and ``models/wordpiece``).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final, Self

LOWERCASE: Final = "tokenizer.ggml.normalizer.lowercase"
STRIP_ACCENTS: Final = "tokenizer.ggml.normalizer.strip_accents"
# What the library is told in place of what the file says.
OVERRIDES: Final = {LOWERCASE: False, STRIP_ACCENTS: False}
LONGEST_WORD: Final = 100
_BEGINS: Final = "\N{LOWER ONE EIGHTH BLOCK}"
# No vocabulary of BERT's has it, so a word of it is an unknown one.
UNKNOWN: Final = "\N{EGYPTIAN HIEROGLYPH A001}"
_KEPT_CONTROLS: Final = "\t\n\r"
# As the library has them: the fifth begins a hundred characters late.
_CHINESE: Final = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


class _Table(dict[int, str]):
    """What each character becomes, found out when it is first met."""

    def __init__(self, rule: Callable[[str], str]) -> None:
        super().__init__()
        self._rule = rule

    def __missing__(self, code: int) -> str:
        found = self[code] = self._rule(chr(code))
        return found


def _cleaned(character: str) -> str:
    """Control characters go, every space is the same one, each ideograph is a word."""
    code = ord(character)
    if character in _KEPT_CONTROLS:
        return " "
    if code in (0, 0xFFFD) or unicodedata.category(character) in ("Cc", "Cf", "Co", "Cs"):
        return ""
    if character.isspace():
        return " "
    ideograph = any(first <= code <= last for first, last in _CHINESE)
    return f" {character} " if ideograph else character


def _apart(character: str) -> str:
    """Punctuation is a word of its own."""
    ascii_mark = character.isascii() and not character.isalnum() and character.isprintable()
    mark = ascii_mark or unicodedata.category(character).startswith("P")
    return f" {character} " if mark and character != " " else character


def _without_accent(character: str) -> str:
    return "" if unicodedata.category(character) == "Mn" else character


_CLEANED: Final = _Table(_cleaned)
_WITHOUT_ACCENTS: Final = _Table(_without_accent)
# One by one: a whole text's lower case would end words in another sigma.
_LOWERED: Final = _Table(str.lower)
_APART: Final = _Table(_apart)


@dataclass(frozen=True, slots=True)
class Normalizer:
    """What of a vocabulary tells how texts were normalized for it."""

    lowercase: bool = True
    strip_accents: bool = True

    def __call__(self, text: str) -> str:
        """Words with one space between them."""
        text = text.translate(_CLEANED)
        if self.strip_accents:
            text = unicodedata.normalize("NFD", text).translate(_WITHOUT_ACCENTS)
        if self.lowercase:
            text = text.translate(_LOWERED)
        words = text.translate(_APART).split(" ")
        return " ".join(UNKNOWN if _is_unknown(word) else word for word in words if word)


def _is_unknown(word: str) -> bool:
    # llama.cpp marks the beginning of a word so, and would find one inside.
    return len(word) > LONGEST_WORD or (_BEGINS in word and word != _BEGINS)


@dataclass(frozen=True, slots=True)
class Texts:
    """Texts as a vocabulary wants them; ``control`` finds its control tokens in one."""

    normalizer: Normalizer
    control: re.Pattern[str] | None

    @classmethod
    def of(cls, metadata: Callable[[str], str], names: Collection[str]) -> Self:
        """``metadata`` tells a GGUF key's value, empty where there is none: both are then true, as
        llama.cpp has it; ``names`` are the texts of control tokens."""
        lowercase = metadata(LOWERCASE) != "false"
        strip = (metadata(STRIP_ACCENTS) or ("true" if lowercase else "false")) == "true"
        longest_first = sorted(names, key=lambda name: (-len(name), name))
        control = re.compile("|".join(map(re.escape, longest_first))) if names else None
        return cls(Normalizer(lowercase, strip), control)

    def written(self, text: str, *, parse_special: bool) -> str:
        """``text`` normalized, but for control tokens in it that are to be parsed."""
        if not parse_special or self.control is None:
            return self.normalizer(text)
        parts, at = [], 0
        for found in self.control.finditer(text):
            parts += [self.normalizer(text[at : found.start()]), found[0]]
            at = found.end()
        return " ".join((*parts, self.normalizer(text[at:])))
