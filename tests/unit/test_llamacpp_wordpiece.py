"""Texts as BERT's own normalizer leaves them, before any vocabulary is asked."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localrun.backends.llamacpp.wordpiece import (
    LONGEST_WORD,
    LOWERCASE,
    STRIP_ACCENTS,
    UNKNOWN,
    Normalizer,
    Texts,
)

WRITTEN = {
    "Ångström Çelik ÉTÉ": "angstrom celik ete",
    "e\u0301 A\u030a": "e a",
    "ΟΔΥΣΣΕΥΣ": "οδυσσευσ",
    "İstanbul": "istanbul",
    "한": "\u1112\u1161\u11ab",
    "が": "か",
    "क्षि": "कषि",  # the sign without width goes, the one with it stays
    "東京tower": "東 京 tower",
    "don't -- stop!": "don ' t - - stop !",
    "$5.00 a+b=c ^_^": "$ 5 . 00 a + b = c ^ _ ^",
    "a\tb\nc\rd\u00a0e\u2003f": "a b c d e f",
    "nu\x00ll b\x07ell so\u00adft \ufeffmark\u200b \ufffd": "null bell soft mark",
    "🚀moon": "🚀moon",
    "x" * LONGEST_WORD: "x" * LONGEST_WORD,
    "x" * (LONGEST_WORD + 1): UNKNOWN,
    "각" * 34: UNKNOWN,  # three letters each
    "a▁b ▁": f"{UNKNOWN} ▁",
    "  ": "",
    "": "",
}


@pytest.mark.parametrize(("text", "expected"), WRITTEN.items(), ids=ascii)
def test_a_text_is_written_as_words(text: str, expected: str) -> None:
    assert Normalizer()(text) == expected


def test_a_cased_vocabulary_keeps_letters_and_accents() -> None:
    assert Normalizer(lowercase=False, strip_accents=False)("Çelik été") == "Çelik été"
    assert Normalizer(lowercase=False, strip_accents=True)("Çelik") == "Celik"
    assert Normalizer(lowercase=True, strip_accents=False)("ÇELİK") == "çeli̇k"


@given(st.text())
def test_words_are_bounded_apart_and_stay_as_they_are(text: str) -> None:
    normalizer = Normalizer()
    written = normalizer(text)

    assert "  " not in written
    assert written == written.strip(" ")
    assert max(map(len, written.split(" "))) <= LONGEST_WORD
    assert normalizer(written) == written


def texts(*names: str, **stated: str) -> Texts:
    keys = {"lowercase": LOWERCASE, "strip_accents": STRIP_ACCENTS}
    metadata = {keys[key]: value for key, value in stated.items()}
    return Texts.of(lambda key: metadata.get(key, ""), names)


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({}, Normalizer(True, True)),
        ({"lowercase": "true"}, Normalizer(True, True)),
        ({"lowercase": "false"}, Normalizer(False, False)),
        ({"lowercase": "true", "strip_accents": "false"}, Normalizer(True, False)),
        ({"lowercase": "false", "strip_accents": "true"}, Normalizer(False, True)),
    ],
)
def test_a_file_says_how_its_texts_are_written(
    stated: dict[str, str], expected: Normalizer
) -> None:
    assert texts(**stated).normalizer == expected


def test_control_tokens_stand_where_they_are_parsed_and_nowhere_else() -> None:
    known = texts("[SEP]", "[SEP]X", "[CLS]")

    assert known.written("A[SEP]B [SEP]XC", parse_special=True) == "a [SEP] b [SEP]X c"
    assert known.written("A[SEP]B", parse_special=False) == "a [ sep ] b"
    assert known.written("[sep]", parse_special=True).strip() == "[ sep ]"
    assert texts().written("[SEP]", parse_special=True) == "[ sep ]"
