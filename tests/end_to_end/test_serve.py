"""A served model, from a real client over a real port to an engine in a child process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx2
import openai
import psutil
import pytest

from localrun.chat.local import LocalChatModel
from localrun.chat.messages import ServedModel
from localrun.chat.templates import Renderer
from localrun.engine.process.engine_process import EngineProcess
from localrun.server.app import create_app
from localrun.server.guards import ServerOptions
from localrun.server.models import ModelCard
from localrun.server.provider import LoadingProvider
from localrun.server.serving import listen
from tests.engine_child import LOADER, ROOT, importable, plan
from tests.loads import unlimited
from tests.mock_runner import CHAT_TEMPLATE
from tests.served import served

__all__ = ["importable"]
pytestmark = pytest.mark.usefixtures("importable")

MODELS = ["mock:script:Hello there", "long", "mock:crash-at:8", "mock:hashed"]
GREETING, LONG, CRASHING, BABBLING = MODELS
KEY = "a key"


async def open_model(name: str) -> ServedModel:
    made = plan("mock:script:" + "x" * 100_000, n_ctx=200_000) if name == LONG else plan(name)
    engine = await EngineProcess.start(made, loader=LOADER, chat_template=CHAT_TEMPLATE)
    return LocalChatModel(engine, Renderer())


@asynccontextmanager
async def client(key: str = KEY) -> AsyncIterator[openai.AsyncOpenAI]:
    cards = [ModelCard(name, 1_700_000_000) for name in MODELS]
    provider = LoadingProvider(unlimited(open_model), cards=lambda: cards)
    app = create_app(provider, ServerOptions(api_key=KEY))
    async with (
        served(app, api_key=KEY) as port,
        openai.AsyncOpenAI(
            base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=0, timeout=30
        ) as speaker,
    ):
        yield speaker


def asked(model: str, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "system", "content": "Be kind"}, {"role": "user", "content": "Hi"}]
    return {"model": model, "messages": messages, "temperature": 0} | fields


async def test_the_openai_client_lists_answers_and_streams() -> None:
    async with client() as speaker:
        names = [model.id async for model in await speaker.models.list()]
        whole = await speaker.chat.completions.create(**asked(GREETING))
        stream = await speaker.chat.completions.create(
            **asked(GREETING, stream=True, stream_options={"include_usage": True})
        )
        chunks = [chunk async for chunk in stream]

    assert names == MODELS
    assert whole.choices[0].message.content == "Hello there"
    assert whole.choices[0].finish_reason == "stop"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "Hello there"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert whole.usage is not None
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    # The same conversation again: all but what must be computed anew comes from the cache.
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens >= whole.usage.prompt_tokens - 1


async def test_max_tokens_and_stop_strings_are_honoured() -> None:
    async with client() as speaker:
        short = await speaker.chat.completions.create(**asked(GREETING, max_tokens=3))
        stopped = await speaker.chat.completions.create(**asked(GREETING, stop=[" there"]))

    assert (short.choices[0].message.content, short.choices[0].finish_reason) == ("Hel", "length")
    assert stopped.choices[0].message.content == "Hello"


async def test_several_choices_come_whole_and_streamed() -> None:
    async with client() as speaker:
        whole = await speaker.chat.completions.create(**asked(GREETING, n=3))
        stream = await speaker.chat.completions.create(**asked(GREETING, n=3, stream=True))
        chunks = [chunk async for chunk in stream]

    assert [choice.message.content for choice in whole.choices] == ["Hello there"] * 3
    assert whole.usage is not None
    # One prompt; of each choice the text and its end.
    assert whole.usage.completion_tokens == 3 * (len("Hello there") + 1)
    texts = ["", "", ""]
    for chunk in chunks:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == ["Hello there"] * 3


PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "adult": {"type": "boolean"}},
    "required": ["name", "adult"],
    "additionalProperties": False,
}


async def test_an_answer_has_the_form_it_was_asked_in() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
    async with client() as speaker:
        free = await speaker.chat.completions.create(**asked(BABBLING, max_tokens=40))
        held = [
            await speaker.chat.completions.create(
                **asked(BABBLING, max_tokens=400, temperature=1, seed=seed, response_format=form)
            )
            for seed in range(3)
        ]
        chosen = await speaker.chat.completions.create(
            **asked(BABBLING, extra_body={"guided_choice": ["yes", "no"]})
        )
        with pytest.raises(openai.BadRequestError) as hopeless:
            await speaker.chat.completions.create(
                **asked(BABBLING, extra_body={"grammar": "root ::= missing"})
            )

    with pytest.raises(json.JSONDecodeError):
        json.loads(free.choices[0].message.content or "")
    for answer in held:
        person = json.loads(answer.choices[0].message.content or "")
        assert set(person) == {"name", "adult"}
        assert isinstance(person["adult"], bool)
        assert answer.choices[0].finish_reason == "stop"
    assert chosen.choices[0].message.content in {"yes", "no"}
    assert "missing" in hopeless.value.message


async def test_logprobs_are_those_of_the_tokens_that_came() -> None:
    fields = {"logprobs": True, "top_logprobs": 2, "max_tokens": 5}
    async with client() as speaker:
        whole = await speaker.chat.completions.create(**asked(GREETING, **fields))
        stream = await speaker.chat.completions.create(**asked(GREETING, stream=True, **fields))
        chunks = [chunk.choices[0].logprobs async for chunk in stream]
        banned = await speaker.chat.completions.create(
            **asked(GREETING, logit_bias={str(ord("H")): -100}, max_tokens=5)
        )

    logprobs = whole.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [each.token for each in logprobs.content] == list("Hello")
    assert [each.bytes for each in logprobs.content] == [[ord(letter)] for letter in "Hello"]
    assert all(each.logprob > -0.01 for each in logprobs.content)
    assert all(each.top_logprobs[0].token == each.token for each in logprobs.content)
    assert [len(each.top_logprobs) for each in logprobs.content] == [2] * 5
    streamed = [each for told in chunks if told and told.content for each in told.content]
    assert streamed == logprobs.content
    assert "H" not in (banned.choices[0].message.content or "")


async def test_errors_arrive_as_the_openai_clients_own() -> None:
    async with client() as speaker:
        question = [{"role": "user", "content": "x" * 5000}]
        with pytest.raises(openai.BadRequestError) as too_long:
            await speaker.chat.completions.create(**asked(GREETING) | {"messages": question})
        with pytest.raises(openai.BadRequestError) as field:
            await speaker.chat.completions.create(**asked(GREETING, n=1000))
    async with client(key="wrong") as speaker:
        with pytest.raises(openai.AuthenticationError):
            await speaker.models.list()

    assert too_long.value.code == "context_length_exceeded"
    assert "4096" in too_long.value.message
    assert field.value.param == "n"


async def test_a_crash_ends_its_request_with_an_error_and_the_next_one_is_served() -> None:
    async with client() as speaker:

        async def exhaust() -> None:
            stream = await speaker.chat.completions.create(**asked(CRASHING, stream=True))
            async for _ in stream:
                pass

        for _ in range(2):
            with pytest.raises(openai.APIError, match="SIGKILL"):
                await exhaust()
        other = await speaker.chat.completions.create(**asked(GREETING))

    assert other.choices[0].message.content == "Hello there"


async def test_a_client_that_stops_reading_early_frees_the_engine() -> None:
    async with client() as speaker:
        stream = await speaker.chat.completions.create(**asked(LONG, stream=True))
        async for chunk in stream:
            if chunk.choices[0].delta.content:
                break
        await stream.close()
        after = await speaker.chat.completions.create(**asked(LONG, max_tokens=2))

    assert after.choices[0].message.content == "xx"


SERVER = """
import asyncio, sys
from localrun.config import settings
from localrun.server.app import create_app
from localrun.server.models import ModelCard
from localrun.server.provider import LoadingProvider
from localrun.server.serving import listen
from localrun.server.running import register
from localrun.server.serving import listen, serve
from tests.end_to_end.test_serve import open_model
from tests.loads import unlimited

async def main():
    app = create_app(LoadingProvider(unlimited(open_model), cards=lambda: [ModelCard("m", 0)]))
    listener = listen("127.0.0.1", 0, api_key=None)
    port = listener.getsockname()[1]
    with register(settings(), host="127.0.0.1", port=port, models=["m"]):
        print(port, flush=True)
        return await serve(app, listener)

sys.exit(asyncio.run(main()))
"""


@contextmanager
def server_process() -> Iterator[tuple[subprocess.Popen[str], int]]:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        with process.stdout, process.stderr:
            yield process, int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
@pytest.mark.usefixtures("home")
def test_a_signal_ends_streams_with_an_event_and_the_engine_with_the_server(
    number: signal.Signals, code: int
) -> None:
    from localrun.config import settings
    from localrun.server.running import running

    with server_process() as (process, port):
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        question = asked(LONG, stream=True)
        with httpx2.stream("POST", url, json=question, timeout=30) as response:
            lines = response.iter_lines()
            first = next(lines)
            children = psutil.Process(process.pid).children(recursive=True)
            listed = running(settings())
            os.kill(process.pid, number)
            rest = [line for line in lines if line]
        assert process.wait(20) == code
        assert process.stderr is not None
        log = process.stderr.read()

    assert first.startswith("data: ")
    assert [server.port for server in listed] == [port]
    assert running(settings()) == ()
    assert "shutting down" in json.loads(rest[-2][6:])["error"]["message"]
    assert rest[-1] == "data: [DONE]"
    assert len(children) >= 1
    assert psutil.wait_procs(children, timeout=10)[1] == []
    assert "Be kind" not in log
    assert "Traceback" not in log


async def test_small_writes_of_a_stream_are_sent_at_once() -> None:
    at_once: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted = writer.get_extra_info("socket")
        at_once.set_result(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()
        await writer.wait_closed()

    listener = listen("127.0.0.1", 0, api_key=None)
    async with await asyncio.start_server(accept, sock=listener):
        _, writer = await asyncio.open_connection(*listener.getsockname())
        assert await at_once == 1
        writer.close()
        await writer.wait_closed()
