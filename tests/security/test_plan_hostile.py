"""Headers that are well-formed and absurd: a plan comes of them, or a refusal."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localrun.errors import DoesNotFitError, PlanError
from localrun.hardware.machine import Machine
from localrun.models.spec import ModelSpec
from localrun.plan.plan import PlanRequest
from localrun.plan.planner import plan
from tests.planned import assert_sound, source
from tests.strategies import machines, requests, specs

BACKENDS = st.sampled_from(["llama.cpp", "torch"])


def asked(
    spec: ModelSpec, machine: Machine, request: PlanRequest, backend: str, device: bool
) -> None:
    try:
        made = plan(spec, machine, request, source(backend, device=device))
    except PlanError as error:
        refused = error
    else:
        assert_sound(made, spec)
        return
    assert refused.message
    if isinstance(refused, DoesNotFitError):
        assert refused.shortfall
        assert all(size > 0 for size in refused.shortfall.values())


@settings(max_examples=500, deadline=None, derandomize=True)
@given(specs(), machines(), requests(), BACKENDS, st.booleans())
def test_any_model_on_any_machine_is_planned_soundly_or_refused(
    spec: ModelSpec, machine: Machine, request: PlanRequest, backend: str, device: bool
) -> None:
    asked(spec, machine, request, backend, device)


@pytest.mark.long
@settings(max_examples=10_000, deadline=None)
@given(specs(), machines(), requests(), BACKENDS, st.booleans())
def test_ten_thousand_models_are_planned_soundly_or_refused(
    spec: ModelSpec, machine: Machine, request: PlanRequest, backend: str, device: bool
) -> None:
    asked(spec, machine, request, backend, device)
