"""Knows no widget: text from models, files and the clipboard, made safe to draw."""

from __future__ import annotations

_BIDI = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))
_TABLE: dict[int, str | None] = {
    # C0 controls show as their pictures (U+2400 block); line separators become line ends, because
    # Markdown's own notion of a line and Python's splitlines differ on them.
    **{code: chr(0x2400 + code) for code in range(0x20)},
    ord("\n"): "\n",
    ord("\t"): "\t",
    ord("\r"): None,
    0x7F: "\u2421",
    **dict.fromkeys(range(0x80, 0xA0), "\ufffd"),
    **dict.fromkeys((0x2028, 0x2029), "\n"),
    **dict.fromkeys(_BIDI, "\ufffd"),
    **dict.fromkeys(range(0xD800, 0xE000), "\ufffd"),
}


def plain(text: str) -> str:
    """``text`` without control characters, direction overrides and lone surrogates.

    Tabs and line ends stay. What is replaced stays visible, so that nothing hides.
    """
    return text.translate(_TABLE)


def one_line(text: str, limit: int = 80) -> str:
    """``text`` as one safe line of at most ``limit`` characters, for titles and lists."""
    line = " ".join(plain(text).split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def model_label(ref: str, limit: int = 80) -> str:
    """A model's reference for a label: of a path the last part, which is what tells it apart."""
    line = one_line(ref, limit=4096)
    if line.startswith(("/", "./", "../", "~")):
        line = line.rstrip("/").rpartition("/")[2] or line
    return one_line(line, limit)
