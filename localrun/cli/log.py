"""Knows no command: the log that ``--verbose`` shows, as harmless to a terminal as all else.

Libraries log what strangers wrote: addresses, a server's reasons, a file's metadata.
"""

from __future__ import annotations

import logging
import sys

from localrun.cli.output import clean_line, clean_text


def log_to_stderr(*, verbose: bool) -> None:
    """Errors only, or everything."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(CleanFormatter(logging.BASIC_FORMAT))
    logging.basicConfig(level=logging.DEBUG if verbose else logging.ERROR, handlers=[handler])


class CleanFormatter(logging.Formatter):
    """One line for each message, and tracebacks, without what a terminal obeys."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return clean_line(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        return clean_text(super().format(record))
