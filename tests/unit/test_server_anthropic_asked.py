"""What a client asks of Anthropic's API reaches the model as meant."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from localrun.chat.messages import Message, ReplyOptions, ToolCall, ToolChoice
from localrun.engine.request import Grammar
from localrun.server.anthropic.attribution import without_attribution
from localrun.server.anthropic.call_ids import own_id, told_id
from localrun.server.anthropic.messages_asked import messages_of, options_of
from localrun.server.anthropic.messages_request import MessagesRequest
from localrun.server.app import create_app
from localrun.server.context import context_of
from tests.fake_chat import FakeChat, FakeModels
from tests.unit.test_server_anthropic import MESSAGES, client_of, question

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"name": "weather", "description": "Tell the weather", "input_schema": SCHEMA}
SEARCH = {"type": "web_search_20250305", "name": "web_search", "max_uses": 5}
DECLARED = {
    "type": "function",
    "function": {"name": "weather", "description": "Tell the weather", "parameters": SCHEMA},
}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}


def request(**fields: Any) -> MessagesRequest:
    return MessagesRequest.model_validate_json(json.dumps(question(**fields)))


def said(*messages: dict[str, Any], **fields: Any) -> list[Message]:
    return messages_of(request(messages=list(messages), **fields))


def asked(**fields: Any) -> ReplyOptions:
    return options_of(request(**fields), context_of([], "127.0.0.1", None))


def user(*blocks: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words, "cache_control": {"type": "ephemeral", "ttl": "1h"}}


def result(content: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": "toolu_1", "content": content} | fields


def document(source: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"type": "document", "source": source} | fields


CONVERSATIONS: dict[str, tuple[list[dict[str, Any]], list[Message]]] = {
    "a text": ([{"role": "user", "content": "Hi"}], [Message("user", "Hi")]),
    "blocks": ([user(text("a"), text("b"))], [Message("user", "a\n\nb")]),
    "no block at all": ([user()], [Message("user", "")]),
    "a system message in the middle": (
        [user(text("Hi")), {"role": "system", "content": "Mind the gap"}],
        [Message("user", "Hi"), Message("system", "Mind the gap")],
    ),
    "thoughts, words and calls": (
        [
            user(text("Hi")),
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "x"},
                    {"type": "redacted_thinking", "data": "x"},
                    {"type": "text", "text": "I "},
                    {"type": "text", "text": "look"},
                    {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": 1}},
                ],
            },
            user(result("Rain"), text("Well?")),
        ],
        [
            Message("user", "Hi"),
            Message(
                "assistant",
                "I look",
                reasoning="hm",
                tool_calls=(ToolCall("toolu_1", "weather", {"city": 1}),),
            ),
            Message("tool", "Rain", tool_call_id="toolu_1", name="weather"),
            Message("user", "Well?"),
        ],
    ),
    "a result behind words": (
        [user(text("There:"), result([text("a"), text("b")]))],
        [Message("user", "There:"), Message("tool", "a\n\nb", tool_call_id="toolu_1")],
    ),
    "a result of nothing": (
        [user({"type": "tool_result", "tool_use_id": "toolu_1"})],
        [Message("tool", "", tool_call_id="toolu_1")],
    ),
    "a failure": (
        [user(result("no such file", is_error=True))],
        [Message("tool", "Error: no such file", tool_call_id="toolu_1")],
    ),
    "a failure that says so": (
        [user(result("<tool_use_error>no</tool_use_error>", is_error=True))],
        [Message("tool", "<tool_use_error>no</tool_use_error>", tool_call_id="toolu_1")],
    ),
    "what a tool brings that cannot be shown": (
        [user(result([text("a"), IMAGE, {"type": "tool_reference", "tool_name": "grep"}]))],
        [
            Message(
                "tool",
                "a\n\n[image: this model cannot be shown it]\n\ngrep",
                tool_call_id="toolu_1",
            )
        ],
    ),
    "a file that a tool brings": (
        [user(result([document({"type": "base64", "data": "x"})]))],
        [Message("tool", "[document: this model cannot be shown it]", tool_call_id="toolu_1")],
    ),
    "documents": (
        [
            user(
                document(
                    {"type": "text", "media_type": "text/plain", "data": "All of it"},
                    title="Notes",
                    context="of May",
                ),
                document({"type": "content", "content": [text("b"), text("c")]}),
                document({"type": "content", "content": "d"}),
            )
        ],
        [Message("user", "Notes\nof May\nAll of it\n\nb\n\nc\n\nd")],
    ),
    "a search result": (
        [
            user(
                {
                    "type": "search_result",
                    "source": "https://example.org",
                    "title": "Ex",
                    "content": [text("ample")],
                }
            )
        ],
        [Message("user", "Ex\nhttps://example.org\nample")],
    ),
    "what only a server made": (
        [
            user(text("Hi")),
            {
                "role": "assistant",
                "content": [
                    {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}},
                    {"type": "web_search_tool_result", "tool_use_id": "s", "content": []},
                    {"type": "compaction", "content": "Earlier: "},
                    {"type": "text", "text": "Found"},
                ],
            },
        ],
        [Message("user", "Hi"), Message("assistant", "Earlier: Found")],
    ),
    "an id of the model's own": (
        [
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": told_id("f:0"), "name": "f", "input": {}}],
            },
            user(result("1", tool_use_id=told_id("f:0"))),
        ],
        [
            Message("assistant", "", tool_calls=(ToolCall("f:0", "f", {}),)),
            Message("tool", "1", tool_call_id="f:0", name="f"),
        ],
    ),
}


@pytest.mark.parametrize(("messages", "expected"), CONVERSATIONS.values(), ids=CONVERSATIONS.keys())
def test_messages_reach_the_model_as_they_were_meant(
    messages: list[dict[str, Any]], expected: list[Message]
) -> None:
    assert said(*messages) == expected


LINE = "x-anthropic-billing-header: cc_version=2.1.177.01c; cc_entrypoint=sdk-cli; cch=36ee5;"
SYSTEMS: dict[str, tuple[Any, str | None]] = {
    "none": (None, None),
    "a text": ("Be kind", "Be kind"),
    "blocks": ([text("Be"), text("kind")], "Be\n\nkind"),
    "nothing said": ([text("")], None),
    "the line alone": ([text(LINE)], None),
    "the line in a block of its own": ([text(LINE), text("Be kind")], "Be kind"),
    "the line in front of a text": (f"{LINE}\nBe kind", "Be kind"),
    "the line and a gap": (f"{LINE}\r\n\r\n  Be kind", "  Be kind"),
    "the line run into the text": (f"{LINE}Be kind", "Be kind"),
    "no value": (f"{LINE.partition(' cch')[0]}\nBe kind", "Be kind"),
    "no last semicolon": (f"{LINE.rstrip(';')}\nBe = kind", "Be = kind"),
    "the line in the middle": (f"Be kind\n{LINE}", f"Be kind\n{LINE}"),
}


@pytest.mark.parametrize(("system", "expected"), SYSTEMS.values(), ids=SYSTEMS.keys())
def test_the_system_prompt_comes_first_without_claude_codes_line_about_itself(
    system: Any, expected: str | None
) -> None:
    messages = said({"role": "user", "content": "Hi"}, system=system)

    first = [] if expected is None else [Message("system", expected)]
    assert messages == [*first, Message("user", "Hi")]


def test_the_line_is_left_out_of_a_system_message_among_the_others_too() -> None:
    assert said({"role": "system", "content": f"{LINE}\nBe kind"}) == [Message("system", "Be kind")]


def test_what_looks_like_the_line_is_read_once_however_long_it_is() -> None:
    hostile = "x-anthropic-billing-header:" + "a=" * 500_000

    assert without_attribution(hostile + "\nb") == "b"


@pytest.mark.parametrize("id", ["call_0f", "functions.get:0", "aB3dE6gH9", "", "ünï"])
def test_an_id_of_a_call_survives_its_way_to_the_client_and_back(id: str) -> None:
    told = told_id(id)

    assert told.startswith("toolu_")
    assert told.replace("_", "").isalnum()
    assert own_id(told) == (f"toolu_{id[5:]}" if id.startswith("call_") else id)


@pytest.mark.parametrize("foreign", ["toolu_01A", "toolu_own_zz", "toolu_own_ff", "c1", ""])
def test_an_id_that_was_not_made_here_stays_as_it_is(foreign: str) -> None:
    assert own_id(foreign) == foreign


VARIABLES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nothing": ({}, {}),
    "enabled": (
        {"thinking": {"type": "enabled", "budget_tokens": 2048}},
        {"enable_thinking": True, "thinking": True, "thinking_budget": 2048},
    ),
    "adaptive": (
        {"thinking": {"type": "adaptive", "display": "omitted"}},
        {"enable_thinking": True, "thinking": True},
    ),
    "disabled": (
        {"thinking": {"type": "disabled"}},
        {"enable_thinking": False, "thinking": False},
    ),
    "an answer that has begun": (
        {"messages": [{"role": "assistant", "content": "It is"}]},
        {"enable_thinking": False, "thinking": False},
    ),
    "effort": ({"output_config": {"effort": "high"}}, {"reasoning_effort": "high"}),
}


@pytest.mark.parametrize(("fields", "expected"), VARIABLES.values(), ids=VARIABLES.keys())
def test_thinking_and_effort_are_variables_of_the_template(
    fields: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert asked(**fields).variables == expected


CHOICES: dict[str, tuple[dict[str, Any] | None, list[dict[str, Any]], ToolChoice]] = {
    "none said": (None, [WEATHER], ToolChoice()),
    "auto": ({"type": "auto"}, [WEATHER], ToolChoice()),
    "one at a time": (
        {"type": "auto", "disable_parallel_tool_use": True},
        [WEATHER],
        ToolChoice(parallel=False),
    ),
    "none": ({"type": "none"}, [WEATHER], ToolChoice("none")),
    "any": ({"type": "any"}, [WEATHER], ToolChoice("required")),
    "one": ({"type": "tool", "name": "weather"}, [WEATHER], ToolChoice("required", "weather")),
    "one of a server": ({"type": "tool", "name": "web_search"}, [SEARCH, WEATHER], ToolChoice()),
    "any of a server": ({"type": "any"}, [SEARCH], ToolChoice()),
}


@pytest.mark.parametrize(("choice", "tools", "expected"), CHOICES.values(), ids=CHOICES.keys())
def test_a_choice_of_tools_is_as_asked(
    choice: dict[str, Any] | None, tools: list[dict[str, Any]], expected: ToolChoice
) -> None:
    assert asked(tool_choice=choice, tools=tools).tool_choice == expected


async def test_tools_of_servers_are_left_out_with_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    chat = FakeChat()
    tools = [
        SEARCH,
        {"type": "bash_20250124", "name": "bash"},
        {"type": "custom", **WEATHER},
        {"type": "computer_20251124", "name": "computer", "display_width_px": 1},
        {"type": "mcp_toolset", "mcp_server_name": "x"},
        WEATHER | {"name": "bare", "description": None},
    ]
    with caplog.at_level(logging.WARNING):
        async with client_of(create_app(FakeModels(fake=chat))) as client:
            response = await client.post(MESSAGES, json=question(tools=tools))

    assert response.status_code == 200
    bare = {"name": "bare", "description": "", "parameters": SCHEMA}
    assert chat.asked[0][1].tools == (DECLARED, {"type": "function", "function": bare})
    assert [record.message for record in caplog.records if "left out" in record.message] == [
        "tools that nobody here runs are left out: "
        "bash_20250124, computer_20251124, mcp_toolset, web_search_20250305"
    ]


async def test_a_type_that_would_write_a_line_of_the_log_does_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tools = [{"type": "x\nroot logged in"}, *({"type": f"t{at}" * 100} for at in range(100))]
    with caplog.at_level(logging.WARNING):
        async with client_of(create_app(FakeModels(fake=FakeChat()))) as client:
            await client.post(MESSAGES, json=question(tools=tools))

    (warning,) = [record.message for record in caplog.records if "left out" in record.message]
    assert "\n" not in warning
    assert len(warning) < 2000


def test_options_are_as_asked_and_else_the_engines_own() -> None:
    options = asked(
        temperature=1.0,
        top_p=0.5,
        top_k=7,
        stop_sequences=["A", "B"],
        service_tier="auto",
        container={"id": "x"},
        context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        inference_geo=None,
        some_new_field=[1],
    )

    sampling = options.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (1.0, 0.5, 7)
    assert (options.max_tokens, options.stop) == (100, ("A", "B"))
    assert (options.tools, options.grammar, options.continues) == ((), None, False)
    assert asked().sampling == ReplyOptions().sampling
    assert asked(max_tokens=None).max_tokens is None


@pytest.mark.parametrize("where", ["output_config", "output_format"])
def test_a_schema_of_the_answer_is_a_grammar(where: str) -> None:
    form = {"type": "json_schema", "schema": SCHEMA}
    fields = {where: form if where == "output_format" else {"format": form}}

    assert asked(**fields).grammar == Grammar("json_schema", json.dumps(SCHEMA))


ENDINGS: dict[str, tuple[Any, bool]] = {
    "a beginning": ("The answer is (", True),
    "a beginning in blocks": ([text("The answer"), text(" is")], True),
    "nothing": ("", True),
    "a call": ([{"type": "tool_use", "id": "a", "name": "f", "input": {}}], False),
}


@pytest.mark.parametrize(("content", "continues"), ENDINGS.values(), ids=ENDINGS.keys())
def test_an_assistants_message_at_the_end_is_gone_on_with(content: Any, continues: bool) -> None:
    last = {"role": "assistant", "content": content}

    assert asked(messages=[user(text("Hi")), last]).continues is continues


async def test_the_user_of_the_metadata_takes_turns_for_itself() -> None:
    chat = FakeChat()
    async with client_of(create_app(FakeModels(fake=chat))) as client:
        named = question(metadata={"user_id": "user_1_session_2"})
        await client.post(MESSAGES, json=named, headers={"x-api-key": "k"})

    context = chat.asked[0][1].context
    assert context.client == f"{context.owner}/user_1_session_2"
