"""Knows no server: answers streamed over HTTP/1.1, with the time at which each piece came.

While it measures the client only keeps what it reads: one callback and one append a read. What the
bytes meant is found out afterwards, so the client takes as little as can be of the cores on which
the servers compute.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

Read = tuple[float, bytes]


@dataclass(frozen=True)
class Answer:
    """What came back of one request. Times are of one clock, in seconds.

    ``texts`` are the times at which text came, one for each event that carried some. ``prompt``,
    ``cached`` and ``generated`` are the server's own counts, ``drafted`` what it speculated on.
    """

    sent: float
    texts: tuple[float, ...]
    text: str
    prompt: int = 0
    cached: int = 0
    generated: int = 0
    drafted: int = 0

    @property
    def first_s(self) -> float:
        return self.texts[0] - self.sent

    @property
    def gaps(self) -> tuple[float, ...]:
        return tuple(after - before for before, after in pairwise(self.texts))


class Exchange(asyncio.Protocol):
    """One request on a connection of its own, read until the server closes it."""

    def __init__(self, request: bytes) -> None:
        self.request = request
        self.sent = 0.0
        self.reads: list[Read] = []
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.sent = time.perf_counter()
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.reads.append((time.perf_counter(), data))

    def connection_lost(self, error: Exception | None) -> None:
        if not self.over.done():
            self.over.set_result(None)

    def leave(self) -> None:
        """Disconnect in the middle, as a client that wants no more."""
        if self._transport is not None:
            self._transport.abort()

    def answer(self) -> Answer:
        return read_answer(self.sent, self.reads)


CHAT = "/v1/chat/completions"


async def begin(port: int, body: dict[str, Any], path: str = CHAT) -> Exchange:
    """Send one request; its answer comes on its own."""
    loop = asyncio.get_running_loop()
    _, exchange = await loop.create_connection(
        lambda: Exchange(request_bytes(port, body, path)), "127.0.0.1", port
    )
    return exchange


async def ask(port: int, body: dict[str, Any]) -> Answer:
    exchange = await begin(port, body)
    await exchange.over
    return exchange.answer()


def request_bytes(port: int, body: dict[str, Any], path: str = CHAT) -> bytes:
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


def chat_body(model: str, system: str, turns: Sequence[str], max_tokens: int) -> dict[str, Any]:
    """A request that is answered with exactly ``max_tokens`` tokens; ``turns`` begin with the
    user's and alternate."""
    messages = [{"role": "system", "content": system}]
    for at, turn in enumerate(turns):
        messages.append({"role": "assistant" if at % 2 else "user", "content": turn})
    return {
        "model": model,
        "messages": messages,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
    }


def read_answer(sent: float, reads: Sequence[Read]) -> Answer:
    """Raises SystemExit where the server said anything but an answer."""
    texts: list[float] = []
    words: list[str] = []
    counts: dict[str, Any] = {}
    for when, document in documents(reads):
        if "error" in document:
            raise SystemExit(f"the server ended a stream: {document['error']}")
        for choice in document.get("choices") or ():
            delta = choice.get("delta") or {}
            piece = (delta.get("content") or "") + (delta.get("reasoning_content") or "")
            if piece:
                texts.append(when)
                words.append(piece)
        if document.get("usage"):
            counts["usage"] = document["usage"]
        if document.get("timings"):
            counts["timings"] = document["timings"]
    usage, timings = counts.get("usage") or {}, counts.get("timings") or {}
    return Answer(
        sent=sent,
        texts=tuple(texts),
        text="".join(words),
        prompt=usage.get("prompt_tokens", 0),
        cached=timings.get("cache_n", 0),
        generated=usage.get("completion_tokens", 0),
        drafted=timings.get("draft_n", 0),
    )


def documents(reads: Sequence[Read]) -> Iterator[tuple[float, dict[str, Any]]]:
    """The server-sent events of a response, each with the time of the read that completed it."""
    held = b""
    for when, content in bodies(reads):
        *lines, held = (held + content).split(b"\n")
        for line in lines:
            data = line.removeprefix(b"data: ").strip()
            if line.startswith(b"data: ") and data != b"[DONE]":
                yield when, json.loads(data)


def bodies(reads: Sequence[Read]) -> Iterator[Read]:
    """The body, without its head and without the marks of chunked transfer (RFC 9112, 7.1)."""
    held, in_body, left = b"", False, 0
    for when, data in reads:
        held += data
        if not in_body:
            head, mark, rest = held.partition(b"\r\n\r\n")
            if not mark:
                continue
            _check(head, reads)
            held, in_body = rest, True
        while held:
            if left == 0:
                size, mark, rest = held.lstrip(b"\r\n").partition(b"\r\n")
                if not mark:
                    break
                held, left = rest, int(size.split(b";")[0], 16)
                if left == 0:
                    return
            part, held = held[:left], held[left:]
            left -= len(part)
            yield when, part


def _check(head: bytes, reads: Sequence[Read]) -> None:
    status = head.split(b" ", 2)[1]
    if status != b"200" or b"transfer-encoding: chunked" not in head.lower():
        said = b"".join(data for _, data in reads).decode(errors="replace")
        raise SystemExit(f"the server answered {said[:600]}")


def percentile(values: Iterable[float], share: float) -> float:
    """The smallest value that ``share`` of all do not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered)), 1) - 1] if ordered else 0.0


def gaps_within(answer: Answer, begin_s: float, end_s: float) -> list[float]:
    """Waits between two texts that any part of a stretch of time fell into."""
    return [
        after - before
        for before, after in pairwise(answer.texts)
        if after > begin_s and before < end_s
    ]
