"""Knows no download: which progress a command shows, and where."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from localrun.store.progress import Progress


def progress(stream: TextIO | None = None) -> Progress:
    """A bar with rate and ETA on stderr; silent where that is no terminal."""
    stream = sys.stderr if stream is None else stream
    if not stream.isatty():
        from localrun.store.progress import NoProgress

        return NoProgress()
    from localrun.cli.bar import Bar

    return Bar(stream)
