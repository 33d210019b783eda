"""Knows no route: the lines a server logs, for people or for programs.

One line a request, made of its record alone: no text, key or query string can be part of it. What
clients wrote (the name of a model) is made harmless to a terminal and cannot begin a line.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any, Final, Literal, TextIO

from localrun.formats.text import shown
from localrun.server.record import RequestRecord

Form = Literal["text", "json"]

_REQUESTS: Final = logging.getLogger("localrun.server.requests")
# Those that get the handler, and the last of them its lines of requests.
_LOGGED: Final = {"uvicorn.error": logging.WARNING, "localrun.server": logging.WARNING}
_PLAIN_WORD: Final = re.compile(r"[\w.:/@+-]+", re.ASCII)


def log_request(record: RequestRecord) -> None:
    """Log a request that has ended."""
    if _REQUESTS.isEnabledFor(logging.INFO):
        facts = facts_of(record)
        _REQUESTS.info("%s", _line(facts), extra={"facts": facts})


def facts_of(record: RequestRecord) -> dict[str, str | int | float]:
    """What is logged of a request: tokens are sums over its generations. What is not known is left
    out."""
    facts: dict[str, Any] = {
        "id": record.id,
        "method": record.method,
        "path": record.route,
        "status": record.status,
        "model": None if record.model is None else shown(record.model),
    }
    if record.timings:
        facts |= {
            name: record.total(attrgetter(name))
            for name in ("prompt_tokens", "cached_tokens", "generated_tokens")
        }
    facts |= {
        "first_token_ms": _ms(record.first_s),
        "total_ms": _ms(record.total_s),
        "finish_reason": record.finish,
        "error": record.error,
    }
    return {name: value for name, value in facts.items() if value is not None}


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 1)


def _line(facts: dict[str, str | int | float]) -> str:
    head = " ".join(str(facts[name]) for name in ("method", "path", "status"))
    rest = (name for name in facts if name not in ("method", "path", "status"))
    return head + "".join(f" {name}={_word(facts[name])}" for name in rest)


def _word(value: str | int | float) -> str:
    """A value that cannot be taken for two."""
    text = str(value)
    return text if _PLAIN_WORD.fullmatch(text) else json.dumps(text)


def log_to(stream: TextIO | None = None, *, form: Form = "text") -> None:
    """Send what this server and its HTTP library log to ``stream``, stderr where it is None."""
    # Not logging.config: that would take every other handler of the process out of service.
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines("%(asctime)s %(message)s"))
    for name, level in _LOGGED.items():
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
    _REQUESTS.setLevel(logging.INFO)


class TextLines(logging.Formatter):
    """For people: a message is one line; a traceback keeps its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return harmless(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        return "\n".join(map(harmless, super().formatException(ei).split("\n")))


class JsonLines(logging.Formatter):
    """For programs: one JSON object a line, ASCII alone."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC)
        document: dict[str, Any] = {
            "time": when.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
        }
        facts = getattr(record, "facts", None)
        document |= {"message": harmless(record.getMessage())} if facts is None else facts
        if record.exc_info:
            document["traceback"] = self.formatException(record.exc_info)
        # JSON leaves DEL as it is.
        return json.dumps(document).replace("\x7f", "\\u007f")


def harmless(text: str) -> str:
    """One line without what a terminal obeys."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
