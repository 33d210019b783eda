"""Plans as JSON: what was saved is read back, what was tampered with is refused by field."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from localrun.errors import UsageError
from localrun.plan.plan import Budget, Plan
from tests.planned import planned


@pytest.fixture(scope="module")
def saved() -> str:
    return planned("qwen3-30b-a3b", "rtx-3060-12gb+ddr5-6000x2:64+nvme4", quant="Q4_K_M").to_json()


def drop(*path: Any) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        for step in path[:-1]:
            document = document[step]
        del document[path[-1]]

    return change


def put(value: Any, *path: Any) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        for step in path[:-1]:
            document = document[step]
        document[path[-1]] = value

    return change


TAMPERED: dict[str, tuple[Callable[[Any], None], str]] = {
    "no model": (drop("model"), "model"),
    "no backend": (drop("backend"), "backend"),
    "no execution": (drop("execution"), "execution"),
    "no context": (drop("execution", "n_ctx"), r"execution\.n_ctx"),
    "a budget without a limit": (drop("budgets", 0, "limit"), r"budgets\.0\.limit"),
    "an unknown key": (put(1, "colour"), "colour"),
    "an unknown key inside": (put(1, "execution", "n_batch"), r"execution\.n_batch"),
    "an unknown key of a budget": (put(1, "budgets", 1, "spare"), r"budgets\.1\.spare"),
    "a context in words": (put("many", "execution", "n_ctx"), r"execution\.n_ctx"),
    "a context as a float": (put(1.5, "execution", "n_ctx"), r"execution\.n_ctx"),
    "a count as a truth": (put(True, "execution", "threads"), r"execution\.threads"),
    "mapping as a number": (put(1, "execution", "mmap"), r"execution\.mmap"),
    "another type of cache": (put("q3_k", "execution", "kv_type"), r"execution\.kv_type"),
    "warnings as a text": (put("none", "warnings"), "warnings"),
    "a prediction of text": (put("fast", "prediction", "decode_tps"), r"prediction\.decode_tps"),
    "nothing for a name": (put(None, "backend"), "backend"),
    "a total that is not the sum": (put(7, "budgets", 0, "total"), r"budgets\.0.*sum"),
    "no version": (drop("version"), "version None"),
    "a version to come": (put(99, "version"), "version 99"),
    "the version as a text": (put("2", "version"), "version '2'"),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_a_plan_that_was_tampered_with_is_refused_by_field(case: str, saved: str) -> None:
    change, named = TAMPERED[case]
    document = json.loads(saved)
    change(document)
    with pytest.raises(UsageError, match=named):
        Plan.from_json(json.dumps(document))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "null", '"plan"', "\0", "[" * 100_000, "{}", '{"version": NaN}']
)
def test_what_is_no_document_of_a_plan_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="plan"):
        Plan.from_json(text)


def test_a_plan_comes_back_as_it_was(saved: str) -> None:
    made = Plan.from_json(saved)
    assert json.loads(made.to_json()) == json.loads(saved)
    assert Plan.from_json(made.to_json()) == made


def test_the_sum_of_a_budget_is_in_it_and_checked() -> None:
    budget = Budget("ram", weights=5, kv=4, compute=3, limit=100, expert_cache=2, overhead=1)
    assert budget.total == 15
    with pytest.raises(ValueError, match="sum"):
        Budget("ram", 5, 4, 3, 100, total=11)
