"""Knows no dialect: what is remembered of one request, for the log and the counters."""

from __future__ import annotations

import secrets
import time
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any, Final

from localrun.chat.messages import ReplyEvent
from localrun.engine.request import FinishReason, Timings

SCOPE_KEY: Final = "localrun.record"


@dataclass(slots=True)
class RequestRecord:
    """One request, filled in on its way. Texts are never part of it.

    ``model`` is the name as it was asked for, ``timings`` those of its generations; ``first_s`` is
    how long after its arrival the first text came.
    """

    id: str = field(default_factory=lambda: f"req_{secrets.token_hex(12)}")
    began: float = field(default_factory=time.perf_counter)
    model: str | None = None
    first_s: float | None = None
    finish: FinishReason | None = None
    timings: list[Timings] = field(default_factory=list)

    def take(self, event: ReplyEvent) -> None:
        if self.first_s is None and (event.text or event.reasoning or event.call):
            self.first_s = time.perf_counter() - self.began
        if event.finish is not None:
            self.finish = event.finish
            if event.timings is not None:
                self.timings.append(event.timings)


def record_of(scope: MutableMapping[str, Any]) -> RequestRecord:
    """The record of the request that a scope belongs to; made where there is none."""
    record = scope.get(SCOPE_KEY)
    if record is None:
        record = scope[SCOPE_KEY] = RequestRecord()
    assert isinstance(record, RequestRecord)
    return record
