"""Conversations of any shape as templates take them: one system message, then roles in turns."""

from __future__ import annotations

import pytest

from localrun.chat.messages import Message, ToolCall
from localrun.chat.turns import simplified

CALL, OTHER = ToolCall("1", "f", {}), ToolCall("2", "g", {})
SHAPES: dict[str, tuple[list[Message], list[Message]]] = {
    "in turns already": (
        [Message("system", "s"), Message("user", "u"), Message("assistant", "a")],
        [Message("system", "s"), Message("user", "u"), Message("assistant", "a")],
    ),
    "a system message in the middle": (
        [Message("user", "u"), Message("system", "s"), Message("user", "")],
        [Message("user", "u\n\ns")],
    ),
    "two system messages": (
        [Message("system", "s"), Message("system", "t")],
        [Message("system", "s"), Message("user", "t")],
    ),
    "the assistant first": (
        [Message("system", "s"), Message("assistant", "a")],
        [Message("system", "s"), Message("user", ""), Message("assistant", "a")],
    ),
    "calls and their results": (
        [
            Message("user", "u"),
            Message("assistant", "", tool_calls=(CALL,)),
            Message("assistant", "a", tool_calls=(OTHER,)),
            Message("tool", "r", tool_call_id="1"),
            Message("tool", "t", tool_call_id="2"),
        ],
        [
            Message("user", "u"),
            Message("assistant", "a", tool_calls=(CALL, OTHER)),
            Message("user", "r\n\nt"),
        ],
    ),
    "nothing": ([], []),
}


@pytest.mark.parametrize(("said", "expected"), SHAPES.values(), ids=SHAPES)
def test_a_conversation_is_brought_into_turns(said: list[Message], expected: list[Message]) -> None:
    assert simplified(said) == expected
