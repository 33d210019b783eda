"""P7: what comes from a model, a hub or a file cannot drive the terminal."""

from __future__ import annotations

import pytest

from localrun.cli.output import clean_line, clean_text, complain, say, table

PAYLOADS = {
    "colour": "\x1b[31mred",
    "clear screen": "\x1b[2J\x1b[H",
    "title": "\x1b]0;owned\x07",
    "clipboard (OSC 52)": "\x1b]52;c;ZXZpbA==\x07",
    "hyperlink (OSC 8)": "\x1b]8;;http://evil\x1b\\click\x1b]8;;\x1b\\",
    "device status": "\x1b[6n",
    "terminal id": "\x1b[c",
    "alternate screen": "\x1b[?1049h",
    "mouse on": "\x1b[?1000h",
    "bracketed paste end": "\x1b[201~rm -rf",
    "DCS": "\x1bP$q\x1b\\",
    "APC": "\x1b_G\x1b\\",
    "C1 CSI": "\x9b31m",
    "C1 OSC": "\x9d0;owned\x9c",
    "C1 DCS": "\x90payload\x9c",
    "bell": "\x07",
    "backspace over": "good\x08\x08\x08\x08evil",
    "delete": "\x7f",
    "carriage return": "safe\revil",
    "NUL": "a\x00b",
    "vertical tab": "a\x0bb",
    "form feed": "a\x0cb",
    "shift out": "\x0e\x0f",
    "CAN in sequence": "\x1b[\x18m",
    "SOS": "\x98text\x9c",
    "nested": "\x1b\x1b[[31m",
}
BIDI = {"override": "\u202eexe.gguf", "isolate": "\u2066hidden\u2069", "embedding": "\u202aa\u202c"}


def foreign(text: str) -> list[str]:
    return [
        char
        for char in text
        if (ord(char) < 0x20 and char not in "\n\t") or 0x7F <= ord(char) < 0xA0
    ]


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS.keys())
def test_no_control_character_of_a_payload_reaches_the_terminal(
    payload: str, capsys: pytest.CaptureFixture[str]
) -> None:
    say(payload)
    complain(payload, payload)
    table(("name", "what"), [(payload, payload)])
    printed = capsys.readouterr()

    assert foreign(printed.out + printed.err + clean_text(payload)) == []
    assert "\ufffd" in printed.out


@pytest.mark.parametrize("payload", BIDI.values(), ids=BIDI.keys())
def test_a_name_cannot_turn_the_reading_direction(payload: str) -> None:
    assert "\ufffd" in clean_line(payload)


def test_an_answer_keeps_its_lines_tabs_and_scripts() -> None:
    text = "line one\n\tindented שלום مرحبا 🙂"

    assert clean_text(text) == text
