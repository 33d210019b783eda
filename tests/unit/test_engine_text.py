"""Knows no engine: text from token bytes, and stop strings in it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from localrun.engine.detokenize import Detokenizer
from localrun.engine.stops import StopMatcher


def split(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


@given(st.text(), st.lists(st.integers(0, 1000), max_size=20))
def test_text_is_whole_however_its_bytes_are_cut_into_tokens(text: str, cuts: list[int]) -> None:
    detokenizer = Detokenizer()
    texts = [detokenizer.push(token) for token in split(text.encode(), cuts)]

    assert "".join(texts) == text
    assert detokenizer.flush() == ""


@given(st.binary(max_size=40), st.lists(st.integers(0, 1000), max_size=10))
def test_bytes_that_are_no_utf8_are_replaced_and_never_swallowed(
    data: bytes, cuts: list[int]
) -> None:
    detokenizer = Detokenizer()
    texts = [detokenizer.push(token) for token in split(data, cuts)]

    assert "".join(texts) + detokenizer.flush() == data.decode("utf-8", "replace")


def test_a_code_point_is_held_until_its_last_byte() -> None:
    detokenizer = Detokenizer()

    assert [detokenizer.push(bytes([byte])) for byte in "🦙".encode()] == ["", "", "", "🦙"]


def test_half_a_code_point_at_the_end_becomes_one_replacement() -> None:
    detokenizer = Detokenizer()

    assert detokenizer.push("🦙".encode()[:3]) == ""
    assert detokenizer.flush() == "\N{REPLACEMENT CHARACTER}"


# Two letters make overlaps and near misses the rule.
few = st.text(alphabet="ab", max_size=10)
stop_lists = st.lists(st.text(alphabet="ab", min_size=1, max_size=5), max_size=4)


def first_stop(text: str, stops: Sequence[str]) -> tuple[int, str] | None:
    """Where to cut: the stop whose last character comes first, the longest of several."""
    ends = [
        (end, start, text[start:end])
        for end in range(1, len(text) + 1)
        for start in range(end)
        if text[start:end] in stops
    ]
    return (min(ends)[1], min(ends)[2]) if ends else None


@given(st.lists(few, max_size=8), stop_lists)
def test_shown_text_is_the_full_text_cut_at_the_first_stop(
    pieces: list[str], stops: list[str]
) -> None:
    matcher = StopMatcher(stops)
    shown = [matcher.push(piece) for piece in pieces]
    whole = "".join(pieces)
    found = first_stop(whole, stops)

    if found is None:
        assert matcher.matched is None
        assert "".join(shown) + matcher.flush() == whole
    else:
        assert matcher.matched == found[1]
        assert "".join(shown) == whole[: found[0]]
        assert matcher.flush() == ""


@given(st.lists(few, max_size=8), stop_lists)
def test_no_piece_shown_holds_part_of_the_stop_that_matches_later(
    pieces: list[str], stops: list[str]
) -> None:
    found = first_stop("".join(pieces), stops)
    matcher = StopMatcher(stops)
    length = 0
    for piece in pieces:
        length += len(matcher.push(piece))
        assert found is None or length <= found[0]


@given(st.lists(few, max_size=8), stop_lists)
def test_no_more_is_held_back_than_could_begin_a_stop(pieces: list[str], stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    shown = whole = ""
    for piece in pieces:
        shown += matcher.push(piece)
        whole += piece
        if matcher.matched is not None:
            return
        held = whole[len(shown) :]
        assert held == "" or any(stop.startswith(held) for stop in stops)


def test_what_only_began_a_stop_is_shown_at_the_end() -> None:
    matcher = StopMatcher(["</tool>"])

    assert matcher.push("a </to") == "a "
    assert matcher.flush() == "</to"
