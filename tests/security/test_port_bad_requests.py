"""What cannot be served, asked over a real port: a typed refusal with its numbers, and no more.

Whoever asks at the same time gets a whole answer, and so does the next one who asks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from localrun.engine.options import EngineOptions
from tests.engine_child import importable, plan
from tests.ported import Model, Port, ported

__all__ = ["importable"]
pytestmark = pytest.mark.usefixtures("importable")

N_CTX = 512
BATCHING = "tests.engine_child:batching"
ECHO = "mock:echo"
SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}}
# Fields of the request, the code and the field that the refusal names, and what it says.
REFUSED: dict[str, tuple[dict[str, Any], str, str | None, tuple[str, ...]]] = {
    "a prompt over the context": (
        {"messages": [{"role": "user", "content": "x" * 600}]},
        "context_length_exceeded",
        "messages",
        ("604 tokens", "holds 512"),
    ),
    "a prompt that fills the context": (
        {"messages": [{"role": "user", "content": "x" * 508}]},
        "context_length_exceeded",
        "messages",
        ("512 tokens", "holds 512"),
    ),
    "a stop string of a megabyte": (
        {"stop": "x" * 1_000_000},
        "invalid_request",
        "stop[0]",
        ("1024 characters",),
    ),
    "a thousand stop strings": ({"stop": ["x"] * 1000}, "invalid_request", "stop", ("16", "1000")),
    "a thousand choices": ({"n": 1000}, "invalid_request", "n", ("8",)),
    "a bias of no token": (
        {"logit_bias": {"99999": 1}},
        "invalid_request",
        "logit_bias",
        ("logit_bias", "0 to 261"),
    ),
    "a grammar of two megabytes": (
        {"grammar": 'root ::= "' + "x" * 2_000_000 + '"'},
        "invalid_request",
        "grammar",
        ("1048576",),
    ),
    "a schema of two megabytes": (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"schema": {"description": "x" * 2_000_000}},
            }
        },
        "invalid_request",
        "response_format",
        ("1048576",),
    ),
    "a grammar without its rule": (
        {"grammar": "root ::= missing"},
        "invalid_request",
        "grammar",
        ("gbnf", "missing"),
    ),
    "a grammar of itself": ({"grammar": "root ::= root"}, "invalid_request", "grammar", ("gbnf",)),
    "a pattern that is none": (
        {"guided_regex": "("},
        "invalid_request",
        "guided_regex",
        ("regex",),
    ),
    "a pattern of brackets": (
        {"guided_regex": "(" * 60_000},
        "invalid_request",
        "guided_regex",
        ("regex",),
    ),
    "a schema of no type": (
        {"response_format": SCHEMA},
        "invalid_request",
        "response_format",
        ("schema",),
    ),
}


async def test_what_cannot_be_served_is_refused_with_its_numbers_and_harms_nobody() -> None:
    model = Model(plan(ECHO, n_ctx=N_CTX), BATCHING)
    beside = "somebody else's question, answered to its end: " * 3
    async with ported({ECHO: model}) as port:
        pid = None
        for name, (fields, code, param, said) in REFUSED.items():
            whole, streamed, other = await asyncio.gather(
                port.ask(ECHO, **fields),
                port.ask(ECHO, **fields, stream=True),
                port.said(ECHO, beside + name),
            )
            for response in (whole, streamed):
                assert response.status_code == 400, (name, response.text)
                error = response.json()["error"]
                assert (error["code"], error["param"]) == (code, param), (name, error)
                assert all(words in error["message"] for words in said), (name, error)
                assert len(error["message"]) < 1000, name
            assert other == beside + name
            assert await port.said(ECHO, f"after {name}") == f"after {name}"
            assert pid in (None, port.engines[ECHO].pid), name
            pid = port.engines[ECHO].pid


BROKEN: dict[str, tuple[Model, str, int, str]] = {
    "raises in prefill": (
        Model(plan("m"), BATCHING),
        "x?",
        500,
        "a token of the batch is cursed",
    ),
    "raises in decode": (Model(plan("m"), BATCHING), "say", 500, "a token of the batch is cursed"),
    "raises on load": (Model(plan("mock:nonsense")), "x", 500, "no runner is called"),
    "raises what nobody foresaw on load": (
        Model(plan("m"), "tests.engine_child:broken"),
        "x",
        503,
        "while loading the model (exit status 1)",
    ),
    "gets no memory on load": (
        Model(plan("m"), "tests.engine_child:crowded"),
        "x",
        503,
        "no memory left",
    ),
    "has no numbers": (Model(plan("mock:nan")), "x", 500, "logits are not finite"),
    "hangs": (
        Model(plan("m"), "tests.engine_child:stuck", options={"hang_timeout_s": 0.4}),
        "x",
        503,
        "for 0.4 s",
    ),
    "hangs and keeps the interpreter": (
        Model(plan("m"), "tests.engine_child:stuck_alone", options={"hang_timeout_s": 0.4}),
        "x",
        503,
        "for 0.4 s",
    ),
    "hangs on load": (
        Model(plan("m"), "tests.engine_child:never", options={"load_timeout_s": 0.2}),
        "x",
        500,
        "not loaded within 0.2 s",
    ),
    "dies in prefill": (Model(plan("mock:crash")), "x", 503, "SIGKILL"),
    "dies in decode": (Model(plan("mock:crash-at:5")), "x", 503, "SIGKILL"),
    "dies on load": (
        Model(plan("m"), "tests.engine_child:abort"),
        "x",
        503,
        "while loading the model (SIGABRT)",
    ),
}


async def outcome(port: Port, model: str, text: str) -> tuple[int, str]:
    """The status and message of a failure; a stream that has begun has 200 and a last event."""
    response = await port.ask(model, text, stream=True)
    if response.status_code != 200:
        return response.status_code, response.json()["error"]["message"]
    *_, last, done = [line for line in response.text.split("\n") if line]
    assert done == "data: [DONE]"
    assert '"error"' in last
    return 200, last


@pytest.mark.parametrize(("model", "text", "status", "said"), BROKEN.values(), ids=BROKEN.keys())
async def test_a_runner_that_fails_is_told_as_that_and_harms_no_other_model(
    model: Model, text: str, status: int, said: str
) -> None:
    beside = "somebody else's question " * 8
    async with ported({"bad": model, "good": Model(plan(ECHO))}) as port:
        assert await port.said("good", "first") == "first"
        whole, (began, last), other = await asyncio.gather(
            port.ask("bad", text), outcome(port, "bad", text), port.said("good", beside)
        )
        after = await port.said("good", "after")
        if model.loader == BATCHING:
            assert await port.said("bad", "after") == "after"

    assert whole.status_code == status, whole.text
    assert said in whole.json()["error"]["message"]
    assert began in (200, status)
    assert said in last
    assert (other, after) == (beside, "after")


STATES: dict[str, tuple[Callable[[bytes], bytes], bool]] = {
    "as it was": (lambda data: data, True),
    "damaged": (lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:], False),
    "cut short": (lambda data: data[: len(data) // 2], False),
    "of another version": (lambda data: data[:8] + b"\xff" + data[9:], False),
    "nothing like it": (lambda data: b"GGUF" * 100, False),
}


@pytest.mark.parametrize(("change", "serves"), STATES.values(), ids=STATES.keys())
async def test_a_state_on_disk_serves_if_it_is_whole_and_else_costs_nothing_but_its_use(
    change: Callable[[bytes], bytes], serves: bool, tmp_path: Path
) -> None:
    model = Model(plan(ECHO), options={"options": EngineOptions(state_folder=tmp_path / "states")})
    text = "what was said before is found again " * 10
    async with ported({ECHO: model}) as port:
        assert await port.said(ECHO, text) == text
    (file,) = (tmp_path / "states").rglob("*.state")
    file.write_bytes(change(file.read_bytes()))

    async with ported({ECHO: model}) as port:
        again = (await port.ask(ECHO, text)).json()
        assert await port.said(ECHO, "after") == "after"

    assert again["choices"][0]["message"]["content"] == text
    assert (again["usage"]["prompt_tokens_details"]["cached_tokens"] > 300) is serves
