"""The body of a chat completion: what is refused by name, and what is just allowed."""

from __future__ import annotations

from typing import Any

import pytest

from localrun.server.app import create_app
from tests.fake_chat import FakeChat, FakeModels
from tests.unit.test_server_chat import CHAT, MESSAGE, ask, client_of

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no messages": ({"messages": []}, "messages"),
    "no such role": ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
    "content a number": ({"messages": [MESSAGE, MESSAGE | {"content": 1}]}, "messages[1].content"),
    "an image": (
        {"messages": [MESSAGE | {"content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages[0].content",
    ),
    "a part without text": (
        {"messages": [MESSAGE | {"content": [{"type": "text"}]}]},
        "messages[0].content",
    ),
    "arguments no object": (
        {
            "messages": [
                {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "["}}]}
            ]
        },
        "messages[0].tool_calls[0].function.arguments",
    ),
    "a message that is none": ({"messages": ["hi"]}, "messages[0]"),
    "model missing": ({"model": None}, "model"),
    "temperature a string": ({"temperature": "0.5"}, "temperature"),
    "temperature below": ({"temperature": -0.1}, "temperature"),
    "temperature above": ({"temperature": 2.1}, "temperature"),
    "temperature true": ({"temperature": True}, "temperature"),
    "top_p above": ({"top_p": 1.1}, "top_p"),
    "top_k below": ({"top_k": -1}, "top_k"),
    "min_p above": ({"min_p": 2}, "min_p"),
    "seed too large": ({"seed": 2**63}, "seed"),
    "max_tokens zero": ({"max_tokens": 0}, "max_tokens"),
    "max_tokens 2^63": ({"max_tokens": 2**63}, "max_tokens"),
    "max_tokens a float": ({"max_tokens": 1.5}, "max_tokens"),
    "max_completion_tokens negative": ({"max_completion_tokens": -1}, "max_completion_tokens"),
    "no choice": ({"n": 0}, "n"),
    "nine choices": ({"n": 9}, "n"),
    "a thousand choices": ({"n": 1000}, "n"),
    "17 stops": ({"stop": ["x"] * 17}, "stop"),
    "an empty stop": ({"stop": ""}, "stop[0]"),
    "an empty stop in a list": ({"stop": ["a", ""]}, "stop[1]"),
    "a stop that is a number": ({"stop": 1}, "stop"),
    "1025 biases": ({"logit_bias": {str(n): 1.0 for n in range(1025)}}, "logit_bias"),
    "a bias of no token": ({"logit_bias": {"hello": 1.0}}, "logit_bias"),
    "a bias of a negative token": ({"logit_bias": {"-1": 1.0}}, "logit_bias"),
    "a bias of a token of a million digits": ({"logit_bias": {"9" * 10**6: 1}}, "logit_bias"),
    "a bias above": ({"logit_bias": {"1": 101}}, "logit_bias[1]"),
    "a bias that is a word": ({"logit_bias": {"1": "ban"}}, "logit_bias[1]"),
    "biases in a list": ({"logit_bias": [[1, 1.0]]}, "logit_bias"),
    "logprobs a number": ({"logprobs": 5}, "logprobs"),
    "21 logprobs": ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    "alternatives without logprobs": ({"top_logprobs": 2}, "top_logprobs"),
    "a penalty above": ({"presence_penalty": 2.1}, "presence_penalty"),
    "a penalty below": ({"frequency_penalty": -2.1}, "frequency_penalty"),
    "typical_p above": ({"typical_p": 1.1}, "typical_p"),
    "repeat_last_n below": ({"repeat_last_n": -2}, "repeat_last_n"),
    "dry_base below": ({"dry_base": 0.5}, "dry_base"),
    "a breaker that is empty": ({"dry_sequence_breakers": [""]}, "dry_sequence_breakers[0]"),
    "xtc_probability above": ({"xtc_probability": 1.5}, "xtc_probability"),
    "a format of no kind": ({"response_format": {"type": "yaml"}}, "response_format.type"),
    "a format that is a word": ({"response_format": "json"}, "response_format"),
    "a schema that is missing": (
        {"response_format": {"type": "json_schema"}},
        "response_format.json_schema",
    ),
    "a schema without a schema": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
        "response_format.json_schema.schema",
    ),
    "a schema that is a list": (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": []}}},
        "response_format.json_schema.schema",
    ),
    "a grammar over a MiB": ({"grammar": "x" * (1024 * 1024 + 1)}, "grammar"),
    "a breaker of 41 bytes": (
        {"dry_sequence_breakers": ["x", "ß" * 20 + "x"]},
        "dry_sequence_breakers[1]",
    ),
    "65 breakers": ({"dry_sequence_breakers": ["x"] * 65}, "dry_sequence_breakers"),
    "an empty grammar": ({"grammar": ""}, "grammar"),
    "two forms": (
        {"response_format": {"type": "json_object"}, "grammar": 'root ::= "x"'},
        "grammar",
    ),
    "two other forms": ({"json_schema": {}, "guided_choice": ["a"]}, "guided_choice"),
    "no choice to make": ({"guided_choice": []}, "guided_choice"),
    "a user of 513 characters": ({"user": "x" * 513}, "user"),
    "a forced tool": ({"tool_choice": "required"}, "tool_choice"),
    "a choice of no kind": ({"tool_choice": 1}, "tool_choice"),
    "tools no list": ({"tools": {}}, "tools"),
    "stream a word": ({"stream": "yes"}, "stream"),
    "ignore_eos a number": ({"ignore_eos": 1}, "ignore_eos"),
}


@pytest.mark.parametrize(("fields", "param"), REFUSED.values(), ids=REFUSED.keys())
async def test_a_field_out_of_its_range_is_refused_by_name(
    fields: dict[str, Any], param: str
) -> None:
    chat = FakeChat()
    response = await ask(chat, **fields)

    error = response.json()["error"]
    assert response.status_code == 400
    assert set(error) == {"message", "type", "code", "param"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert error["message"].startswith(param)
    assert chat.asked == []


LIMITS: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 2},
    "top_p": {"top_p": 1},
    "seed": {"seed": -(2**63)},
    "max_tokens": {"max_tokens": 2**31 - 1},
    "stop": {"stop": ["x" * 1024] * 16},
    "what is off": {
        "n": 1,
        "presence_penalty": 0,
        "logprobs": False,
        "top_logprobs": 0,
        "logit_bias": {},
        "response_format": {"type": "text"},
        "tool_choice": "none",
    },
    "n": {"n": 8},
    "logprobs": {"logprobs": True, "top_logprobs": 20},
    "bias": {"logit_bias": {str(n): -100 for n in range(1024)}},
    "penalties": {"presence_penalty": -2, "frequency_penalty": 2.0, "repeat_last_n": -1},
    "grammar": {"grammar": "x" * 1024 * 1024},
    "breakers": {"dry_sequence_breakers": ["ß" * 20] * 64},
    "free text beside a grammar": {"response_format": {"type": "text"}, "grammar": "x"},
    "nulls": {"stop": None, "seed": None, "stream": None, "tools": None, "max_tokens": None},
}


@pytest.mark.parametrize("fields", LIMITS.values(), ids=LIMITS.keys())
async def test_a_field_at_its_limit_is_accepted(fields: dict[str, Any]) -> None:
    assert (await ask(FakeChat(), **fields)).status_code == 200


BODIES = {
    "empty": b"",
    "no json": b"{",
    "a list": b"[]",
    "a string": b'"hi"',
    "not utf-8": b'{"model": "\xff"}',
    "not a number": b'{"model":"fake","messages":[{"role":"user","content":"x"}],"top_p":NaN}',
    "a lone surrogate": b'{"model":"fake","messages":[{"role":"user","content":"\\ud800"}]}',
    "a surrogate in a tool": b'{"model":"fake","messages":[{"role":"user","content":"x"}],'
    b'"tools":[{"\\udfff":1}]}',
    "5000 digits": b'{"model":"fake","messages":[],"seed":' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
async def test_a_body_that_is_no_request_is_refused_in_openais_shape(body: bytes) -> None:
    async with client_of(create_app(FakeModels(fake=FakeChat()))) as client:
        response = await client.post(
            CHAT, content=body, headers={"content-type": "application/json"}
        )

    assert response.status_code == 400
    assert set(response.json()["error"]) == {"message", "type", "code", "param"}
