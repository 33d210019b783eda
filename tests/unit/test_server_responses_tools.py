"""Tools of every type that agents send: what a model is told of them, and whom its calls go to."""

from __future__ import annotations

import logging
import re
from typing import Any

import pytest

from localrun.chat.messages import CallDelta, Message, ReplyEvent, ToolCall, ToolChoice
from localrun.server.openai.responses.freeform import FreeformInput
from localrun.server.openai.responses.tools import visible_name
from tests.fake_chat import FakeChat, ending
from tests.responses import ask, deltas, streamed, whole


def function(name: str) -> dict[str, Any]:
    return {"type": "function", "name": name, "strict": False, "parameters": {}}


def namespace(name: str, *tools: dict[str, Any]) -> dict[str, Any]:
    return {"type": "namespace", "name": name, "description": "", "tools": list(tools)}


PATCH = {
    "type": "custom",
    "name": "patch",
    "description": "Edits files.",
    "format": {"type": "grammar", "syntax": "lark", "definition": "start: /x/"},
}
SEARCH = {"type": "tool_search", "execution": "client", "description": "Finds."}
ISSUES = namespace("mcp__github", function("list_issues"))


def calling(name: str, *arguments: str) -> FakeChat:
    """A model that calls what it knows by ``name``."""
    begun = ReplyEvent(call=CallDelta(0, "call_1", name))
    more = [ReplyEvent(call=CallDelta(0, arguments=piece)) for piece in arguments]
    return FakeChat((begun, *more, ending()))


async def called(chat: FakeChat, **fields: Any) -> dict[str, Any]:
    """The item of a call, which is the same whole and streamed."""
    document = await whole(chat, **fields)
    events = await streamed(chat, **fields)
    (item,) = document["output"]
    (told,) = events[-1]["response"]["output"]
    assert item | {"id": ""} == told | {"id": ""}
    assert item["status"] == "completed"
    return {key: value for key, value in item.items() if key not in ("id", "status")}


def names(chat: FakeChat) -> list[str]:
    """What the model was told of."""
    return [tool["function"]["name"] for tool in chat.asked[-1][1].tools]


async def test_a_function_is_told_as_templates_expect_it() -> None:
    chat = FakeChat()
    nested = {"type": "function", "function": {"name": "g", "description": "d"}}
    await whole(chat, tools=[function("f") | {"parameters": {"type": "object"}}, nested])

    empty = {"type": "object", "properties": {}}
    assert [tool["function"] for tool in chat.asked[0][1].tools] == [
        {"name": "f", "description": "", "parameters": {"type": "object"}},
        {"name": "g", "description": "d", "parameters": empty},
    ]


NAMES = {
    (None, "f"): "f",
    ("", "f"): "f",
    ("functions", "f"): "f",
    ("mcp__a", "f"): "mcp__a__f",
    ("mcp__a__", "f"): "mcp__a__f",
    ("a_", "f"): "a_f",
    ("a", "_f"): "a_f",
}


@pytest.mark.parametrize(("told", "name"), NAMES.items(), ids=lambda value: str(value))
def test_a_tool_of_a_namespace_is_named_as_codex_names_it(
    told: tuple[str | None, str], name: str
) -> None:
    assert visible_name(*told) == name


STRANGE = {
    "a space": "get weather",
    "quotes": 'a"b',
    "a family's tag": "</tool_call>",
    "a line": "a\nb",
    "no ASCII": "wetter_für",
    "too long": "a" * 200,
}


@pytest.mark.parametrize("name", STRANGE.values(), ids=STRANGE.keys())
async def test_a_name_that_no_model_could_write_is_another_to_it_and_its_own_to_the_client(
    name: str,
) -> None:
    tools = [namespace("mcp__x", function(name)), function(name), PATCH | {"name": name}]
    first, second = (visible_name(space, name) for space in ("mcp__x", None))

    item = await called(calling(first, "{}"), tools=tools)
    assert (item["namespace"], item["name"]) == ("mcp__x", name)

    free = calling(second, '{"input": "x"}')
    item = await called(free, tools=tools)
    assert (item["type"], item["name"], item["input"]) == ("custom_tool_call", name, "x")
    assert names(free) == [first, second]
    assert all(re.fullmatch(r"[A-Za-z0-9_.:/-]{1,128}", told) for told in names(free))


async def test_names_that_become_the_same_are_told_apart() -> None:
    tools = [
        function("a b"),
        function("a\tb"),
        function("a_b"),
        *map(function, ("c" * 200, "c" * 201)),
    ]
    chat = calling("a_b_2", "{}")
    said = {"type": "function_call", "call_id": "1", "name": "a_b", "arguments": "{}"}
    answer = {"type": "function_call_output", "call_id": "1", "output": "x"}

    item = await called(chat, tools=tools, input=[said, answer])

    assert names(chat) == ["a_b", "a_b_2", "a_b_3", "c" * 128, "c" * 126 + "_2"]
    assert item["name"] == "a\tb"
    # What was called before is told by the name that the model knows it by.
    assert chat.asked[0][0][0].tool_calls[0].name == "a_b_3"


async def test_a_namespace_is_flattened_and_its_calls_find_back() -> None:
    chat = calling("mcp__github__list_issues", "{}")
    tools = [function("list_issues"), ISSUES, namespace("functions", function("plain"))]

    item = await called(chat, tools=tools)

    assert names(chat) == ["list_issues", "mcp__github__list_issues", "plain"]
    assert item == {
        "type": "function_call",
        "call_id": "call_1",
        "name": "list_issues",
        "namespace": "mcp__github",
        "arguments": "{}",
    }
    assert "namespace" not in await called(calling("plain", "{}"), tools=tools)


async def test_tools_whose_names_meet_are_told_apart() -> None:
    tools = [namespace("a", function("b__c")), namespace("a__b", function("c"))]
    chat = calling("a__b__c_2", "{}")

    item = await called(chat, tools=tools)

    assert names(chat) == ["a__b__c", "a__b__c_2"]
    assert (item["namespace"], item["name"]) == ("a__b", "c")


async def test_a_tool_declared_again_takes_the_place_of_the_first() -> None:
    chat = FakeChat()
    await whole(chat, tools=[function("f"), function("g"), function("f") | {"description": "2"}])

    assert [tool["function"]["description"] for tool in chat.asked[0][1].tools] == ["2", ""]


async def test_a_call_of_a_tool_nobody_declared_is_told_as_it_is() -> None:
    item = await called(calling("mcp__x__y", "{}"), tools=[ISSUES])

    assert (item["type"], item["name"]) == ("function_call", "mcp__x__y")
    assert "namespace" not in item


async def test_a_custom_tool_is_a_function_of_one_text_whose_call_has_it_plain() -> None:
    pieces = ('{"inp', 'ut": "a', "\\", 'n\\"b', '"', "}")
    chat = calling("patch", *pieces)

    item = await called(chat, tools=[PATCH])
    events = await streamed(chat, tools=[PATCH])

    told = chat.asked[0][1].tools[0]["function"]
    assert told["description"] == (
        "Edits files.\n\nThe input follows this lark grammar:\nstart: /x/"
    )
    assert told["parameters"]["required"] == ["input"]
    assert item == {
        "type": "custom_tool_call",
        "call_id": "call_1",
        "name": "patch",
        "input": 'a\n"b',
    }
    kinds = [event["type"] for event in events[2:-2]]
    assert kinds == [
        "response.output_item.added",
        *["response.custom_tool_call_input.delta"] * 2,
        "response.custom_tool_call_input.done",
    ]
    assert deltas(events) == events[-3]["input"] == 'a\n"b'


async def test_a_custom_tool_in_a_namespace_keeps_it() -> None:
    item = await called(calling("a__patch", '{"input": "x"}'), tools=[namespace("a", PATCH)])

    assert (item["type"], item["namespace"], item["input"]) == ("custom_tool_call", "a", "x")


async def test_a_local_shell_is_called_by_its_own_item() -> None:
    arguments = '{"command": ["ls", "-l"], "working_directory": "/repo", "timeout_ms": 5}'
    item = await called(calling("local_shell", arguments), tools=[{"type": "local_shell"}])

    assert item == {
        "type": "local_shell_call",
        "call_id": "call_1",
        "action": {
            "type": "exec",
            "command": ["ls", "-l"],
            "env": {},
            "working_directory": "/repo",
            "timeout_ms": 5,
        },
    }


async def test_a_search_for_tools_is_called_where_the_client_does_it() -> None:
    chat = calling("tool_search", '{"query": "calendar"}')
    item = await called(chat, tools=[SEARCH])
    await whole(chat, tools=[SEARCH | {"execution": "server"}])

    assert item == {
        "type": "tool_search_call",
        "call_id": "call_1",
        "execution": "client",
        "arguments": {"query": "calendar"},
    }
    assert names(chat) == []


async def test_tools_that_a_search_found_or_a_client_added_can_be_called() -> None:
    chat = calling("mcp__github__list_issues", "{}")
    given = [
        {"type": "additional_tools", "role": "developer", "tools": [function("f")]},
        {"role": "user", "content": "Hi"},
        {"type": "tool_search_call", "call_id": "c", "arguments": {"query": "x"}},
        {"type": "tool_search_output", "call_id": "c", "tools": [ISSUES]},
    ]
    item = await called(chat, input=given, tools=[SEARCH])

    assert names(chat) == ["tool_search", "f", "mcp__github__list_issues"]
    assert item["namespace"] == "mcp__github"
    found = '{"tools": ["mcp__github__list_issues"]}'
    search = ToolCall("c", "tool_search", {"query": "x"})
    assert list(chat.asked[0][0])[1:] == [
        Message("assistant", "", tool_calls=(search,)),
        Message("tool", found, tool_call_id="c", name="tool_search"),
    ]


async def test_calls_of_every_kind_come_back_as_the_model_made_them() -> None:
    chat = FakeChat()
    given = [
        {"role": "user", "content": "Hi"},
        {"type": "custom_tool_call", "call_id": "c1", "name": "patch", "input": 'a"b'},
        {"type": "custom_tool_call_output", "call_id": "c1", "output": "done"},
        {
            "type": "local_shell_call",
            "id": "c2",
            "status": "completed",
            "action": {"type": "exec", "command": ["ls"], "env": {}},
        },
        {"type": "local_shell_call_output", "id": "c2", "output": "a.py"},
        {
            "type": "function_call",
            "call_id": "c3",
            "name": "list_issues",
            "namespace": "mcp__github",
            "arguments": "{}",
        },
    ]
    await whole(chat, input=given, tools=[PATCH, {"type": "local_shell"}, ISSUES])

    messages = list(chat.asked[0][0])[1:]
    assert [call for message in messages for call in message.tool_calls] == [
        ToolCall("c1", "patch", {"input": 'a"b'}),
        ToolCall("c2", "local_shell", {"command": ["ls"]}),
        ToolCall("c3", "mcp__github__list_issues", {}),
    ]
    told = [(each.name, each.content) for each in messages if each.role == "tool"]
    assert told == [("patch", "done"), ("local_shell", "a.py")]


HOSTED = [
    "apply_patch",
    "code_interpreter",
    "computer_use_preview",
    "file_search",
    "image_generation",
    "mcp",
    "shell",
    "something_new",
    "web_search",
    "web_search_preview",
]


async def test_tools_that_only_openai_runs_are_left_out_with_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    chat = FakeChat()
    tools = [{"type": kind} for kind in HOSTED]
    with caplog.at_level(logging.WARNING, "localrun.server"):
        response = await ask(chat, tools=[*tools, function("f")])

    assert response.status_code == 200, response.text
    assert names(chat) == ["f"]
    (warning,) = [record.getMessage() for record in caplog.records]
    assert all(kind in warning for kind in HOSTED)


async def test_a_type_that_would_write_a_line_of_the_log_does_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "localrun.server"):
        await ask(FakeChat(), tools=[{"type": "x\nroot logged in"}, {"type": "ì" * 200}])

    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.isascii()
    assert "\n" not in warning
    assert len(warning) < 250


async def test_items_that_only_openai_makes_are_left_out_with_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    chat = FakeChat()
    kinds = ["web_search_call", "mcp_call", "compaction", "computer_call_output", "new_thing"]
    items = [{"type": kind, "id": "x"} for kind in kinds]
    with caplog.at_level(logging.WARNING, "localrun.server"):
        await whole(chat, input=[*items, {"role": "user", "content": "Hi"}])

    assert list(chat.asked[0][0]) == [Message("user", "Hi")]
    (warning,) = [record.getMessage() for record in caplog.records]
    assert all(kind in warning for kind in kinds)


F, G = function("f"), function("g")
ALLOWED = {"type": "allowed_tools", "mode": "auto"}
CHOICES: dict[str, tuple[Any, ToolChoice, list[str]]] = {
    "auto": ("auto", ToolChoice(), ["f", "g", "mcp__github__list_issues", "patch"]),
    "none": ("none", ToolChoice("none"), ["f", "g", "mcp__github__list_issues", "patch"]),
    "required": (
        "required",
        ToolChoice("required"),
        ["f", "g", "mcp__github__list_issues", "patch"],
    ),
    "a function": (
        {"type": "function", "name": "g"},
        ToolChoice("required", "g"),
        ["f", "g", "mcp__github__list_issues", "patch"],
    ),
    "a custom tool": (
        {"type": "custom", "name": "patch"},
        ToolChoice("required", "patch"),
        ["f", "g", "mcp__github__list_issues", "patch"],
    ),
    "one of a namespace": (
        {"type": "function", "namespace": "mcp__github", "name": "list_issues"},
        ToolChoice("required", "mcp__github__list_issues"),
        ["f", "g", "mcp__github__list_issues", "patch"],
    ),
    "some": (
        ALLOWED | {"tools": [{"type": "function", "name": "g"}, {"type": "web_search"}]},
        ToolChoice("auto"),
        ["g"],
    ),
    "one of some": (
        ALLOWED | {"mode": "required", "tools": [{"type": "custom", "name": "patch"}]},
        ToolChoice("required"),
        ["patch"],
    ),
}


@pytest.mark.parametrize(("asked", "choice", "told"), CHOICES.values(), ids=CHOICES.keys())
async def test_a_choice_of_tools_is_meant(asked: Any, choice: ToolChoice, told: list[str]) -> None:
    chat = FakeChat()
    document = await whole(chat, tool_choice=asked, tools=[F, G, ISSUES, PATCH])

    assert chat.asked[0][1].tool_choice == choice
    assert names(chat) == told
    assert document["tool_choice"] == asked


INPUTS = {
    "plain": ('{"input": "abc"}', "abc"),
    "tight": ('{"input":"abc"}', "abc"),
    "spaced": ('\n { "input" :  "abc" } ', "abc"),
    "empty": ('{"input": ""}', ""),
    "escapes": (r'{"input": "a\n\t\"\\\/\b\f\rü"}', 'a\n\t"\\/\b\f\rü'),
    "a pair": (r'{"input": "\ud83c\udf89!"}', "🎉!"),
    "as it is": ('{"input": "🎉 héllo"}', "🎉 héllo"),
    "half a pair at the end": (r'{"input": "a\ud83c"}', "a\ufffd"),
    "half a pair before an escape": (r'{"input": "\ud83c\n"}', "\ufffd\n"),
    "half a pair before another unit": (r'{"input": "\ud83c\u0041"}', "\ufffdA"),
    "the second half alone": (r'{"input": "\udf89x"}', "\ufffdx"),
    "digits that are none": (r'{"input": "\u00zzx"}', "\ufffdx"),
    "more fields": ('{"input": "abc", "why": "x"}', "abc"),
    "other fields first": ('{"why": 1, "input": "abc"}', "abc"),
    "one other text": ('{"patch": "abc"}', "abc"),
    "two other texts": ('{"a": "b", "c": "d"}', '{"a": "b", "c": "d"}'),
    "no text": ('{"input": 5}', '{"input": 5}'),
    "a text alone": ('"abc"', "abc"),
    "nothing": ("", ""),
    "an empty object": ("{}", ""),
    "a list": ("[1]", "[1]"),
    "no JSON": ("*** Begin Patch", "*** Begin Patch"),
    "no JSON and long": ("*** Begin Patch\n" * 9, "*** Begin Patch\n" * 9),
    "cut in the text": ('{"input": "ab', "ab"),
    "cut in an escape": ('{"input": "ab\\', "ab"),
}


@pytest.mark.parametrize(("arguments", "said"), INPUTS.values(), ids=INPUTS.keys())
def test_an_input_is_the_same_wherever_its_arguments_are_cut(arguments: str, said: str) -> None:
    def read(*pieces: str) -> str:
        reader = FreeformInput()
        return "".join([*(reader.feed(piece) for piece in pieces), reader.finish()])

    assert read(*arguments) == said
    for at in range(len(arguments) + 1):
        assert read(arguments[:at], arguments[at:]) == said
