"""Claude Code's requests are answered as it expects, and its turns find their prompts computed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2
import pytest

from localrun.chat.messages import ReplyEvent
from localrun.engine.request import FinishReason
from localrun.server.anthropic import messages_asked
from localrun.server.app import create_app
from localrun.server.guards import ServerOptions
from tests.engine_child import importable, plan
from tests.fake_chat import FakeChat, FakeModels, ending
from tests.ported import Model, Port, ported
from tests.unit.test_server_anthropic import client_of, events_of, gathered

__all__ = ["importable"]

RECORDED = json.loads(
    (Path(__file__).parent.parent / "clients" / "claude_code.json").read_text("utf-8")
)
STREAMED = [name for name, each in RECORDED["requests"].items() if each["body"].get("stream")]


def body_of(name: str) -> dict[str, Any]:
    body: dict[str, Any] = dict(RECORDED["requests"][name]["body"])
    return body | ({"tools": RECORDED["tools"]} if body.get("tools") == "all" else {})


async def send(chat: FakeChat, name: str) -> httpx2.Response:
    app = create_app(FakeModels(fake=chat), ServerOptions(api_key="local"))
    async with client_of(app) as client:
        path = RECORDED["requests"][name]["path"]
        return await client.post(path, json=body_of(name), headers=RECORDED["headers"])


@pytest.mark.parametrize("name", STREAMED)
async def test_each_of_its_streams_is_answered(name: str) -> None:
    response = await send(FakeChat(), name)

    assert response.status_code == 200, response.text
    events = events_of(response)
    assert gathered(events) == [{"type": "text", "text": "Hello"}]
    assert events[0][1]["message"]["usage"]["input_tokens"] > 0


async def test_its_first_turn_reaches_the_model_with_all_tools_and_without_its_line() -> None:
    chat = FakeChat()
    await send(chat, "first turn")

    messages, options = chat.asked[0]
    assert [message.role for message in messages] == ["system", "user", "system"]
    assert messages[0].content.startswith("You are Claude Code")
    assert "currentDate" in messages[1].content
    assert messages[1].content.endswith("What does main.py print?")
    assert messages[2].content.startswith("Available agent types")
    assert len(options.tools) == len(RECORDED["tools"]) > 60
    assert options.variables == {
        "enable_thinking": True,
        "thinking": True,
        "reasoning_effort": "medium",
    }
    assert (options.max_tokens, options.context.client.count("session_id")) == (32000, 1)


async def test_its_next_turn_begins_as_the_first_one_did() -> None:
    chat = FakeChat()
    await send(chat, "first turn")
    await send(chat, "after a tool")

    (first, then), (second, later) = chat.asked
    assert list(second[: len(first)]) == list(first)
    assert [message.role for message in second[len(first) :]] == ["assistant", "tool", "user"]
    assert second[3].reasoning == "I have to look."
    assert second[4].name == "Read"
    assert (then.tools, then.variables) == (later.tools, later.variables)


async def test_its_title_has_the_form_it_asks_for_and_its_search_is_answered_in_words() -> None:
    titled, searched = FakeChat(), FakeChat()
    await send(titled, "a title")
    await send(searched, "a search")

    grammar = titled.asked[0][1].grammar
    assert grammar is not None
    assert json.loads(grammar.source)["required"] == ["title"]
    assert titled.asked[0][1].variables["enable_thinking"] is False
    assert (searched.asked[0][1].tools, searched.asked[0][1].tool_choice.mode) == ((), "auto")


async def test_its_count_and_its_probe_are_answered() -> None:
    probed = FakeChat((ReplyEvent(text="I"), ending(FinishReason.LENGTH)))

    counted = await send(FakeChat(), "a count")
    probe = await send(probed, "a probe")

    assert counted.json() == {"input_tokens": len("<user>foo")}
    assert probe.json()["stop_reason"] == "max_tokens"


TALKING = "mock:script:Hello there"
LINE = "x-anthropic-billing-header: cc_version=2.1.177.01c; cc_entrypoint=cli; cch={cch};"


def turn(cch: str, *said: str) -> dict[str, Any]:
    """A turn as Claude Code sends it; ``cch`` differs in each."""
    roles = ("user", "assistant") * len(said)
    return {
        "model": TALKING,
        "max_tokens": 40,
        "temperature": 0,
        "system": [
            {"type": "text", "text": LINE.format(cch=cch)},
            {"type": "text", "text": "You are an agent that helps. " * 10},
        ],
        "messages": [
            {"role": role, "content": words} for role, words in zip(roles, said, strict=False)
        ],
    }


async def usages(port: Port) -> tuple[dict[str, int], dict[str, int]]:
    """What two turns of one conversation cost."""
    first = (await port.client.post("/v1/messages", json=turn("36ee5", "Hi"))).json()
    answer = first["content"][0]["text"]
    body = turn("0aaa9", "Hi", answer, "And now?")
    second = (await port.client.post("/v1/messages", json=body)).json()
    return first["usage"], second["usage"]


def prompt_of(usage: dict[str, int]) -> int:
    return usage["input_tokens"] + usage["cache_read_input_tokens"]


@pytest.mark.usefixtures("importable")
async def test_the_second_turn_finds_the_first_computed_though_the_line_has_changed() -> None:
    async with ported({TALKING: Model(plan(TALKING, n_ctx=2000))}) as port:
        first, second = await usages(port)

    assert first["cache_read_input_tokens"] == 0
    # All of the first prompt, and the answer.
    assert second["cache_read_input_tokens"] >= prompt_of(first) + len("Hello there")
    assert second["input_tokens"] < 40


@pytest.mark.usefixtures("importable")
async def test_with_the_line_in_its_prompt_the_second_turn_would_be_computed_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(messages_asked, "without_attribution", lambda text: text)
    async with ported({TALKING: Model(plan(TALKING, n_ctx=2000))}) as port:
        first, second = await usages(port)

    assert second["cache_read_input_tokens"] < len(LINE) + len("<|system|>")
    assert second["input_tokens"] > prompt_of(first) - len(LINE)


@pytest.mark.usefixtures("importable")
async def test_a_stream_of_a_real_engine_begins_and_ends_with_the_same_length_of_prompt() -> None:
    async with ported({TALKING: Model(plan(TALKING, n_ctx=2000))}) as port:
        body = turn("36ee5", "Hi") | {"stream": True}
        events = events_of(await port.client.post("/v1/messages?beta=true", json=body))
        counted = await port.client.post("/v1/messages/count_tokens", json=turn("0aaa9", "Hi"))

    start, end = events[0][1]["message"]["usage"], events[-2][1]["usage"]
    assert start["input_tokens"] == prompt_of(end) == counted.json()["input_tokens"]
    assert gathered(events) == [{"type": "text", "text": "Hello there"}]


@pytest.mark.usefixtures("importable")
async def test_stops_lengths_and_a_full_context_of_a_real_engine_have_their_reasons() -> None:
    endless = "mock:script:" + "x" * 1000
    models = {
        TALKING: Model(plan(TALKING, n_ctx=400)),
        endless: Model(plan(endless, n_ctx=400)),
    }
    asked = turn("1", "Hi")
    async with ported(models) as port:
        ends = []
        for fields in (
            {"stop_sequences": ["there"]},
            {"max_tokens": 3},
            {"max_tokens": 32_000},
            {"max_tokens": 32_000, "model": endless},
        ):
            answer = (await port.client.post("/v1/messages", json=asked | fields)).json()
            ends.append((answer["stop_reason"], answer["stop_sequence"]))
        long = asked | {"system": "a" * 500, "stream": True}
        refused = await port.client.post("/v1/messages", json=long)

    assert ends == [
        ("stop_sequence", "there"),
        ("max_tokens", None),
        ("end_turn", None),
        ("model_context_window_exceeded", None),
    ]
    assert refused.status_code == 400
    assert "tokens > 399 maximum" in refused.json()["error"]["message"]
