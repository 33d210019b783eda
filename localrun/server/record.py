"""Knows no dialect: what is remembered of one request, for the log and the counters."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from localrun.chat.messages import ReplyEvent
from localrun.engine.request import FinishReason, Timings
from localrun.errors import LocalrunError

SCOPE_KEY: Final = "localrun.record"
# What proxies write into their logs for a client that left; nobody receives it.
CLIENT_CLOSED_REQUEST: Final = 499
# A path that no route has: what strangers ask for is neither logged nor counted by its name.
NO_ROUTE: Final = "other"
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

Scope = MutableMapping[str, Any]


@dataclass(slots=True, eq=False)
class RequestRecord:
    """One request, filled in on its way. Texts, keys and query strings are never part of it.

    ``route`` is the path's template. ``status`` is 499 where the client left before its answer was
    whole, 200 for a stream that failed on its way: then ``error`` is the kind of error. ``model``
    is the name as it was asked for, ``served`` the name of the model that was leased for it;
    ``stage`` is how far its generation is, None where none was asked for; ``timings`` are those of
    its generations that ended. ``first_s`` is how long after its arrival the first text came,
    ``total_s`` its end.
    """

    id: str = field(default_factory=lambda: f"req_{secrets.token_hex(12)}")
    began: float = field(default_factory=time.perf_counter)
    method: str = "GET"
    route: str = NO_ROUTE
    status: int | None = None
    model: str | None = None
    served: str | None = None
    stage: Literal["waiting", "running"] | None = None
    first_s: float | None = None
    total_s: float | None = None
    finish: FinishReason | None = None
    error: str | None = None
    timings: list[Timings] = field(default_factory=list)

    def take(self, event: ReplyEvent) -> None:
        self.stage = "running"
        if self.first_s is None and (event.text or event.reasoning or event.call):
            self.first_s = time.perf_counter() - self.began
        if event.finish is not None:
            self.finish = event.finish
            if event.timings is not None:
                self.timings.append(event.timings)
            if event.error is not None:
                self.failed(event.error)

    def failed(self, error: LocalrunError) -> None:
        """The generation ended by an error."""
        self.finish = FinishReason.ERROR
        self.error = type(error).__name__

    def total(self, count: Callable[[Timings], int]) -> int:
        """A count over all generations of the request."""
        return sum(map(count, self.timings))


def record_of(scope: Scope) -> RequestRecord:
    """The record of the request that a scope belongs to; made where there is none."""
    record = scope.get(SCOPE_KEY)
    if record is None:
        record = scope[SCOPE_KEY] = RequestRecord()
    assert isinstance(record, RequestRecord)
    return record


class Recorder:
    """ASGI middleware, outermost of all: every request has a record, whoever answers it.

    Its id goes back as ``x-request-id``, beside it by the names that ``id_names`` adds for a path.
    At its end the record is told to each of ``told``, once. ``under_way`` are the others.
    """

    def __init__(
        self,
        app: Any,
        route_of: Callable[[str], str],
        id_names: Callable[[str], Sequence[bytes]],
        told: Sequence[Callable[[RequestRecord], None]],
    ) -> None:
        self._app = app
        self._route_of = route_of
        self._id_names = id_names
        self._told = told
        self.under_way: dict[str, RequestRecord] = {}

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path, method = scope["path"], scope["method"]
        record = RequestRecord(
            method=method if method in _METHODS else NO_ROUTE, route=self._route_of(path)
        )
        scope[SCOPE_KEY] = self.under_way[record.id] = record
        ids = [(name, record.id.encode()) for name in (b"x-request-id", *self._id_names(path))]
        whole = False

        async def sending(message: MutableMapping[str, Any]) -> None:
            nonlocal whole
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), *ids]}
            else:
                whole = whole or not message.get("more_body", False)
            await send(message)

        unfinished = CLIENT_CLOSED_REQUEST
        try:
            await self._app(scope, receive, sending)
        except Exception:
            # Told apart from a cancellation alone: the request's boundary is further in.
            unfinished = 500
            raise
        finally:
            del self.under_way[record.id]
            self._end(record, record.status if whole else unfinished)

    def refused(self, status: int) -> None:
        """A request that was no HTTP, so that nobody could be asked for an answer."""
        self._end(RequestRecord(method=NO_ROUTE), status)

    def _end(self, record: RequestRecord, status: int | None) -> None:
        record.status = status
        record.total_s = time.perf_counter() - record.began
        if record.stage is not None and record.finish is None:
            gone = status == CLIENT_CLOSED_REQUEST
            record.finish = FinishReason.CANCELLED if gone else FinishReason.ERROR
        for tell in self._told:
            tell(record)
