"""Knows no file: a plan's JSON, checked field by field before it becomes a Plan."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from localrun.errors import UsageError
from localrun.plan import plan as values

if TYPE_CHECKING:
    from pydantic import TypeAdapter


@cache
def _adapter() -> TypeAdapter[values.Plan]:
    from pydantic import ConfigDict, TypeAdapter, with_config

    strict = with_config(ConfigDict(extra="forbid", strict=True))
    for value in (
        *(values.Workload, values.PlanRequest, values.PlannedFile, values.Parameters),
        *(values.Shares, values.PlannedModel, values.PlannedTier, values.PlannedMachine),
        *(values.Execution, values.Placement, values.Budget, values.Range, values.EngramUse),
        *(values.Prediction, values.WhatIf, values.Plan),
    ):
        strict(value)
    return TypeAdapter(values.Plan)


def read_plan(text: str) -> values.Plan:
    """Parse a plan's JSON.

    Raises:
        UsageError: names the first field that is absent, unknown, or of another type.
    """
    from pydantic import ValidationError

    try:
        return _adapter().validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"plan: {field}: {first['msg']}") from error
