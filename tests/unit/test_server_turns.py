"""Conversations of many turns: nobody else waits while they are read."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from localrun.server.ollama.chat_asked import messages_of
from localrun.server.ollama.chat_request import ChatMessage
from localrun.server.turns import MANY_TURNS, converted


@pytest.mark.parametrize(
    ("turns", "here"), [(1, True), (MANY_TURNS - 1, True), (MANY_TURNS, False)]
)
async def test_many_turns_are_converted_in_a_thread(turns: int, here: bool) -> None:
    where = await converted(turns, threading.get_ident)

    assert (where == threading.get_ident()) == here


async def test_what_a_conversion_raises_is_raised() -> None:
    def fail() -> None:
        raise ValueError("x")

    for turns in (1, MANY_TURNS):
        with pytest.raises(ValueError, match="x"):
            await converted(turns, fail)


def _call(id_: str | None, name: str) -> dict[str, Any]:
    called = {"id": id_, "function": {"name": name, "arguments": {}}}
    return {"role": "assistant", "tool_calls": [called]}


def _result(id_: str | None = None, name: str | None = None) -> dict[str, Any]:
    return {"role": "tool", "content": "x", "tool_call_id": id_, "tool_name": name}


# Results after the calls a of f, b of g, c of f; the ids that they are told to answer.
RESULTS: dict[str, tuple[list[dict[str, Any]], list[str | None]]] = {
    "of no name": ([_result(), _result(), _result(), _result()], ["a", "b", "c", None]),
    "by their names": ([_result(name="f")] * 3, ["a", "c", None]),
    "by an id, then a name": ([_result("a"), _result(name="f")], ["a", "c"]),
    "by an id that is not there": ([_result("x"), _result()], ["x", "a"]),
    "by a name that is not there": ([_result(name="x"), _result()], [None, "a"]),
    "by a name, then any": ([_result(name="g"), _result(), _result()], ["b", "a", "c"]),
}


@pytest.mark.parametrize(("results", "ids"), RESULTS.values(), ids=RESULTS.keys())
def test_a_result_answers_the_first_open_call_that_it_can(
    results: list[dict[str, Any]], ids: list[str | None]
) -> None:
    calls = [_call("a", "f"), _call("b", "g"), _call("c", "f")]
    messages = messages_of([ChatMessage.model_validate(each) for each in [*calls, *results]])

    assert [message.tool_call_id for message in messages[3:]] == ids


@pytest.mark.parametrize("result", [_result("x"), _result(name="x"), _result(), _result(name="f")])
def test_the_calls_of_a_long_conversation_are_found_in_time(result: dict[str, Any]) -> None:
    turns = [*[_call(None, "f")] * 20_000, *[result] * 20_000]
    asked = [ChatMessage.model_validate(each) for each in turns]
    began = time.process_time()
    messages = messages_of(asked)

    assert len(messages) == 40_000
    # Looked for one by one it is hundreds of millions of steps.
    assert time.process_time() - began < 4
