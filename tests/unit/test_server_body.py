"""Bodies of requests: numbers that JSON may hold and no computer can."""

from __future__ import annotations

import httpx2
import pytest
from fastapi.exceptions import RequestValidationError

from localrun.server.app import create_app
from localrun.server.body import parsed
from tests.fake_chat import FakeChat, FakeModels

TOO_LARGE = {
    "an exponent": "1e999",
    "a sign, and zeros": "-1.5E+000309",
    "many digits": f"1{'0' * 400}.0",
    "digits and an exponent": f"1{'0' * 250}e99",
}


@pytest.mark.parametrize("number", TOO_LARGE.values(), ids=TOO_LARGE.keys())
def test_a_number_that_would_be_read_as_infinity_is_refused_wherever_it_stands(
    number: str,
) -> None:
    with pytest.raises(RequestValidationError, match="too large"):
        parsed(f'{{"tools": [{{"parameters": {{"maximum": {number}}}}}]}}'.encode(), None)


def test_large_numbers_and_texts_like_them_are_taken() -> None:
    document = f'{{"a": 1e308, "b": "1e999", "c": 1e-999, "d": {"9" * 400}, "e": "{"5" * 500}"}}'

    assert parsed(document.encode(), None) == {
        "a": 1e308,
        "b": "1e999",
        "c": 0.0,
        "d": int("9" * 400),
        "e": "5" * 500,
    }


async def test_a_schema_with_such_a_number_is_refused_before_it_would_be_told_again() -> None:
    transport = httpx2.ASGITransport(create_app(FakeModels(fake=FakeChat())))
    tool = '{"type": "function", "name": "f", "parameters": {"maximum": 1e999}}'
    body = f'{{"model": "fake", "input": "Hi", "tools": [{tool}]}}'
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1:7411") as client:
        response = await client.post(
            "/v1/responses", content=body, headers={"content-type": "application/json"}
        )

    assert response.status_code == 400
    assert "too large" in response.json()["error"]["message"]
