"""Row N5 of the threat table by machine: requests made from our own OpenAPI document, valid ones
and broken ones, over a real engine with the mock runner. None is a 5xx, none is answered with a
status, a content type or an error's shape that the document does not tell of."""

from __future__ import annotations

import asyncio
import copy
import json
from collections import Counter
from typing import Any, Final

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.generation.modes import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.engine_child import importable, plan
from tests.security.port_routes import BASE, mocked

__all__ = ["importable"]
pytestmark = pytest.mark.usefixtures("importable")

MODEL: Final = "mock:echo"
CHECKS: Final = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


def described(document: dict[str, Any]) -> Any:
    """The document for a generator: fields that nobody reads would be most of what it makes."""
    document = copy.deepcopy(document)
    for schema in document["components"]["schemas"].values():
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)
    return schemathesis.openapi.from_dict(document)


async def answer(client: httpx2.AsyncClient, sent: dict[str, Any], body: Any) -> httpx2.Response:
    content = None if body is None else json.dumps(body)
    headers = {"content-type": "application/json"} if content is not None else {}
    url, params = sent["url"], sent.get("params")
    return await client.request(
        sent["method"], url, params=params, content=content, headers=headers
    )


def try_cases(runner: asyncio.Runner, each: int, *, fixed: bool) -> Counter[int]:
    """``each`` cases for every operation with a body, half of them meant to be valid; how many
    answers had each status."""
    context = mocked(MODEL, plan(MODEL, n_ctx=256))
    app, client = runner.run(context.__aenter__())
    told: Counter[int] = Counter()
    chosen = settings(
        max_examples=each // 2,
        derandomize=fixed,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )

    def try_operation(operation: Any, mode: GenerationMode) -> None:
        @chosen
        @given(case=operation.as_strategy(mode), known=st.sampled_from([True, True, True, False]))
        def holds(case: Any, known: bool) -> None:
            sent = case.as_transport_kwargs(base_url=BASE)
            body = sent.get("json")
            if known and isinstance(body, dict):
                body = body | {"model": MODEL}
            response = runner.run(answer(client, sent, body))
            told[response.status_code] += 1
            case.validate_response(response, checks=CHECKS)

        holds()

    try:
        for found in described(app.openapi()).get_all_operations():
            operation = found.ok()
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                if operation.body or mode is GenerationMode.POSITIVE:
                    try_operation(operation, mode)
    finally:
        runner.run(context.__aexit__(None, None, None))
    return told


def test_five_hundred_requests_made_from_our_document_are_answered_as_it_says() -> None:
    with asyncio.Runner() as runner:
        told = try_cases(runner, 28, fixed=True)

    assert sum(told.values()) >= 500
    # Not all of them for nothing: some are answered.
    assert told[200] >= 50


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_five_thousand_requests_made_from_our_document_are_answered_as_it_says() -> None:
    with asyncio.Runner() as runner:
        told = try_cases(runner, 280, fixed=False)

    assert sum(told.values()) >= 5000
    assert told[200] >= 500
