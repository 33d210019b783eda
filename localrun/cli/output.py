"""Knows no command: how facts, notes and errors reach a terminal.

stdout is the answer, stderr is progress and notes. Nothing that comes from a model file, a hub or
a model's tokens can move the cursor, colour the screen or write the clipboard: control characters
are replaced before they are printed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# Bidirectional controls can make a name read as another one (https://trojansource.codes).
_BIDI = dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A)], REPLACEMENT)
# C0, DEL and C1: all that a terminal obeys begins with one of them.
_CONTROLS = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0)], REPLACEMENT)
# Half a character, as in file names that are no text: nothing can encode it.
_HALVES = dict.fromkeys(range(0xD800, 0xE000), REPLACEMENT)
_TEXT = {code: to for code, to in _CONTROLS.items() if chr(code) not in "\n\t"} | _HALVES
_LINE = _CONTROLS | _BIDI | _HALVES | dict.fromkeys((0x2028, 0x2029), REPLACEMENT)


def clean_text(text: str) -> str:
    """Text of several lines, as a model writes it, without terminal control characters."""
    return text.translate(_TEXT)


def clean_line(text: str) -> str:
    """One line of metadata: no control characters, no line breaks, no direction overrides."""
    return text.translate(_LINE)


def emit_json(document: Any) -> None:
    """One JSON document on stdout."""
    import json

    sys.stdout.write(json.dumps(document, indent=2, default=str) + "\n")


def say(line: str) -> None:
    """One line of the answer, on stdout."""
    sys.stdout.write(clean_line(line) + "\n")


def note(line: str) -> None:
    """One line beside the answer, on stderr."""
    sys.stderr.write(clean_line(line) + "\n")


def complain(message: str, hint: str) -> None:
    """What went wrong and what to do next, on stderr."""
    note(f"error: {message}")
    if hint:
        note(f"hint: {hint}")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Aligned columns on stdout; the heading goes to stderr so that rows alone are the answer."""
    cleaned = [[clean_line(cell) for cell in row] for row in rows]
    widths = [
        max(len(column), *(len(row[at]) for row in cleaned), 0) for at, column in enumerate(columns)
    ]

    def line(cells: Sequence[str]) -> str:
        return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))

    note(line([column.upper() for column in columns]).rstrip())
    sys.stderr.flush()
    for row in cleaned:
        sys.stdout.write(line(row).rstrip() + "\n")


def size(count: int) -> str:
    """Bytes for a person: ``98.4 MB``, powers of ten."""
    if count < 1000:
        return f"{count} B"
    value, units = count / 1000, ["KB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        del units[0]
    return f"{value:.1f} {units[0]}"
