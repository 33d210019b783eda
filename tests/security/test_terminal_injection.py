"""P7: what comes from a model, a hub or a file cannot drive the terminal."""

from __future__ import annotations

import pytest

from localrun.cli.output import clean_line, clean_text, complain, say, table
from tests.security.terminal_payloads import BIDI, SEQUENCES, foreign


@pytest.mark.parametrize("payload", SEQUENCES.values(), ids=SEQUENCES.keys())
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


def test_half_a_character_and_line_separators_are_replaced() -> None:
    assert clean_text("a\ud800b") == "a\ufffdb"
    assert clean_line("a\udcffb\u2028c\u2029d") == "a\ufffdb\ufffdc\ufffdd"
