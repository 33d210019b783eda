"""Row N5 of the threat table by hand: odd bodies to every route. None is a 5xx, each is told in the
dialect's own shape, and nothing of it stays."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from typing import Any, Final

import psutil
import pytest

from tests.engine_child import importable, plan
from tests.security.port_routes import examples, is_told_rightly, mocked, with_bodies

__all__ = ["importable"]
pytestmark = pytest.mark.usefixtures("importable")

MODEL: Final = "mock:echo"
HEADERS: Final = {"content-type": "application/json"}
MIB: Final = 1 << 20
# Values as they stand in JSON: some of them no Python value is.
ODD: Final = {
    "null": "null",
    "true": "true",
    "minus one": "-1",
    "zero": "0",
    "a fraction": "1.5",
    "2^63": str(2**63),
    "beyond 64 bits": str(-(2**64)),
    "400 digits": "9" * 400,
    "beyond doubles": "1e400",
    "nan": "NaN",
    "infinity": "-Infinity",
    "an empty string": '""',
    "a word": '"x"',
    "a digit": '"1"',
    "a nul": '"\\u0000"',
    "half a pair": '"\\ud800"',
    "a long word": f'"{"x" * 5000}"',
    "a url": '"http://169.254.169.254/latest"',
    "a data url": '"data:image/png;base64,aGk="',
    "an empty list": "[]",
    "a list of null": "[null]",
    "lists in lists": "[[[]], [[1]]]",
    "a list of words": '["x", "", "\\u202e"]',
    "an empty object": "{}",
    "an object": '{"type": "x", "a": null, "": [{}]}',
    "a text part": '[{"type": "text"}]',
}
RAW: Final = {
    "empty": b"",
    "a space": b" ",
    "cut": b'{"model": "mock:echo", "mess',
    "two documents": b"{}{}",
    "a comma too many": b'{"model": "mock:echo",}',
    "no json": b"model=mock:echo",
    "a list": b"[]",
    "null": b"null",
    "a string": b'"x"',
    "a number": b"1",
    "nan": b"NaN",
    "no utf-8": b'{"model": "\xff"}',
    "half a pair in utf-8": b'{"model": "\xed\xa0\x80"}',
    "utf-16": '{"model": "mock:echo"}'.encode("utf-16"),
    "utf-32": '{"model": "mock:echo"}'.encode("utf-32-le"),
    "utf-16, with brackets hidden": ('{"a": "\\"", "b": ' + "[" * 5000).encode("utf-16-le"),
    "a nul": b'{"model": "a\x00b"}',
    "a control character": b'{"model": "a\x1bb"}',
    "brackets": b"[" * 100_000,
    "objects": b'{"a":' * 100_000,
    "an open string": b'{"model": "' + b"\\\\" * 100_000,
    "a number of 5,000 digits": b'{"model": ' + b"1" * 5000 + b"}",
    "too many values": b"[" + b"1," * 1_000_000 + b"1]",
    "too many lists": b"[" + b"[]," * 250_000 + b"[]]",
}


def fields_of(document: dict[str, Any], path: str) -> list[str]:
    asked = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    schema = document["components"]["schemas"][asked["$ref"].rpartition("/")[2]]
    return list(schema["properties"])


def odd_bodies(document: dict[str, Any], each: int) -> Iterator[tuple[str, str, bytes]]:
    """(path, name, body): every ``each``-th odd value in every field of every route, and beside it
    the field twice."""
    values, turn = list(ODD.items()), 0
    for path, example in examples(MODEL).items():
        for field in fields_of(document, path):
            others = json.dumps({key: value for key, value in example.items() if key != field})
            head = others[:-1] + (", " if others != "{}" else "")
            for at in range(turn % each, len(values), each):
                name, value = values[at]
                body = f'{head}"{field}": {value}}}'
                yield path, f"{field}: {name}", body.encode()
            turn += 1
            twice = f'{head}"{field}": {values[turn % len(values)][1]}, "{field}": null}}'
            yield path, f"{field}: twice", twice.encode()


async def ask_all(each: int) -> tuple[int, list[str], float]:
    """How many requests there were, what went wrong, and by how many bytes the process grew."""
    wrong, count = [], 0
    async with mocked(MODEL, plan(MODEL, n_ctx=256)) as (app, client):
        document = app.openapi()
        for path, body in examples(MODEL).items():
            assert (await client.post(path, json=body)).status_code < 500
        gc.collect()
        before = psutil.Process().memory_info().rss
        for path, name, sent in odd_bodies(document, each):
            count += 1
            response = await client.post(path, content=sent, headers=HEADERS)
            status = response.status_code
            known = str(status) in document["paths"][path]["post"]["responses"]
            told = status == 200 or is_told_rightly(path, response.json())
            if status >= 500 or not known or not told:
                wrong.append(f"{path} {name}: {status} {response.text[:200]}")
        gc.collect()
        grown = psutil.Process().memory_info().rss - before
    return count, wrong, grown


async def test_odd_values_in_every_field_of_every_route_are_answered_and_never_with_a_5xx() -> None:
    count, wrong, grown = await ask_all(each=9)

    assert not wrong, "\n".join(wrong)
    assert count >= 300
    assert grown <= 50 * MIB


@pytest.mark.long
async def test_every_odd_value_in_every_field_is_answered_and_never_with_a_5xx() -> None:
    count, wrong, grown = await ask_all(each=1)

    assert not wrong, "\n".join(wrong)
    assert count >= 9000
    assert grown <= 50 * MIB


async def test_what_is_no_request_at_all_is_400_on_every_route() -> None:
    wrong = []
    async with mocked(MODEL, plan(MODEL, n_ctx=256)) as (app, client):
        for path in with_bodies(app):
            for name, sent in RAW.items():
                response = await client.post(path, content=sent, headers=HEADERS)
                if response.status_code != 400 or not is_told_rightly(path, response.json()):
                    wrong.append(f"{path} {name}: {response.status_code} {response.text[:200]}")

    assert not wrong, "\n".join(wrong)


async def test_every_route_with_a_body_has_an_honest_example_here() -> None:
    async with mocked(MODEL, plan(MODEL, n_ctx=256)) as (app, _):
        assert with_bodies(app) == sorted(examples(MODEL))
