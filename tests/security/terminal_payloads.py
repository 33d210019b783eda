"""Texts that a terminal, Rich or Textual would obey, and what may never reach a stream."""

from __future__ import annotations

SEQUENCES = {
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
    "next line": "a\x85b",
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
MARKUP = {
    "Rich colour": "[red]x[/red]",
    "Rich link": "[link=http://evil]x[/link]",
    "Textual action": "[@click=app.quit]x[/]",
    "unbalanced": "[/x][bold",
}
PAYLOADS = SEQUENCES | BIDI | MARKUP


def foreign(text: str) -> list[str]:
    """What a terminal would obey: C0 but line breaks and tabs, DEL, C1."""
    return [
        char
        for char in text
        if (ord(char) < 0x20 and char not in "\n\t") or 0x7F <= ord(char) < 0xA0
    ]


def turned(text: str) -> list[str]:
    """Direction overrides."""
    return [
        char for char in text if char in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    ]
