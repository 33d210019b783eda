"""Row N7 of the threat table: whoever sends or reads a byte at a time holds up nobody."""

from __future__ import annotations

import asyncio
import json
import resource
import time
from collections.abc import Iterator, Sequence

import psutil
import pytest

from localrun.chat.messages import ReplyEvent
from localrun.server.app import create_app
from tests.fake_chat import FakeChat, FakeModels
from tests.security.port_routes import examples
from tests.served import exchange, served, status

MIB = 1 << 20
CHAT = "/v1/chat/completions"
STREAMING = (CHAT, "/v1/messages", "/v1/responses", "/api/chat", "/completion")


def posted(port: int, path: str, **fields: object) -> bytes:
    text = json.dumps(examples("fake")[path] | fields)
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(text)}\r\n\r\n{text}"
    ).encode()


async def drip(port: int, data: bytes, every_s: float) -> float:
    """Send a byte at a time; how long it took until the server cut the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    began = time.perf_counter()
    ended = asyncio.create_task(reader.read())
    for byte in data:
        if ended.done():
            break
        writer.write(bytes([byte]))
        await asyncio.wait((ended,), timeout=every_s)
    await asyncio.gather(ended, return_exceptions=True)
    took = time.perf_counter() - began
    writer.close()
    await asyncio.gather(writer.wait_closed(), return_exceptions=True)
    return took


async def probes(port: int, until: asyncio.Event) -> list[float]:
    request = f"GET /health HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n".encode()
    took = []
    while not until.is_set():
        began = time.perf_counter()
        assert status(await exchange(port, request)) == 200
        took.append(time.perf_counter() - began)
        await asyncio.wait((asyncio.create_task(until.wait()),), timeout=0.02)
    return sorted(took)


async def attacked(count: int, every_s: float) -> tuple[Sequence[float], list[float]]:
    """When each of ``count`` slow connections ended, and how long others waited meanwhile."""
    async with served(create_app(FakeModels(fake=FakeChat()))) as port:
        over = asyncio.Event()
        probing = asyncio.create_task(probes(port, over))
        head, whole = posted(port, CHAT).partition(b"\r\n\r\n")[0], posted(port, CHAT)
        # Half of them never end their header; the others are slow from then on.
        slow = [head * 9 if at % 2 else whole for at in range(count)]
        ended = await asyncio.gather(*(drip(port, data, every_s) for data in slow))
        over.set()
        return ended, await probing


def holds(ended: Sequence[float], waited: list[float], *, receipt_s: float) -> None:
    assert max(ended) <= receipt_s + 2
    assert min(ended) >= receipt_s * 0.9
    assert len(waited) >= 20
    assert waited[len(waited) * 95 // 100] <= 0.25


async def test_two_hundred_slow_senders_are_cut_off_and_hold_up_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("localrun.server.protocol.DeadlineProtocol.receipt_s", 2.0)
    ended, waited = await attacked(200, every_s=0.2)

    holds(ended, waited, receipt_s=2.0)


@pytest.fixture
def many_files() -> Iterator[None]:
    """Both ends of a connection are files of this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(4096, hard)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.long
@pytest.mark.usefixtures("many_files")
async def test_a_thousand_slow_senders_are_cut_off_after_ten_seconds() -> None:
    ended, waited = await attacked(1000, every_s=1.0)

    holds(ended, waited, receipt_s=10.0)


@pytest.mark.parametrize(
    "path", [CHAT, "/v1/messages", "/v1/responses", "/api/chat", "/completion"]
)
async def test_a_stream_that_nobody_reads_takes_no_memory_and_holds_up_no_other(path: str) -> None:
    piece = ReplyEvent(text="x" * 10_000)
    flood, quick = FakeChat((piece,) * 5000), FakeChat()
    streams = 8
    async with served(create_app(FakeModels(fake=flood, quick=quick))) as port:
        assert status(await exchange(port, posted(port, CHAT, model="quick"))) == 200
        process = psutil.Process()
        before = process.memory_info().rss
        # A small receive window: what the kernel takes is not the server's.
        open_ones = [
            await asyncio.open_connection("127.0.0.1", port, limit=1024) for _ in range(streams)
        ]
        for _, writer in open_ones:
            writer.write(posted(port, path, stream=True))
        async with asyncio.timeout(10):
            while flood.running < streams:
                await asyncio.sleep(0)
            answers = [await exchange(port, posted(port, CHAT, model="quick")) for _ in range(50)]
        grown = process.memory_info().rss - before
        stuck = flood.running
        for _, writer in open_ones:
            writer.close()
            await asyncio.gather(writer.wait_closed(), return_exceptions=True)
        async with asyncio.timeout(10):
            while flood.running:
                await asyncio.sleep(0)

    assert {status(answer) for answer in answers} == {200}
    assert stuck == streams
    assert grown <= streams * MIB
