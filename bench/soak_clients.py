"""Clients of the soak: each knows what the answer to its request must be, and may leave any time.

One client sends one request after the other on a connection that it keeps until it, or the server,
ends it. Nothing here measures time.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from soak_answers import MODEL, N_CTX, answer

KEYS = ("ann", "bob")
SYSTEMS = (
    "Be brief. " * 12,
    "You know every river of the world, its length, its springs and its mouth. " * 4,
    "",
)
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 9}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
JSON_FORMS: tuple[dict[str, Any], ...] = (
    {"response_format": {"type": "json_schema", "json_schema": {"name": "p", "schema": PERSON}}},
    {"response_format": {"type": "json_object"}},
    {"guided_regex": r'\{"name": "[a-z]+", "age": [0-9]{1,2}\}'},
    {},
)
REFUSED: tuple[tuple[dict[str, Any], int, str], ...] = (
    ({"n": 1000}, 400, "n:"),
    ({"stop": "x" * 1_000_000}, 400, "stop"),
    ({"grammar": "root ::= missing"}, 400, "missing"),
    ({"guided_regex": "(" * 100}, 400, "regex"),
    ({"messages": [{"role": "user", "content": "x" * 2 * N_CTX}]}, 400, str(N_CTX)),
    ({"model": "another"}, 404, "another"),
)
# How a client leaves, and how often; most read to the end.
LEAVES = {"": 70, "unsent": 3, "soon": 9, "head": 4, "first": 4, "later": 10}
PAUSE_S = 0.03


@dataclass(frozen=True)
class Expected:
    """What each choice must be. ``refusal``: the status and a part of the message instead."""

    text: str = ""
    finish: str = "stop"
    choices: int = 1
    prompt: int = 0
    generated: int = 0
    refusal: tuple[int, str] | None = None


@dataclass
class Tally:
    """What happened. ``wrong`` tells of each answer that is not what it must be."""

    requests: int = 0
    whole: int = 0
    refused: int = 0
    left: Counter[str] = field(default_factory=Counter)
    generated: int = 0
    prompt: int = 0
    cached: int = 0
    wrong: list[str] = field(default_factory=list)


def asked(chosen: random.Random, number: str) -> tuple[dict[str, Any], Expected]:
    """A body, and what comes of it; ``number`` makes it one that was never asked before."""
    if chosen.random() < 0.02:
        fields, status, said = chosen.choice(REFUSED)
        body = {"model": MODEL, "messages": [{"role": "user", "content": "words 1"}]} | fields
        return body, Expected(refusal=(status, said))
    kind = chosen.choices(("words", "json", "perhaps"), (8, 2, 1))[0]
    # A few answers are more than sockets take from a server whose client does not read.
    count = chosen.randrange(12) if chosen.random() < 0.98 else 100
    messages = _messages(chosen, number, f"{kind} {count}")
    text = "".join(message["content"] for message in messages)
    whole = answer(text)
    body = {
        "model": MODEL,
        "messages": messages,
        "temperature": chosen.choice((0, 0.7)),
        "stream": chosen.random() < 0.6,
        "stream_options": {"include_usage": True},
        "n": chosen.choice((1, 1, 1, 2)),
        "user": chosen.choice(("x", "y")),
        "logprobs": chosen.random() < 0.1,
    }
    shown, finish, generated = whole, "stop", len(whole.encode()) + 1
    if kind == "json":
        form = chosen.choice(JSON_FORMS)
        body |= form
        # The grammar ends with the last bracket; without one an end token does.
        generated -= bool(form)
    elif kind == "perhaps":
        body |= {"guided_choice": ["yes", "no"], "temperature": 0}
        shown, generated = "no", 2
    elif whole and chosen.random() < 0.2:
        at = chosen.randrange(len(whole))
        body["stop"] = stop = whole[at : at + chosen.randint(1, 6)]
        shown = whole[: whole.index(stop)]
        generated = len((shown + stop).encode())
    elif whole and chosen.random() < 0.2:
        body["max_tokens"] = most = chosen.randint(1, len(whole.encode()))
        shown, finish, generated = whole.encode()[:most].decode("utf-8", "replace"), "length", most
    # BOS, a role and an end for each message, and the role that is to speak.
    prompt = 1 + len(text.encode()) + 2 * len(messages) + 1
    return body, Expected(shown, finish, body["n"], prompt, body["n"] * generated)


def _messages(chosen: random.Random, number: str, task: str) -> list[dict[str, str]]:
    """A question, some with turns before it; a few are long."""
    system = chosen.choice(SYSTEMS)
    messages = [{"role": "system", "content": system}] if system else []
    if chosen.random() < 0.3:
        messages.append({"role": "user", "content": f"{number[:2]} first words 3"})
        messages.append({"role": "assistant", "content": "over old stones"})
    filler = "long é " * 80 if chosen.random() < 0.05 else ""
    messages.append({"role": "user", "content": f"{filler}{number} {task}"})
    return messages


class _LeftError(Exception):
    """The client went away on purpose."""


class Client:
    """Sends requests one after the other; ``tally`` is shared by all."""

    def __init__(self, port: int, seed: int, tally: Tally) -> None:
        self._port = port
        self._chosen = random.Random(seed)
        self._name = f"{seed:02}"
        self._key = KEYS[seed % 2]
        self._sent = 0
        self._tally = tally
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, times: int) -> None:
        for _ in range(times):
            body, expected = asked(self._chosen, f"{self._name}-{self._sent}")
            self._sent += 1
            self._tally.requests += 1
            leave = self._chosen.choices([*LEAVES], [*LEAVES.values()])[0]
            found: list[str] = []
            try:
                await self._exchange(body, expected, leave, found)
            except _LeftError:
                self._tally.left[leave] += 1
                await self.close()
            except (OSError, EOFError) as error:
                found.append(f"{type(error).__name__}: {error}")
                await self.close()
            self._tally.wrong += [f"{problem} of {str(body)[:300]}" for problem in found]

    async def close(self) -> None:
        if self._streams is not None:
            _, writer = self._streams
            self._streams = None
            if self._chosen.random() < 0.5:
                writer.transport.abort()
            writer.close()
            try:
                await writer.wait_closed()
            except ConnectionError:
                return

    async def _exchange(
        self, body: dict[str, Any], expected: Expected, leave: str, found: list[str]
    ) -> None:
        if self._streams is not None and self._chosen.random() < 0.1:
            await self.close()
        data = self._request(body)
        if leave in ("unsent", "soon"):
            _, writer = await self._connection()
            writer.write(data[: len(data) // 2] if leave == "unsent" else data)
            await asyncio.sleep(self._chosen.random() * PAUSE_S)
            raise _LeftError
        reader, status, headers = await self._answered(data)
        if leave == "head":
            raise _LeftError
        if headers.get("content-type", "").startswith("text/event-stream"):
            last = 1 if leave == "first" else self._chosen.randrange(2, 40) if leave else 0
            await self._streamed(reader, expected, last, found)
        else:
            content = await reader.readexactly(int(headers["content-length"]))
            self._judge(status, json.loads(content), expected, found)
        if headers.get("connection") == "close":
            await self.close()

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=4096)
        return self._streams

    async def _answered(self, data: bytes) -> tuple[asyncio.StreamReader, int, dict[str, str]]:
        """Send a request; its head. A connection that was idle too long may have been closed in
        the same moment: another is tried then, as every client does."""
        was_open = self._streams is not None
        reader, writer = await self._connection()
        writer.write(data)
        try:
            return reader, *await _head(reader)
        except asyncio.IncompleteReadError as error:
            if not was_open or error.partial:
                raise
        except ConnectionError:
            if not was_open:
                raise
        await self.close()
        return await self._answered(data)

    def _request(self, body: dict[str, Any]) -> bytes:
        content = json.dumps(body).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\n"
            f"Authorization: Bearer {self._key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        return head.encode() + content

    async def _streamed(
        self, reader: asyncio.StreamReader, expected: Expected, last: int, found: list[str]
    ) -> None:
        """Read a stream to its end, or to its chunk ``last``; some readers pause now and then."""
        texts, finishes = [""] * expected.choices, [""] * expected.choices
        usage: dict[str, Any] = {}
        pauses = self._chosen.random() < 0.05
        count = 0
        async for document in _documents(reader):
            count += 1
            if "error" in document:
                found.append(f"an error event: {document['error']['message']}")
                continue
            for choice in document["choices"]:
                texts[choice["index"]] += choice["delta"].get("content", "")
                finishes[choice["index"]] = choice["finish_reason"] or ""
            usage = document["usage"] or usage
            if count == last:
                if not all(expected.text.startswith(text) for text in texts):
                    found.append(f"{texts} is no beginning of {expected.text!r}")
                raise _LeftError
            if pauses and self._chosen.random() < 0.1:
                await asyncio.sleep(self._chosen.random() * PAUSE_S)
        self._compare(texts, finishes, usage, expected, found)

    def _judge(
        self, status: int, document: dict[str, Any], expected: Expected, found: list[str]
    ) -> None:
        """A whole answer, or a refusal."""
        if status != 200:
            said = document["error"]["message"]
            if expected.refusal is None or (status, expected.refusal[1] in said) != (
                expected.refusal[0],
                True,
            ):
                found.append(f"status {status}: {said}")
            self._tally.refused += 1
            return
        texts = [choice["message"]["content"] for choice in document["choices"]]
        finishes = [choice["finish_reason"] for choice in document["choices"]]
        for choice in document["choices"]:
            if choice["logprobs"]:
                told = b"".join(bytes(each["bytes"]) for each in choice["logprobs"]["content"])
                if not told.startswith(expected.text.encode().rstrip(b"\xef\xbf\xbd")):
                    found.append(f"log-probabilities of {told!r}")
        self._compare(texts, finishes, document["usage"], expected, found)

    def _compare(
        self,
        texts: list[str],
        finishes: list[str],
        usage: dict[str, Any],
        expected: Expected,
        found: list[str],
    ) -> None:
        self._tally.whole += 1
        if expected.refusal is not None:
            found.append(f"an answer instead of {expected.refusal}")
        if texts != [expected.text] * expected.choices:
            found.append(f"{texts} instead of {expected.text!r}")
        if finishes != [expected.finish] * expected.choices:
            found.append(f"{finishes} instead of {expected.finish}")
        counts = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if counts != (expected.prompt, expected.generated):
            found.append(f"{counts} instead of {expected.prompt}, {expected.generated} tokens")
            return
        self._tally.prompt += expected.prompt
        self._tally.generated += expected.generated
        self._tally.cached += usage["prompt_tokens_details"]["cached_tokens"]


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
    fields = [line.lower().partition(": ") for line in lines]
    return int(first.split(" ")[1]), {name: value for name, _, value in fields}


async def _documents(reader: asyncio.StreamReader) -> AsyncIterator[dict[str, Any]]:
    """The events of a stream in chunked transfer, to its very end."""
    while size := int(await reader.readline(), 16):
        data = (await reader.readexactly(size + 2)).decode().strip()
        for line in data.split("\n\n"):
            if line != "data: [DONE]":
                yield json.loads(line.removeprefix("data: "))
    await reader.readline()
