"""Knows no template: a conversation of any shape as one that every chat template takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from localrun.chat.messages import Message


def simplified(messages: Sequence[Message]) -> list[Message]:
    """At most one system message, at the start; user and assistant in turns, the user first.

    A system message in the middle becomes the user's words where it stands, so that what comes
    before it stays as it was and its computed prefix is of use. Tool results become the user's.
    """
    runs: list[list[Message]] = []
    for message in messages:
        begins = not runs and message.role == "system"
        role = message.role if begins or message.role == "assistant" else "user"
        turn = replace(message, role=role, tool_call_id=None)
        if runs and runs[-1][0].role == role:
            runs[-1].append(turn)
            continue
        if role == "assistant" and (not runs or runs[-1][0].role == "system"):
            runs.append([Message("user", "")])
        runs.append([turn])
    return [_one(run) for run in runs]


def _one(run: Sequence[Message]) -> Message:
    """What one role said in a row."""
    return replace(
        run[0],
        content="\n\n".join(turn.content for turn in run if turn.content),
        tool_calls=tuple(call for turn in run for call in turn.tool_calls),
    )
