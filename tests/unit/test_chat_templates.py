"""The renderer: what it hands to templates, what it makes of their faults, and its one child."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any

import pytest

from localrun.chat.messages import Message, ToolCall
from localrun.chat.render_frames import OUTPUT_BYTES_MAX, REQUEST_BYTES_MAX, SOURCE_BYTES_MAX
from localrun.chat.templates import Renderer, template_message
from localrun.errors import RequestError, TemplateError

HELLO = [Message("user", "hello")]
FOREVER = "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3


@pytest.fixture(scope="module")
def renderer() -> Any:
    with Renderer() as shared:
        yield shared


def render(renderer: Renderer, template: str | None, **options: Any) -> str:
    messages = options.pop("messages", HELLO)
    return renderer.render(template, messages, bos="<s>", eos="</s>", **options)


def test_a_model_without_a_template_gets_chatml(renderer: Renderer) -> None:
    messages = [Message("system", "Be brief."), Message("user", "Hi")]

    text = render(renderer, None, messages=messages)

    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert not render(renderer, None, add_generation_prompt=False).endswith("assistant\n")


def test_a_message_has_the_fields_templates_look_for() -> None:
    call = ToolCall("c1", "look", MappingProxyType({"at": "it"}))
    message = Message("assistant", "", reasoning="hm", tool_calls=(call,))

    assert template_message(message) == {
        "role": "assistant",
        "content": "",
        "reasoning_content": "hm",
        "thinking": "hm",
        "tool_calls": [
            {
                "id": "c1",
                "type": "function",
                "function": {"name": "look", "arguments": {"at": "it"}},
            }
        ],
    }
    assert template_message(Message("tool", "x", tool_call_id="c1", name="look")) == {
        "role": "tool",
        "content": "x",
        "tool_call_id": "c1",
        "name": "look",
    }
    assert template_message(Message("user", "x")) == {"role": "user", "content": "x"}


def test_call_arguments_reach_the_template_as_an_object(renderer: Renderer) -> None:
    call = ToolCall("c1", "look", MappingProxyType({"at": ("a", 1)}))
    source = "{{ messages[0].tool_calls[0].function.arguments['at'][1] + 1 }}"

    assert render(renderer, source, messages=[Message("assistant", "", tool_calls=(call,))]) == "2"


def test_absent_tools_are_none_and_present_ones_a_list(renderer: Renderer) -> None:
    source = "{{ tools is none }} {{ tools[0].function.name if tools }}"

    assert render(renderer, source) == "True "
    assert render(renderer, source, tools=[{"function": {"name": "f"}}]) == "False f"


def test_extra_variables_reach_the_template(renderer: Renderer) -> None:
    assert render(renderer, "{{ enable_thinking }}", extra={"enable_thinking": False}) == "False"


@pytest.mark.parametrize("name", ["messages", "tools", "bos_token", "add_generation_prompt"])
def test_extra_variables_cannot_replace_ours(renderer: Renderer, name: str) -> None:
    with pytest.raises(RequestError, match=name):
        render(renderer, "x", extra={name: 1})


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('only\x1b[2J\n\x00two roles') }}", "refuses these messages: only"),
        ("{{ messages.nothing.at_all }}", "failed: "),
        ("{% if %}", r"failed: .*\(line 1\)"),
        ("{{ 1 / 0 }}", "failed: ZeroDivisionError"),
        ("{{ 'a' * 10 ** 9 }}", "broke its limits"),
        ("{{ ''.__class__.mro() }}", "failed: .*unsafe"),
        ("{{ messages.append(1) }}", "failed: .*unsafe"),
        ("{% include 'x' %}", "failed: "),
        ("{{ raise_exception('x' * 100000) }}", "…$"),
    ],
    ids=["raised", "undefined", "syntax", "arithmetic", "limit", "private", "mutation", "include",
         "long message"],
)  # fmt: skip
def test_a_template_that_fails_is_a_typed_error_on_one_clean_line(
    renderer: Renderer, template: str, words: str
) -> None:
    with pytest.raises(TemplateError, match=words) as caught:
        render(renderer, template)

    assert caught.value.message.isprintable()
    assert len(caught.value.message) <= 600


def test_a_failure_leaves_the_child_warm(renderer: Renderer) -> None:
    render(renderer, "x")
    child = renderer._child

    with pytest.raises(TemplateError):
        render(renderer, "{{ raise_exception('no') }}")

    assert render(renderer, "y") == "y"
    assert renderer._child is child


def test_a_template_longer_than_the_limit_is_refused_unread(renderer: Renderer) -> None:
    assert render(renderer, "a" * SOURCE_BYTES_MAX) == "a" * SOURCE_BYTES_MAX
    with pytest.raises(TemplateError, match=str(SOURCE_BYTES_MAX + 1)):
        render(renderer, "a" * (SOURCE_BYTES_MAX + 1))


def test_messages_too_large_to_render_are_the_requests_fault(renderer: Renderer) -> None:
    with pytest.raises(RequestError, match=str(REQUEST_BYTES_MAX)):
        render(renderer, None, messages=[Message("user", "é" * (REQUEST_BYTES_MAX // 2))])


@pytest.mark.parametrize("parts", [1, 2], ids=["one message", "several together"])
def test_messages_longer_than_any_rendered_text_are_not_the_templates_fault(
    renderer: Renderer, parts: int
) -> None:
    messages = [Message("user", "x" * (OUTPUT_BYTES_MAX // parts + 1))] * parts

    with pytest.raises(RequestError, match=str(OUTPUT_BYTES_MAX + parts)) as caught:
        render(renderer, None, messages=messages)
    assert "template" not in caught.value.hint
    assert render(renderer, "y") == "y"


def test_eight_megabytes_render_and_one_more_character_does_not(renderer: Renderer) -> None:
    text = "x" * (8 * 1024 * 1024)

    assert render(renderer, "{{ messages[0].content }}", messages=[Message("user", text)]) == text
    with pytest.raises(TemplateError, match="limits"):
        render(renderer, "{{ messages[0].content }}!", messages=[Message("user", text)])


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes"], ids=["an object", "a set", "bytes"])
def test_values_that_are_not_json_are_the_requests_fault(renderer: Renderer, value: object) -> None:
    with pytest.raises(RequestError, match="JSON"):
        render(renderer, "x", extra={"value": value})


def test_lone_surrogates_become_question_marks(renderer: Renderer) -> None:
    assert (
        render(renderer, "{{ messages[0].content }}\ud800", messages=[Message("user", "a\udfffb")])
        == "a?b?"
    )


def test_a_template_without_end_is_killed_and_the_next_one_renders() -> None:
    with Renderer(deadline_s=0.2) as renderer:
        with pytest.raises(TemplateError, match=r"did not end within 0\.2 s"):
            render(renderer, FOREVER)

        assert render(renderer, "again") == "again"


def test_a_child_that_died_is_replaced() -> None:
    with Renderer() as renderer:
        render(renderer, "x")
        child = renderer._child
        assert child is not None
        child.kill()
        child.wait()

        assert render(renderer, "again") == "again"


def test_renders_from_many_threads_do_not_mix(renderer: Renderer) -> None:
    barrier = threading.Barrier(8)

    def one(number: int) -> str:
        barrier.wait()
        return render(renderer, None, messages=[Message("user", str(number))])

    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(one, range(8)))

    assert [str(number) in text for number, text in enumerate(texts)] == [True] * 8


async def test_the_event_loop_runs_on_while_a_template_does_not_end() -> None:
    with Renderer(deadline_s=0.2) as renderer:
        rendering = asyncio.create_task(renderer.render_async(FOREVER, HELLO, bos="", eos=""))
        turns = 0
        while not rendering.done():
            await asyncio.sleep(0)
            turns += 1

        with pytest.raises(TemplateError):
            rendering.result()
    assert turns > 100


def test_a_closed_renderer_refuses_and_closes_again() -> None:
    renderer = Renderer()
    renderer.warm()
    child = renderer._child
    renderer.close()
    renderer.close()
    renderer.warm()

    assert child is not None
    assert child.returncode is not None
    with pytest.raises(TemplateError, match="closed"):
        render(renderer, "x")
