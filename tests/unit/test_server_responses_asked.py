"""What clients of the Responses API ask reaches the model as meant, or is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from localrun.chat.messages import Message, ToolCall, ToolChoice
from localrun.engine.request import Grammar
from tests.fake_chat import FakeChat
from tests.responses import PATH, WEATHER, ask, client_of, whole


async def test_messages_and_options_reach_the_model_as_they_were_meant() -> None:
    chat = FakeChat()
    call = {
        "type": "function_call",
        "id": "fc_1",
        "call_id": "c1",
        "name": "weather",
        "arguments": '{"city": "Ulm"}',
    }
    response = await ask(
        chat,
        instructions="Be brief",
        input=[
            {"role": "developer", "content": "Be kind"},
            {
                "type": "message",
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "Hi"},
                    {"type": "input_text", "text": "you"},
                ],
            },
            {
                "type": "reasoning",
                "summary": [{"type": "summary_text", "text": "s"}],
                "content": [{"type": "reasoning_text", "text": "hm"}],
            },
            {
                "role": "assistant",
                "content": [
                    {"type": "output_text", "text": "I look."},
                    {"type": "refusal", "refusal": "No."},
                ],
            },
            call,
            call | {"call_id": "c2", "arguments": ""},
            {"type": "function_call_output", "call_id": "c1", "output": "sun"},
            {
                "type": "function_call_output",
                "call_id": "c2",
                "output": [{"type": "input_text", "text": "rain"}],
            },
            {"role": "assistant", "content": "Sun."},
            {"type": "reasoning", "summary": []},
            {"role": "system", "content": "Be quick"},
            {"role": "user", "content": "Thanks"},
        ],
        temperature=0,
        top_p=0.5,
        seed=7,
        max_output_tokens=9,
        tools=[WEATHER],
        parallel_tool_calls=False,
        reasoning={"effort": "low"},
        some_new_field={"x": 1},
    )

    assert response.status_code == 200, response.text
    messages, options = chat.asked[0]
    calls = (ToolCall("c1", "weather", {"city": "Ulm"}), ToolCall("c2", "weather", {}))
    assert list(messages) == [
        Message("system", "Be brief\n\nBe kind"),
        Message("user", "Hi\nyou"),
        Message("assistant", "I look.\nNo.", reasoning="hm", tool_calls=calls),
        Message("tool", "sun", tool_call_id="c1", name="weather"),
        Message("tool", "rain", tool_call_id="c2", name="weather"),
        Message("assistant", "Sun."),
        Message("system", "Be quick"),
        Message("user", "Thanks"),
    ]
    sampling = options.sampling
    assert (sampling.temperature, sampling.top_p, sampling.seed) == (0, 0.5, 7)
    assert (options.max_tokens, options.continues) == (9, False)
    assert options.tool_choice == ToolChoice("auto", None, parallel=False)
    assert options.variables == {"reasoning_effort": "low"}
    assert [tool["function"]["name"] for tool in options.tools] == ["weather"]


async def test_a_thought_begins_a_turn_where_another_was_answered_already() -> None:
    chat = FakeChat()
    thought = {"type": "reasoning", "summary": [], "content": [{"type": "text", "text": "hm"}]}
    said = {"role": "assistant", "content": "a"}
    await whole(chat, input=[{"role": "user", "content": "x"}, said, said, thought, said])

    assert list(chat.asked[0][0])[1:] == [
        Message("assistant", "a\n\na"),
        Message("assistant", "a", reasoning="hm"),
    ]


async def test_no_effort_is_no_thinking() -> None:
    chat = FakeChat()
    await whole(chat, reasoning={"effort": "none"}, chat_template_kwargs={"a": 1})

    assert chat.asked[0][1].variables == {"enable_thinking": False, "thinking": False, "a": 1}


WHO = {
    "user": {"user": "ada", "safety_identifier": "s", "prompt_cache_key": "k"},
    "safety_identifier": {"safety_identifier": "ada", "prompt_cache_key": "k"},
    "prompt_cache_key": {"prompt_cache_key": "ada"},
}


@pytest.mark.parametrize("fields", WHO.values(), ids=WHO.keys())
async def test_who_asks_is_told_by_the_first_field_that_says_so(fields: dict[str, Any]) -> None:
    chat = FakeChat()
    await whole(chat, **fields)

    assert chat.asked[0][1].context.client == "127.0.0.1 ada"


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
FORMS: dict[str, tuple[dict[str, Any], str | None]] = {
    "none": ({}, None),
    "text": ({"text": {"format": {"type": "text"}, "verbosity": "low"}}, None),
    "an object": ({"text": {"format": {"type": "json_object"}}}, '{"type": "object"}'),
    "a schema": (
        {
            "text": {
                "format": {"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": True}
            }
        },
        json.dumps(SCHEMA),
    ),
}


@pytest.mark.parametrize(("fields", "source"), FORMS.values(), ids=FORMS.keys())
async def test_the_form_of_a_text_is_a_grammar(fields: dict[str, Any], source: str | None) -> None:
    chat = FakeChat()
    document = await whole(chat, **fields)

    grammar = None if source is None else Grammar("json_schema", source)
    assert chat.asked[0][1].grammar == grammar
    asked = fields.get("text", {}).get("format", {"type": "text"})
    assert document["text"]["format"] == asked


async def test_what_is_asked_of_stores_and_tiers_changes_nothing() -> None:
    fields = {
        "store": True,
        "truncation": "auto",
        "service_tier": "flex",
        "background": False,
        "include": ["file_search_call.results"],
        "stream_options": {"include_obfuscation": False},
        "max_tool_calls": 3,
    }
    document = await whole(FakeChat(), **fields)

    told = document["store"], document["truncation"], document["service_tier"]
    assert told == (False, "disabled", "default")


async def test_a_response_that_nobody_kept_is_not_found_as_openai_says_it() -> None:
    chat = FakeChat()
    response = await ask(chat, previous_response_id="resp_1", stream=True)

    error = response.json()["error"]
    assert response.status_code == 400
    assert (error["code"], error["param"]) == (
        "previous_response_not_found",
        "previous_response_id",
    )
    assert "resp_1" in error["message"]
    assert chat.asked == []


HI = {"role": "user", "content": "Hi"}
IMAGE = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no model": ({"model": None}, "model"),
    "no input": ({"input": None}, "input"),
    "nothing to answer": ({"input": []}, "input"),
    "input a number": ({"input": 1}, "input"),
    "an item a text": ({"input": [HI, "x"]}, "input[1]"),
    "an item with a number for a type": ({"input": [{"type": 1}]}, "input[0]"),
    "no such role": ({"input": [{"role": "king", "content": "x"}]}, "input[0].role"),
    "content a number": ({"input": [HI, HI | {"content": 1}]}, "input[1].content"),
    "content null": ({"input": [HI | {"content": None}]}, "input[0].content"),
    "a part a text": ({"input": [HI | {"content": ["x"]}]}, "input[0].content"),
    "a part without text": (
        {"input": [HI | {"content": [{"type": "input_text"}]}]},
        "input[0].content",
    ),
    "an image": ({"input": [HI | {"content": [IMAGE]}]}, "input[0].content"),
    "a file": ({"input": [HI | {"content": [{"type": "input_file"}]}]}, "input[0].content"),
    "a call without an id": (
        {"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]},
        "input[0].call_id",
    ),
    "a call without a name": (
        {"input": [{"type": "function_call", "call_id": "c", "name": "", "arguments": "{}"}]},
        "input[0].name",
    ),
    "arguments no JSON": (
        {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "["}]},
        "input[0].arguments",
    ),
    "arguments no object": (
        {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "1"}]},
        "input[0].arguments",
    ),
    "a custom call without input": (
        {"input": [{"type": "custom_tool_call", "call_id": "c", "name": "f"}]},
        "input[0].input",
    ),
    "a shell call without a command": (
        {"input": [{"type": "local_shell_call", "call_id": "c", "action": {"type": "exec"}}]},
        "input[0].action.command",
    ),
    "an output without output": (
        {"input": [{"type": "function_call_output", "call_id": "c"}]},
        "input[0].output",
    ),
    "a stored item": ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
    "a wish to compact": ({"input": [HI, {"type": "compaction_trigger"}]}, "input[1].type"),
    "instructions a list": ({"instructions": ["x"]}, "instructions"),
    "half a surrogate pair": ({"instructions": "\ud83d"}, ""),
    "tools no list": ({"tools": {}}, "tools"),
    "a tool a text": ({"tools": [WEATHER, "x"]}, "tools[1]"),
    "a tool without a type": ({"tools": [{"name": "x"}]}, "tools[0]"),
    "a function without a name": ({"tools": [{"type": "function"}]}, "tools[0].name"),
    "a name of 513 characters": ({"tools": [WEATHER | {"name": "x" * 513}]}, "tools[0].name"),
    "parameters a list": ({"tools": [WEATHER | {"parameters": []}]}, "tools[0].parameters"),
    "a description a number": ({"tools": [WEATHER | {"description": 1}]}, "tools[0].description"),
    "a namespace without a name": ({"tools": [{"type": "namespace"}]}, "tools[0].name"),
    "a tool within without a name": (
        {"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "custom"}]}]},
        "tools[0].tools[0].name",
    ),
    "513 tools": ({"tools": [WEATHER] * 513}, "tools"),
    "513 tools in two namespaces": (
        {
            "tools": [
                {
                    "type": "namespace",
                    "name": space,
                    "tools": [WEATHER | {"name": f"f{n}"} for n in range(257)],
                }
                for space in ("a", "b")
            ]
        },
        "tools",
    ),
    "a choice of no kind": ({"tool_choice": 1}, "tool_choice"),
    "a choice of nothing known": ({"tool_choice": "any"}, "tool_choice"),
    "a forced tool and none": ({"tool_choice": "required"}, "tool_choice"),
    "a forced tool that is left out": (
        {"tool_choice": "required", "tools": [{"type": "web_search"}]},
        "tool_choice",
    ),
    "a tool that is not declared": (
        {"tool_choice": {"type": "function", "name": "f"}, "tools": [WEATHER]},
        "tool_choice",
    ),
    "allowed tools that are none": (
        {
            "tool_choice": {
                "type": "allowed_tools",
                "mode": "required",
                "tools": [{"type": "web_search"}],
            },
            "tools": [WEATHER],
        },
        "tool_choice",
    ),
    "a mode of no kind": (
        {"tool_choice": {"type": "allowed_tools", "mode": "always", "tools": []}},
        "tool_choice.mode",
    ),
    "temperature above": ({"temperature": 2.1}, "temperature"),
    "temperature a word": ({"temperature": "0.5"}, "temperature"),
    "top_p above": ({"top_p": 1.1}, "top_p"),
    "no tokens": ({"max_output_tokens": 0}, "max_output_tokens"),
    "too many tokens": ({"max_output_tokens": 2**63}, "max_output_tokens"),
    "21 logprobs": ({"top_logprobs": 21}, "top_logprobs"),
    "stream a word": ({"stream": "yes"}, "stream"),
    "a format of no kind": ({"text": {"format": {"type": "yaml"}}}, "text.format.type"),
    "a format without a schema": (
        {"text": {"format": {"type": "json_schema", "name": "x"}}},
        "text.format.schema",
    ),
    "a summary of no kind": ({"reasoning": {"summary": "long"}}, "reasoning.summary"),
    "an effort that is a number": ({"reasoning": {"effort": 3}}, "reasoning.effort"),
    "17 metadata": ({"metadata": {str(n): "x" for n in range(17)}}, "metadata"),
    "metadata of a number": ({"metadata": {"a": 1}}, "metadata.a"),
    "a user of 513 characters": ({"user": "x" * 513}, "user"),
    "a key of 513 characters": ({"prompt_cache_key": "x" * 513}, "prompt_cache_key"),
    "a cut of no kind": ({"truncation": "middle"}, "truncation"),
    "in the background": ({"background": True}, "background"),
    "a conversation that is kept": ({"conversation": "conv_1"}, "conversation"),
    "a prompt that is kept": ({"prompt": {"id": "pmpt_1"}}, "prompt"),
}


@pytest.mark.parametrize(("fields", "param"), REFUSED.values(), ids=REFUSED.keys())
async def test_a_field_that_cannot_be_meant_is_refused_by_name(
    fields: dict[str, Any], param: str
) -> None:
    chat = FakeChat()
    # A text of half a pair can be sent escaped alone.
    body = {"model": "fake", "input": "Hi", "stream": True} | fields
    async with client_of(chat) as client:
        headers = {"content-type": "application/json"}
        response = await client.post(PATH, content=json.dumps(body), headers=headers)

    error = response.json()["error"]
    assert response.status_code == 400
    assert set(error) == {"message", "type", "code", "param"}
    assert (error["type"], error["param"] or "") == ("invalid_request_error", param)
    assert error["message"].startswith(param)
    assert chat.asked == []


async def test_an_image_is_refused_with_the_reason() -> None:
    far_off = IMAGE | {"image_url": "https://example.org/x.png"}
    data = await ask(FakeChat(), input=[HI | {"content": [IMAGE]}])
    far = await ask(FakeChat(), input=[HI | {"content": [far_off]}])

    assert "projector" in data.json()["error"]["message"]
    assert "never fetched" in far.json()["error"]["message"]
