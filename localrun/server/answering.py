"""Knows no dialect: what the routes of all dialects do alike with a request and a model.

A route parses its body, says what it wants of the model, and how events become its answer. Leasing,
waiting, leaving clients, a stopping server and what is remembered of a request are here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from localrun.chat.messages import Message, ReplyEvent, ReplyOptions, ServedModel
from localrun.errors import GrammarError, LocalrunError
from localrun.server.answers import WAITING, ClientGone, EventStream, Reply, while_connected
from localrun.server.models import ModelProvider
from localrun.server.record import CLIENT_CLOSED_REQUEST, RequestRecord, record_of

# A model may load, and a long prompt may wait: from then on clients get something of a stream. What
# is refused at all is nearly always refused sooner.
BEGIN_S: Final = 10.0
# Of a longer list so many are made into JSON at a time: vectors of 4096 numbers take 4 ms.
AT_A_TIME: Final = 16

Result = TypeVar("Result")
Ask = Callable[[ServedModel], AsyncGenerator[ReplyEvent]]
"""What is wanted of a model."""
Document = dict[str, Any] | list[dict[str, Any]]
Gather = Callable[[Reply], Awaitable[Document]]
"""All events as one document; raises LocalrunError where an answer ended by an error."""
Chunks = Callable[[Reply], AsyncGenerator[bytes]]
"""Events as the bytes of a stream, errors among them."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One request as a route passes it on.

    ``form`` names the field that says what form the answer has; ``keep_s`` is ``ModelProvider``'s.
    """

    request: Request
    model: str
    ask: Ask
    form: str | None = None
    keep_s: float | None = None


class Answering:
    """``stopping`` is set when the server ought to end: streams then say so and close."""

    def __init__(self, models: ModelProvider, stopping: asyncio.Event) -> None:
        self.models = models
        self.stopping = stopping

    async def whole(self, asked: Asked, gather: Gather) -> Response:
        """The answer in one piece.

        Raises:
            LocalrunError: what the model refused, or its answer ended with.
        """

        async def work() -> Document:
            async with aclosing(self._reply(asked)) as reply:
                await reply.begin()
                return await gather(reply)

        return await self.document(asked.request, work())

    async def streamed(
        self,
        asked: Asked,
        chunks: Chunks,
        *,
        goodbye: bytes,
        within_s: float | None = None,
        waiting: bytes = b"",
        media_type: str = "text/event-stream",
    ) -> Response:
        """The answer as it comes. What is refused before the first event, or ``within_s``, has its
        own status; ``goodbye`` is the last a client hears of a server that stops, ``waiting`` what
        it hears in silence.

        Raises:
            LocalrunError: as ``whole``, before the stream has begun.
        """
        reply = self._reply(asked)
        try:
            await while_connected(asked.request.receive, self.stopping, _begun(reply, within_s))
        except ClientGone:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        return EventStream(
            reply,
            chunks(reply),
            stopping=self.stopping,
            goodbye=goodbye,
            waiting=waiting,
            media_type=media_type,
        )

    async def events(self, asked: Asked, chunks: Chunks, *, goodbye: bytes) -> Response:
        """``streamed``, as server-sent events of a dialect that has none for waiting: it begins at
        the latest after ``BEGIN_S``, and says in comments that it goes on.

        Raises:
            LocalrunError: as ``whole``, before the stream has begun.
        """
        return await self.streamed(
            asked, chunks, goodbye=goodbye, within_s=BEGIN_S, waiting=WAITING
        )

    async def document(self, request: Request, work: Coroutine[Any, Any, Document]) -> Response:
        """A document that takes its time to make; not made further for a client that left."""
        try:
            return await _rendered(await while_connected(request.receive, self.stopping, work))
        except ClientGone:
            return Response(status_code=CLIENT_CLOSED_REQUEST)

    async def with_model(
        self,
        request: Request,
        model: str,
        work: Callable[[ServedModel], Awaitable[Document]],
        keep_s: float | None = None,
    ) -> Response:
        """A document made with a model's help, beside generations: counts, tokens, embeddings."""

        async def leased() -> Document:
            record = record_of(request.scope)
            record.model = model
            async with self.models.lease(model, keep_s=keep_s) as served:
                record.served = served.name
                return await work(served)

        return await self.document(request, leased())

    def _reply(self, asked: Asked) -> Reply:
        record = record_of(asked.request.scope)
        record.model, record.stage = asked.model, "waiting"
        return Reply(self._events(asked, record), record)

    async def _events(self, asked: Asked, record: RequestRecord) -> AsyncGenerator[ReplyEvent]:
        try:
            async with (
                self.models.lease(asked.model, keep_s=asked.keep_s) as model,
                aclosing(asked.ask(model)) as stream,
            ):
                record.served = model.name
                async for event in stream:
                    if isinstance(event.error, GrammarError):
                        event.error.field = event.error.field or asked.form
                    yield event
        except LocalrunError as error:
            record.failed(error)
            if isinstance(error, GrammarError):
                # An engine knows a grammar, and not by which field it was asked.
                error.field = error.field or asked.form
            raise


async def _rendered(document: Document) -> Response:
    if not isinstance(document, dict) or not any(map(_is_long, document.values())):
        return JSONResponse(document)
    # Thousands of vectors take long: others have their turns meanwhile.
    parts: list[bytes] = []
    for name, value in document.items():
        parts += b"," if parts else b"{", to_json(name), b":"
        if not _is_long(value):
            parts.append(to_json(value))
            continue
        parts.append(b"[")
        for at in range(0, len(value), AT_A_TIME):
            some = to_json(value[at : at + AT_A_TIME])
            parts += b"," if at else b"", some[1:-1]
            await asyncio.sleep(0)
        parts.append(b"]")
    return Response(b"".join((*parts, b"}")), media_type="application/json")


def _is_long(value: object) -> bool:
    """Whether it is a list of many that may be long themselves."""
    return isinstance(value, list) and len(value) > AT_A_TIME and isinstance(value[0], list | dict)


async def _begun(reply: Reply, within_s: float | None) -> None:
    try:
        await reply.begin(within_s)
    except BaseException:
        await reply.aclose()
        raise


def conversation(messages: Sequence[Message], options: ReplyOptions, n: int = 1) -> Ask:
    """``n`` answers to a conversation."""
    return lambda model: (
        model.reply(messages, options) if n == 1 else model.replies(messages, options, n)
    )
