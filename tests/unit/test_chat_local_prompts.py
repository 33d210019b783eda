"""What an engine is asked when a conversation or a prompt is: its text, its tokens, its limits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from localrun.chat.local import LocalChatModel
from localrun.chat.messages import Message, Prompt, ReplyEvent, ReplyOptions, ToolChoice
from localrun.chat.templates import Renderer
from localrun.engine.client import EngineInfo
from localrun.engine.request import Grammar
from localrun.errors import ContextLengthError, ConversationRefusedError
from tests.scripted_client import ScriptedClient

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = ({"type": "function", "function": {"name": "weather", "parameters": CITY}},)
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
TURNS = "{% for m in messages %}({{ m.role }}) {{ m.content }}\n{% endfor %}"
HERMES = "{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}{# <tool_call> #}" + TURNS
THINKING = HERMES + "(assistant) <think>\n{# </think> #}"
HARMONY = "{# <|channel|> <|message|> #}" + TURNS + "<|start|>assistant"
# As many templates do: a system message at the start alone.
STRICT = "{% for m in messages[1:] %}{% if m.role == 'system' %}{{ raise_exception('no') }}" \
    "{% endif %}{% endfor %}" + TURNS  # fmt: skip
REFUSING = "{{ raise_exception('never') }}"
ASKED = [Message("user", "Hi")]
BEGUN = [*ASKED, Message("assistant", "It is")]


@pytest.fixture
def renderer() -> Iterator[Renderer]:
    with Renderer() as shared:
        yield shared


class Roomy(ScriptedClient):
    @property
    def info(self) -> EngineInfo:
        return replace(super().info, n_ctx=4096, longest_token=8)


async def said(
    client: ScriptedClient,
    renderer: Renderer,
    options: ReplyOptions,
    messages: list[Message] | None = None,
) -> list[ReplyEvent]:
    model = LocalChatModel(client, renderer)
    return [event async for event in model.reply(messages or ASKED, options)]


def text_of(events: list[ReplyEvent]) -> str:
    return "".join(event.text for event in events)


def prompt_of(client: ScriptedClient) -> str:
    """The text that the only request was made of."""
    ((text, _, _),) = client.tokenized
    return text


@pytest.mark.parametrize("template", [HERMES, TURNS], ids=["tells of tools", "tells of none"])
async def test_tools_that_may_not_be_called_are_neither_told_of_nor_read(
    renderer: Renderer, template: str
) -> None:
    free, none = Roomy([CALL], template), Roomy([CALL], template)

    called = await said(free, renderer, ReplyOptions(tools=TOOLS))
    written = await said(
        none, renderer, ReplyOptions(tools=TOOLS, tool_choice=ToolChoice("none", parallel=False))
    )

    assert "weather" in prompt_of(free)
    assert [event.call.name for event in called if event.call and event.call.name] == ["weather"]
    assert prompt_of(none) == "(user) Hi\n"
    assert not [event for event in written if event.call]
    assert text_of(written) == CALL
    assert none.requests[0].stop == ()
    assert not any("tool_call" in mark for mark in none.requests[0].marks)


@pytest.mark.parametrize("mode", ["auto", "required"])
async def test_where_one_call_is_enough_its_end_is_the_answers(
    renderer: Renderer, mode: str
) -> None:
    client = Roomy([], HERMES)
    alone = ToolChoice(mode, parallel=False)  # type: ignore[arg-type]  # a table of strings
    options = ReplyOptions(tools=TOOLS, stop=("\n\n",))

    await said(client, renderer, replace(options, tool_choice=alone))
    await said(client, renderer, replace(options, tool_choice=replace(alone, parallel=True)))
    await said(client, renderer, replace(options, tools=(), tool_choice=replace(alone)))
    held = replace(options, tool_choice=alone, grammar=Grammar("regex", "a"))
    await said(client, renderer, held)

    assert [request.stop for request in client.requests] == [
        ("\n\n", "</tool_call>"),
        ("\n\n",),
        ("\n\n",),
        ("\n\n",),
    ]


async def test_an_answer_goes_on_from_what_it_begins_with_and_does_not_repeat_it(
    renderer: Renderer,
) -> None:
    on, new = Roomy([" warm"], TURNS), Roomy(["warm"], TURNS)

    continued = await said(on, renderer, ReplyOptions(continues=True), BEGUN)
    await said(new, renderer, ReplyOptions(), BEGUN)

    assert prompt_of(on) == "(user) Hi\nIt is"
    assert text_of(continued) == " warm"
    assert prompt_of(new) == "(user) Hi\n(assistant) It is\n"


async def test_a_conversation_that_ends_with_the_user_is_continued_by_nobody(
    renderer: Renderer,
) -> None:
    client = Roomy([], TURNS)

    await said(client, renderer, ReplyOptions(continues=True))

    assert prompt_of(client) == "(user) Hi\n"


THOUGHT = "(user) Hi\n(assistant) <think>\n"
BEGINNINGS = {
    "a thought that the prompt began ends": (THINKING, "It is", THOUGHT + "\n</think>\n\nIt is"),
    "one that the client ends itself is its own": (
        THINKING,
        "hm</think>It is",
        THOUGHT + "hm</think>It is",
    ),
    "none was begun": (HERMES, "It is", "(user) Hi\nIt is"),
    "a message is opened where all of it are messages": (
        HARMONY,
        "It is",
        "(user) Hi\n<|start|>assistant<|channel|>final<|message|>It is",
    ),
    "a message that the client opens is its own": (
        HARMONY,
        "<|channel|>final<|message|>It",
        "(user) Hi\n<|start|>assistant<|channel|>final<|message|>It",
    ),
}


@pytest.mark.parametrize(("template", "begun", "prompt"), BEGINNINGS.values(), ids=BEGINNINGS)
async def test_what_an_answer_begins_with_is_no_thought(
    renderer: Renderer, template: str, begun: str, prompt: str
) -> None:
    client = Roomy([" warm"], template)
    messages = [*ASKED, Message("assistant", begun)]

    events = await said(client, renderer, ReplyOptions(continues=True), messages)

    assert prompt_of(client) == prompt
    assert text_of(events) == " warm"
    assert not [event for event in events if event.reasoning]


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        (THINKING, THOUGHT + "\n</think>\n\n"),
        (HARMONY, "(user) Hi\n<|start|>assistant<|channel|>final<|message|>"),
        (HERMES, "(user) Hi\n"),
    ],
    ids=["thinking", "harmony", "plain"],
)
async def test_what_a_grammar_holds_stands_where_an_answer_stands(
    renderer: Renderer, template: str, prompt: str
) -> None:
    client = Roomy(["{}"], template)

    events = await said(client, renderer, ReplyOptions(grammar=Grammar("json_schema", "{}")))

    assert prompt_of(client) == prompt
    assert text_of(events) == "{}"


FORCED = {
    "behind a thought that the prompt began": (THINKING, ASKED, THOUGHT + "\n</think>\n\n"),
    "behind what the answer begins with": (
        THINKING,
        BEGUN,
        THOUGHT + "\n</think>\n\nIt is",
    ),
    "at once": (HERMES, ASKED, "(user) Hi\n"),
}


@pytest.mark.parametrize(("template", "messages", "before"), FORCED.values(), ids=FORCED)
async def test_a_call_that_has_to_come_is_opened_in_the_prompt_and_told_whole(
    renderer: Renderer, template: str, messages: list[Message], before: str
) -> None:
    client = Roomy(['weather", "arguments": {"city": "Paris"}}\n</tool_call>'], template)
    options = ReplyOptions(tools=TOOLS, tool_choice=ToolChoice("required"), continues=True)

    events = await said(client, renderer, options, messages)

    assert prompt_of(client) == f'[weather]{before}<tool_call>\n{{"name": "'
    assert client.requests[0].grammar is not None
    deltas = [event.call for event in events if event.call]
    assert [delta.name for delta in deltas if delta.name] == ["weather"]
    assert "".join(delta.arguments for delta in deltas) == '{"city": "Paris"}'
    assert text_of(events).strip() == ""
    assert not [event for event in events if event.reasoning]


async def test_a_clients_own_grammar_goes_before_a_call_that_has_to_come(
    renderer: Renderer,
) -> None:
    client = Roomy([CALL], HERMES)
    grammar = Grammar("regex", "(?s).*")
    options = ReplyOptions(tools=TOOLS, tool_choice=ToolChoice("required"), grammar=grammar)

    events = await said(client, renderer, options)

    assert client.requests[0].grammar == grammar
    assert text_of(events) == CALL


async def test_what_a_template_refuses_is_asked_again_in_a_simpler_form(
    renderer: Renderer,
) -> None:
    client = Roomy(["yes"], STRICT)
    messages = [Message("user", "a"), Message("system", "b"), Message("user", "c")]

    events = await said(client, renderer, ReplyOptions(), messages)

    assert prompt_of(client) == "(user) a\n\nb\n\nc\n"
    assert text_of(events) == "yes"


@pytest.mark.parametrize(
    "messages",
    [ASKED, [Message("user", "a"), Message("user", "b")]],
    ids=["simple already", "made simpler"],
)
async def test_what_a_template_refuses_in_the_simplest_form_is_the_clients_mistake(
    renderer: Renderer, messages: list[Message]
) -> None:
    client = Roomy([], REFUSING)

    with pytest.raises(ConversationRefusedError, match="never") as refused:
        await said(client, renderer, ReplyOptions(), messages)

    assert refused.value.http_status == 400
    assert client.requests == []


async def test_limits_of_time_and_indent_reach_the_engine(renderer: Renderer) -> None:
    client = Roomy([], TURNS)
    options = ReplyOptions(max_prefill_s=0.5, max_decode_s=1.5, min_indent=4)
    model = LocalChatModel(client, renderer)

    await said(client, renderer, options)
    _ = [event async for event in model.completions([Prompt.of("a")], options)]

    limits = [(each.max_prefill_s, each.max_decode_s, each.min_indent) for each in client.requests]
    assert limits == [(0.5, 1.5, 4)] * 2


async def test_ids_in_a_prompt_stay_what_they_are_and_the_texts_between_are_tokenized(
    renderer: Renderer,
) -> None:
    client = Roomy([])
    model = LocalChatModel(client, renderer)
    prompts = [Prompt(("ab", 7, 8, "c")), Prompt((7, "ab")), Prompt(("ab",), special=False)]

    _ = [event async for event in model.completions(prompts, ReplyOptions())]

    assert [each.prompt for each in client.requests] == [(0, 1, 7, 8, 0), (7, 0, 1), (0, 1)]
    # What begins every text begins the first alone, and plain text has no control tokens.
    assert client.tokenized == [
        ("ab", True, True),
        ("c", False, True),
        ("ab", False, True),
        ("ab", False, False),
    ]


TOO_LONG = {
    "ids": Prompt((7,) * 4097),
    "many short texts": Prompt(("a",) * 4097),
    "one long text": Prompt.of("x" * 4096 * 8),
    "a long text among ids": Prompt((7, "x" * 4096 * 8)),
}


@pytest.mark.parametrize("prompt", TOO_LONG.values(), ids=TOO_LONG)
async def test_a_prompt_that_cannot_fit_is_refused_before_anything_is_counted(
    renderer: Renderer, prompt: Prompt
) -> None:
    client = Roomy([])

    with pytest.raises(ContextLengthError):
        await anext(LocalChatModel(client, renderer).completions([prompt], ReplyOptions()))

    assert client.tokenized == []


@pytest.mark.parametrize(
    "tools", [(), ({"name": "f", "description": "x" * 4096 * 8},)], ids=["a turn", "a declaration"]
)
async def test_a_conversation_that_cannot_fit_is_refused_before_anything_is_counted(
    renderer: Renderer, tools: tuple[dict[str, str], ...]
) -> None:
    client = Roomy([], "{{ tools }}" + TURNS)
    messages = [Message("user", "Hi" if tools else "x" * 4096 * 8)]

    with pytest.raises(ContextLengthError):
        await said(client, renderer, ReplyOptions(tools=tools), messages)

    assert client.tokenized == []
