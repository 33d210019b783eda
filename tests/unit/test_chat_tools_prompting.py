"""Templates that know no tools are told of them in words; the others are left alone."""

from __future__ import annotations

import pytest

from localrun.chat.messages import Message, ToolCall
from localrun.chat.tools.prompting import adapted
from localrun.chat.tools.reading import reader_for
from tests.transcripts.form import TOOLS
from tests.transcripts.templates import TEMPLATES

CHATML = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
CONVERSATION = [
    Message("system", "Be brief."),
    Message("user", "The weather?"),
    Message(
        "assistant",
        "I look.",
        tool_calls=(
            ToolCall("call_1", "get_weather", {"city": "Zürich"}),
            ToolCall("call_2", "get_time", {}),
        ),
    ),
    Message("tool", "12 °C", tool_call_id="call_1", name="get_weather"),
    Message("tool", "noon", tool_call_id="call_2"),
    Message("assistant", "12 °C at noon."),
    Message("user", "And Oslo?"),
]


def test_templates_that_take_tools_get_messages_and_tools_as_they_are() -> None:
    assert adapted("{% if tools %}<tool_call>", CONVERSATION, TOOLS) == (CONVERSATION, TOOLS)


@pytest.mark.parametrize("template", [None, CHATML])
def test_a_conversation_without_tools_is_left_alone(template: str | None) -> None:
    plain = [CONVERSATION[0], CONVERSATION[1]]

    assert adapted(template, plain, ()) == (plain, ())


@pytest.mark.parametrize("template", [None, CHATML])
def test_calls_and_results_become_contents(template: str | None) -> None:
    messages, tools = adapted(template, CONVERSATION, TOOLS)

    assert tools == ()
    assert [message.role for message in messages] == [
        "system", "user", "assistant", "user", "assistant", "user",
    ]  # fmt: skip
    assert messages[0].content.startswith("Be brief.\n\n# Tools")
    for tool in TOOLS:
        assert f'"name": "{tool["function"]["name"]}"' in messages[0].content
    assert messages[2] == Message(
        "assistant",
        "I look.\n"
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Zürich"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>',
    )
    assert messages[3] == Message(
        "user",
        "<tool_response>\nget_weather: 12 °C\n</tool_response>\n"
        "<tool_response>\nnoon\n</tool_response>",
    )


def test_without_a_system_message_the_tools_get_one() -> None:
    messages, _ = adapted(None, [Message("user", "Hi")], TOOLS)

    assert [message.role for message in messages] == ["system", "user"]


def test_calls_are_written_out_although_no_tool_is_declared_any_more() -> None:
    messages, _ = adapted(CHATML, CONVERSATION, ())

    assert messages[0] == CONVERSATION[0]
    assert "<tool_call>" in messages[2].content


@pytest.mark.parametrize("name", ["no template", "Gemma 3", "DeepSeek V3", "DeepSeek V3.1"])
def test_what_is_written_is_what_is_read(name: str) -> None:
    template = TEMPLATES[name]
    messages, _ = adapted(template, CONVERSATION, TOOLS)

    reader = reader_for(template, "", TOOLS)
    pieces = reader.feed(messages[2].content) + reader.finish()

    assert [piece.text for piece in pieces if piece.kind == "text"] == ["I look."]
    assert [piece.text for piece in pieces if piece.kind == "call"] == ["get_weather", "get_time"]
    assert [piece.text for piece in pieces if piece.kind == "arguments"] == [
        '{"city": "Zürich"}', "{}",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["no template", "Gemma 3", "DeepSeek V3", "DeepSeek V3.1"])
def test_the_form_that_is_told_is_read(name: str) -> None:
    """The example in the declarations is itself a call."""
    template = TEMPLATES[name]
    messages, _ = adapted(template, [Message("user", "Hi")], TOOLS)
    _, _, example = messages[0].content.rpartition("in this form:\n")

    reader = reader_for(template, "", [*TOOLS, {"name": "NAME"}])
    pieces = reader.feed(example) + reader.finish()

    assert [(piece.kind, piece.text) for piece in pieces] == [
        ("call", "NAME"),
        ("arguments", '{"KEY": "VALUE"}'),
    ]


def test_mistral_gets_ids_of_nine_letters_and_digits() -> None:
    messages, tools = adapted(TEMPLATES["Mistral, names"], CONVERSATION, TOOLS)

    ids = [call.id for call in messages[2].tool_calls]
    assert tools == TOOLS
    assert all(len(id) == 9 and id.isalnum() for id in ids)
    assert ids == [messages[3].tool_call_id, messages[4].tool_call_id]
    assert len(set(ids)) == 2
    assert adapted(TEMPLATES["Mistral, names"], messages, TOOLS)[0] == messages
