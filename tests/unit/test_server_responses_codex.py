"""Codex' requests are answered as it expects, and its turns find their prompts computed."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from localrun.chat.messages import CallDelta, ReplyEvent, ToolCall
from tests.engine_child import importable, plan
from tests.fake_chat import FakeChat, ending
from tests.ported import Model, ported
from tests.responses import parsed, streamed

__all__ = ["importable"]

RECORDED = json.loads((Path(__file__).parent.parent / "clients" / "codex.json").read_text("utf-8"))
REQUESTS = RECORDED["requests"]
TALKING = "mock:script:Hello there"


def names(chat: FakeChat) -> list[str]:
    """The tools that the model was told of."""
    return [tool["function"]["name"] for tool in chat.asked[-1][1].tools]


@pytest.mark.parametrize("name", REQUESTS)
async def test_each_of_its_requests_is_answered(name: str) -> None:
    events = await streamed(FakeChat(), **REQUESTS[name]["body"])

    assert events[-1]["type"] == "response.completed"
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == "Hello"


async def test_a_later_turn_is_understood_in_all_of_its_parts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    body = REQUESTS["a later turn"]["body"]
    begun = CallDelta(0, "call_1", "multi_agent_v1__spawn_agent", '{"message": "x"}')
    chat = FakeChat((ReplyEvent(call=begun), ending()))
    with caplog.at_level(logging.WARNING, "localrun.server"):
        events = await streamed(chat, **body)

    messages, options = chat.asked[0]
    assert names(chat) == [
        "exec_command",
        "write_stdin",
        "update_plan",
        "apply_patch",
        "tool_search",
        "mcp__github__list_issues",
        "multi_agent_v1__spawn_agent",
        "mcp__calendar__create_event",
    ]
    assert [message.role for message in messages] == [
        *("system", "user", "user"),
        *("assistant", "tool", "assistant", "tool", "assistant", "tool", "assistant", "tool"),
        *("user", "user"),
    ]
    assert [call.name for message in messages for call in message.tool_calls] == [
        "exec_command",
        "apply_patch",
        "mcp__github__list_issues",
        "tool_search",
    ]
    assert messages[3].reasoning == "Look first."
    assert "this model cannot be shown it" in messages[8].content
    assert messages[-2].content == "The worker is done."
    assert options.variables == {"reasoning_effort": "medium"}
    assert options.context.client.endswith(body["prompt_cache_key"])
    warned = [record.getMessage() for record in caplog.records]
    assert ["image_generation, web_search" in warned[0], "web_search_call" in warned[1]] == [
        True,
        True,
    ]
    (call,) = events[-1]["response"]["output"]
    assert (call["namespace"], call["name"]) == ("multi_agent_v1", "spawn_agent")


async def test_tools_that_stand_in_the_input_can_be_called_by_their_own_names() -> None:
    begun = CallDelta(0, "call_1", "apply_patch", '{"input": "x"}')
    chat = FakeChat((ReplyEvent(call=begun), ending()))
    events = await streamed(chat, **REQUESTS["tools within the input"]["body"])

    (call,) = events[-1]["response"]["output"]
    assert names(chat) == ["exec_command", "apply_patch"]
    assert (call["type"], call["name"], call["input"]) == ("custom_tool_call", "apply_patch", "x")
    assert "namespace" not in call


async def test_a_local_shell_and_its_output_are_a_call_and_its_result() -> None:
    chat = FakeChat()
    await streamed(chat, **REQUESTS["a local shell"]["body"])

    *_, asked, came = chat.asked[0][0]
    assert names(chat) == ["local_shell"]
    assert asked.tool_calls == (ToolCall("call_1", "local_shell", {"command": ["ls"]}),)
    assert (came.role, came.content, came.tool_call_id) == ("tool", "test.py", "call_1")


@pytest.mark.usefixtures("importable")
async def test_the_second_turn_of_a_real_engine_finds_the_first_computed() -> None:
    async with ported({TALKING: Model(plan(TALKING, n_ctx=4000))}) as port:

        async def turn(*items: dict[str, Any]) -> dict[str, Any]:
            body = {
                "model": TALKING,
                "instructions": "You are an agent that helps. " * 10,
                "input": [{"role": "user", "content": "Hi"}, *items],
                "stream": True,
                "prompt_cache_key": "k",
            }
            response = await port.client.post("/v1/responses", json=body)
            blocks = response.text.split("\n\n")[:-1]
            last: dict[str, Any] = [parsed(block) for block in blocks][-1]["response"]
            return last

        first = await turn()
        second = await turn(*first["output"], {"role": "user", "content": "And now?"})

    assert first["output"][0]["content"][0]["text"] == "Hello there"
    cached = second["usage"]["input_tokens_details"]["cached_tokens"]
    assert first["usage"]["input_tokens_details"]["cached_tokens"] == 0
    assert cached >= first["usage"]["input_tokens"] + len("Hello there")
