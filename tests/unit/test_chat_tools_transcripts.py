"""What models of each family write is read as they mean it, however the stream is cut."""

from __future__ import annotations

import json

import pytest

from localrun.chat.tools.pieces import Piece
from localrun.chat.tools.reading import reader_for
from tests.transcripts import objects, others
from tests.transcripts.form import Said, Transcript

TRANSCRIPTS: dict[str, Transcript] = {
    f"{family}: {name}": transcript
    for family, table in (objects.every() | others.every()).items()
    for name, transcript in table.items()
}
every_transcript = pytest.mark.parametrize("transcript", TRANSCRIPTS.values(), ids=TRANSCRIPTS)


def pieces_of(transcript: Transcript, chunks: list[str]) -> list[Piece]:
    reader = reader_for(transcript.template, transcript.tail, transcript.tools)
    pieces = [piece for chunk in chunks for piece in reader.feed(chunk)]
    return pieces + reader.finish()


def said(pieces: list[Piece]) -> Said:
    """The pieces put together, after what holds for any."""
    assert all(piece.text for piece in pieces)
    names: list[tuple[str, str]] = []
    arguments: list[str] = []
    for piece in pieces:
        if piece.kind == "call":
            assert piece.index == len(names)
            names.append((piece.text, piece.id))
            arguments.append("")
        elif piece.kind == "arguments":
            assert piece.index == len(names) - 1, "arguments of a call that is not the last"
            arguments[piece.index] += piece.text
    return Said(
        "".join(piece.text for piece in pieces if piece.kind == "text"),
        "".join(piece.text for piece in pieces if piece.kind == "reasoning"),
        tuple(
            (name, text, id) if id else (name, text)
            for (name, id), text in zip(names, arguments, strict=True)
        ),
    )


def test_there_are_transcripts_enough() -> None:
    assert len(TRANSCRIPTS) >= 60


@every_transcript
def test_an_answer_is_read_whole(transcript: Transcript) -> None:
    read = said(pieces_of(transcript, [transcript.raw]))

    assert read == transcript.said


@every_transcript
def test_complete_calls_have_json_for_arguments(transcript: Transcript) -> None:
    read = said(pieces_of(transcript, [transcript.raw]))

    for call in read.calls if transcript.whole else read.calls[:-1]:
        assert isinstance(json.loads(call[1]), dict)


@every_transcript
def test_an_answer_cut_in_two_anywhere_is_read_the_same(transcript: Transcript) -> None:
    raw = transcript.raw

    for cut in range(1, len(raw)):
        assert said(pieces_of(transcript, [raw[:cut], raw[cut:]])) == transcript.said, raw[:cut]


@every_transcript
def test_an_answer_that_comes_by_characters_is_read_the_same(transcript: Transcript) -> None:
    assert said(pieces_of(transcript, list(transcript.raw))) == transcript.said
