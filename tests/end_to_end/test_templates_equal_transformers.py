"""Real chat templates render to the very text that transformers renders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from localrun.chat.messages import Message, ToolCall
from localrun.chat.templates import Renderer
from localrun.errors import TemplateError

BOS, EOS = "<s>", "</s>"
Turn = dict[str, Any]

SYSTEM: Turn = {"role": "system", "content": "You are <terse> & 'kind'.\n"}
QUESTION: Turn = {"role": "user", "content": 'What is 1 < 2 & "é"?\n'}
ANSWER: Turn = {"role": "assistant", "content": "  It is true.  "}
THOUGHT: Turn = {**ANSWER, "reasoning_content": "One is less\nthan two."}
FOLLOW_UP: Turn = {"role": "user", "content": "And 2 < 1? 🤔"}
CALL: Turn = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {
            "id": "call12345",
            "type": "function",
            "function": {"name": "get_weather", "arguments": {"city": "Zürich", "days": 3}},
        }
    ],
}
RESULT: Turn = {
    "role": "tool",
    "content": '{"celsius": 21}',
    "tool_call_id": "call12345",
    "name": "get_weather",
}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": 'The weather <b>&</b> "é"',
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Where"},
                "days": {"type": "integer"},
            },
            "required": ["city"],
        },
    },
}
CONVERSATIONS: dict[str, tuple[list[Turn], list[dict[str, Any]]]] = {
    "no system": ([QUESTION], []),
    "system": ([SYSTEM, QUESTION], []),
    "three turns": ([SYSTEM, QUESTION, ANSWER, FOLLOW_UP], []),
    "three turns with reasoning": ([QUESTION, THOUGHT, FOLLOW_UP], []),
    "tools": ([SYSTEM, QUESTION], [TOOL]),
    "tool result": ([SYSTEM, QUESTION, CALL, RESULT], [TOOL]),
    "answer after a tool result": ([QUESTION, CALL, RESULT, ANSWER, FOLLOW_UP], [TOOL]),
}


def as_message(turn: Turn) -> Message:
    calls = [(call["id"], call["function"]) for call in turn.get("tool_calls", ())]
    return Message(
        role=turn["role"],
        content=turn["content"],
        reasoning=turn.get("reasoning_content"),
        tool_calls=tuple(ToolCall(id, call["name"], call["arguments"]) for id, call in calls),
        tool_call_id=turn.get("tool_call_id"),
        name=turn.get("name"),
    )


def theirs(source: str, turns: list[Turn], tools: list[dict[str, Any]], prompt: bool) -> str | None:
    """What transformers renders; None where it refuses, in whatever words."""
    try:
        (text,), _ = render_jinja_template(
            [turns],
            tools=tools or None,
            chat_template=source,
            add_generation_prompt=prompt,
            bos_token=BOS,
            eos_token=EOS,
        )
    except Exception:
        return None
    assert isinstance(text, str)
    return text


def ours(
    renderer: Renderer, source: str, turns: list[Turn], tools: list[dict[str, Any]], prompt: bool
) -> str | None:
    messages = [as_message(turn) for turn in turns]
    try:
        return renderer.render(
            source, messages, tools=tools, add_generation_prompt=prompt, bos=BOS, eos=EOS
        )
    except TemplateError:
        return None


def test_every_real_template_renders_as_transformers_renders_it(llama_cpp_source: Path) -> None:
    """A conversation that both refuse counts as equal; a template that only refuses does not."""
    templates = sorted((llama_cpp_source / "models" / "templates").glob("*.jinja"))
    different: list[tuple[str, str, bool]] = []
    rendered: set[str] = set()

    with Renderer() as renderer:
        for path in templates:
            source = path.read_text(encoding="utf-8")
            for name, (turns, tools) in CONVERSATIONS.items():
                for prompt in (True, False):
                    expected = theirs(source, turns, tools, prompt)
                    if ours(renderer, source, turns, tools, prompt) != expected:
                        different.append((path.stem, name, prompt))
                    elif expected is not None:
                        rendered.add(path.stem)

    assert different == []
    assert len(templates) >= 70
    assert len(rendered) >= 68


CONSTRUCTS: dict[str, tuple[str, dict[str, Any]]] = {
    "blocks": (
        "{% for m in messages %}\n  {% if true %}\n{{ m.role }}\n  {% endif %}\n{% endfor %}\n",
        {},
    ),
    "tojson": (
        "{{ x|tojson }} {{ x|tojson(indent=2) }}",
        {"x": {"<b>": ["é", "\u2028", None, 1.5, True]}},
    ),
    "tojson options": (
        "{{ x|tojson(ensure_ascii=true, separators=(',', ':'), sort_keys=true) }}",
        {"x": {"é": 1, "a": 2}},
    ),
    "continue": (
        "{% for i in [1,2,3] %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}{% endfor %}",
        {},
    ),
    "break": ("{% for i in [1,2,3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", {}),
    "generation": (
        "{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}",
        {"x": 1},
    ),
    "namespace": (
        "{% set n = namespace(a=1) %}{% set n.a = n.a + 1 %}{{ n.a }}{{ dict(a=n.a).a }}",
        {},
    ),
    "operators": (
        "{{ 'a' + 'b' * 3 }}{{ '%s-%05d' % ('x', 7) }}{{ 2 ** 10 }}{{ [1] + [2] }}{{ 7 % 4 }}",
        {},
    ),
    "clock and escapes": ("{{ strftime_now('%Y') }}{{ '<&>' }}{{ missing }}{{ '<'|e }}", {}),
    "inputs": ("{{ messages[0].content[:2] }}{{ messages|length }}{{ tools }}{{ documents }}", {}),
}


@pytest.mark.parametrize(("source", "variables"), CONSTRUCTS.values(), ids=CONSTRUCTS)
def test_each_construct_renders_as_transformers_renders_it(
    source: str, variables: dict[str, Any]
) -> None:
    (expected,), _ = render_jinja_template(
        [[QUESTION]],
        chat_template=source,
        add_generation_prompt=True,
        bos_token=BOS,
        eos_token=EOS,
        **variables,
    )
    with Renderer() as renderer:
        actual = renderer.render(source, [as_message(QUESTION)], bos=BOS, eos=EOS, extra=variables)

    assert actual == expected
