"""Engines on a mock runner, and what to ask them, for tests of more than one file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from localrun.engine.engine import Engine
from localrun.engine.generation import Generation
from localrun.engine.request import GenerationRequest, SamplingParams, TokenEvent
from tests.mock_runner import MockRunner, encode

GREEDY = SamplingParams(temperature=0)


def ask(id_: str, prompt: str = "hello", **fields: Any) -> GenerationRequest:
    values = {"id": id_, "prompt": tuple(encode(prompt)), "sampling": GREEDY}
    return GenerationRequest(**(values | fields))


@contextmanager
def running(runner: MockRunner, **options: Any) -> Iterator[Engine]:
    """An engine that is closed at the end, with no call from a wrong thread."""
    engine = Engine(runner, **options)
    try:
        yield engine
    finally:
        runner.release()
        engine.close()
    assert runner.closed
    assert runner.violations == []


def outcome(generation: Generation) -> tuple[str, TokenEvent]:
    """The whole text, and the last event."""
    events = list(generation)
    return "".join(event.text for event in events), events[-1]
