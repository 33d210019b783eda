"""What the soak rests on: answers told beforehand, and a leak that shows in what is reported."""

from __future__ import annotations

import random
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from localrun.engine.engine import Engine
from localrun.engine.request import GenerationRequest, SamplingParams
from tests.engine_child import plan

KIB = 1024


def bench(name: str) -> Any:
    folder = str(Path(__file__).parents[2] / "bench")
    if folder not in sys.path:
        sys.path.append(folder)
    return import_module(name)


def clean() -> dict[str, Any]:
    """A report in which nothing is amiss."""
    soak = bench("soak")
    at = list(range(320, 3521, 320))
    counts = {"descriptors of the server": 11, "asyncio tasks": 3}
    return {
        "memory": {who: soak.growth(at, [70 << 20] * len(at)) for who in soak.WHO},
        "base": counts,
        "last": dict(counts),
        "tally": {"wrong": []},
        "left": "left behind: 0 sequences, 0 calls",
        "states_bytes": 0,
        "errors": "",
        "exit": 0,
    }


def grown(leak: float, warm_up: int = 0) -> Any:
    """Memory that grows by so many bytes a request, and by ``warm_up`` before the second sample."""
    at = list(range(320, 3521, 320))
    noise = random.Random(1)
    rss = [
        70 * KIB * KIB + int(leak * n) + noise.randrange(64 * KIB) + warm_up * (n > 320) for n in at
    ]
    return bench("soak").growth(at, rss)


def test_a_report_without_a_fault_misses_nothing() -> None:
    assert bench("soak").missed(clean()) == []


AMISS: dict[str, tuple[dict[str, Any], str]] = {
    "a leak of two kilobytes": ({"memory": {"child": grown(2 * KIB)}}, "child"),
    "few samples": ({"memory": {"child": {"samples": [1], "slope": 0, "drift": 0}}}, "longer"),
    "a descriptor": ({"last": {"asyncio tasks": 4}}, "asyncio tasks: 4"),
    "a sequence": ({"left": "left behind: 1 sequences, 0 calls"}, "1 sequences"),
    "a child that said nothing": ({"left": ""}, "the child said"),
    "a wrong answer": ({"tally": {"wrong": ["no"]}}, "no"),
    "states": ({"states_bytes": 2 << 20}, "states"),
    "an error": ({"errors": "Task was destroyed"}, "destroyed"),
    "a status": ({"exit": 1}, "ended with 1"),
}


@pytest.mark.parametrize(("fields", "said"), AMISS.values(), ids=AMISS.keys())
def test_whatever_is_amiss_is_missed(fields: dict[str, Any], said: str) -> None:
    found = bench("soak").missed(clean() | fields)

    assert found
    assert all(said in line for line in found)


def test_what_memory_grows_by_before_it_is_warm_is_no_leak() -> None:
    memory = grown(100, warm_up=20 << 20)

    assert memory["slope"] < KIB
    assert memory["drift"] < KIB


@pytest.mark.parametrize("seed", range(3))
def test_the_answers_are_what_the_engine_says_one_request_at_a_time(seed: int) -> None:
    clients, runner = bench("soak_clients"), bench("soak_runner")
    chosen = random.Random(seed)
    engine = Engine(runner.load(plan("soak", n_ctx=2048)))
    checked = 0
    for at in range(40):
        body, expected = clients.asked(chosen, f"{seed}-{at}")
        if expected.refusal is not None or "response_format" in body or "guided" in str(body):
            continue
        turns = [(f"<|{each['role']}|>", each["content"]) for each in body["messages"]]
        text = "".join(f"{role}{content}<|end|>" for role, content in turns) + "<|assistant|>"
        prompt = engine.tokenize(text, add_special=True)
        stop = (body["stop"],) if "stop" in body else ()
        request = GenerationRequest(
            str(at),
            tuple(prompt),
            SamplingParams(temperature=0),
            max_tokens=body.get("max_tokens"),
            stop=stop,
        )
        events = list(engine.submit(request))
        assert "".join(event.text for event in events) == expected.text
        assert events[-1].finish == expected.finish
        assert events[-1].timings is not None
        assert events[-1].timings.generated_tokens * expected.choices == expected.generated
        assert len(prompt) == expected.prompt
        checked += 1
    engine.close()
    assert checked > 20
