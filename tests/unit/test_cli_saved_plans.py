"""Plans that were saved before, of models whose experts are kept singly."""

from __future__ import annotations

from dataclasses import asdict, replace
from json import dumps
from pathlib import Path

import pytest

from localrun.cli.lookup import Found
from localrun.cli.saved_plans import _executable
from localrun.errors import UsageError
from localrun.plan.plan import Plan, PlanRequest
from localrun.plan.planner import plan
from tests.planned import machine_of, source, spec_of

MODEL, MACHINE = "deepseek-v4.1-flash", "cpu:16+ddr5-6000x2:64+nvme4"
NEW = ("streams", "staging_bytes", "mirrors", "card_slots_per_layer", "engram_scales",
       "engram_cache_bytes")  # fmt: skip


def streamed() -> Plan:
    asked = PlanRequest(ram_bytes=40 << 30, backend="torch", threads=1)
    return plan(spec_of(MODEL), machine_of(MACHINE), asked, source("torch"))


def held(saved: Plan) -> None:
    found = Found(MODEL, spec_of(MODEL), "safetensors", None, "config")
    _executable(saved, found, machine_of(MACHINE), Path("plan.json"))


def test_a_plan_that_streams_is_executed_as_it_was_saved() -> None:
    made = streamed()
    assert made.execution.streams
    held(Plan.from_json(made.to_json()))


def test_a_plan_of_a_version_that_did_not_stream_is_refused_by_its_field() -> None:
    """It would load all experts, in memory that has no room for them."""
    document = asdict(streamed())
    for field in NEW:
        del document["execution"][field]
    for field in ("terms_bytes", "runs"):
        del document["prediction"][field]
    del document["request"]["mirrors"]
    old = Plan.from_json(dumps(document))

    with pytest.raises(UsageError, match=r"slots_per_layer is \d+ of 384 experts") as caught:
        held(old)
    assert "plan again" in (caught.value.hint or "")
    held(replace(old, execution=replace(old.execution, slots_per_layer=0)))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("engram_cache_bytes", 1 << 40),
        ("engram_cache_bytes", -1),
        ("staging_bytes", -1),
        ("card_slots_per_layer", 400),
    ],
)
def test_sizes_that_nobody_plans_are_refused_by_their_field(field: str, value: int) -> None:
    made = streamed()
    told = replace(made.execution, **{field: value})  # type: ignore[arg-type]  # a field of any name
    with pytest.raises(UsageError, match=rf"execution\.{field} is {value}, from 0 to"):
        held(replace(made, execution=told))
