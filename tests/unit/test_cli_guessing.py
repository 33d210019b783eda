"""From ``--draft`` and ``--speculation`` to an engine that guesses, in its process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from localrun.backends import registry
from localrun.cli import loading
from localrun.cli.app import execute
from localrun.cli.guessing import Guessing, guessing, with_guesses
from localrun.cli.loading import Prepared, open_process, prepare, promised, replan
from localrun.cli.worker import make_drafting
from localrun.config import Settings
from localrun.engine.drafting.lookup import PromptLookup
from localrun.engine.drafting.speculation import Both
from localrun.engine.options import DraftModel, EngineOptions
from localrun.engine.process.engine_process import EngineProcess
from localrun.errors import DoesNotFitError, OutOfMemoryError, UsageError
from localrun.hardware.profiles import named
from localrun.plan.plan import PlanRequest
from tests.engine_child import LOADER, importable, plan, request
from tests.mock_runner import MockRunner
from tests.refusing_loader import LOADER as RECORDING
from tests.refusing_loader import loads

__all__ = ["importable"]
MIB = 1 << 20
CPU = "cpu:8+ddr5-5600x2:64+nvme4"


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let this machine have so many bytes of memory."""

    def choose(usable: int) -> None:
        machine = named(CPU)
        tiers = tuple(
            replace(tier, usable_bytes=usable if tier.kind == "ram" else tier.usable_bytes)
            for tier in machine.tiers
        )
        monkeypatch.setattr(
            loading, "this_machine", lambda here: (replace(machine, tiers=tiers), None)
        )

    return choose


def both(path: Path, here: Settings, **asked: Any) -> Prepared:
    return with_guesses(
        prepare(str(path), PlanRequest(**asked), here), Guessing(draft=str(path)), here
    )


def test_the_draft_model_is_planned_for_what_the_model_leaves(
    smollm2_path: Path, here: Settings, on: Callable[[int], None]
) -> None:
    on(1000 * MIB)
    prepared = both(smollm2_path, here, n_ctx=2048, parallel=2, threads=3)

    assert prepared.draft is not None
    execution = prepared.draft.plan.execution
    assert (execution.n_ctx, execution.parallel, execution.threads) == (2048, 2, 3)
    assert promised(*prepared.plans)["ram"] == sum(
        budget.total for made in prepared.plans for budget in made.budgets if budget.tier == "ram"
    )
    assert promised(*prepared.plans)["ram"] <= 1000 * MIB


def test_a_limit_is_one_for_both_models(
    smollm2_path: Path, here: Settings, on: Callable[[int], None]
) -> None:
    on(64 << 30)
    prepared = both(smollm2_path, here, n_ctx=1024, ram_bytes=700 * MIB)

    assert promised(*prepared.plans)["ram"] <= 700 * MIB


def test_a_draft_model_that_does_not_fit_beside_the_model_is_refused_by_its_flag(
    smollm2_path: Path, here: Settings, on: Callable[[int], None]
) -> None:
    on(64 << 30)
    alone = promised(prepare(str(smollm2_path), PlanRequest(n_ctx=1024), here).plan)["ram"]
    on(alone + 20 * MIB)

    with pytest.raises(DoesNotFitError, match=r"--draft .*beside") as raised:
        both(smollm2_path, here, n_ctx=1024)

    assert raised.value.exit_code == 4
    assert raised.value.shortfall["ram"] > 0


def test_no_draft_model_beside_no_speculation() -> None:
    with pytest.raises(UsageError, match="--speculation off"):
        guessing("off", "smollm2")

    assert guessing("off", None) == Guessing(on=False)
    assert guessing("auto", "smollm2") == Guessing(draft="smollm2")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["serve", "--port", "auto", "--draft", "smollm2"], 2, "--draft smollm2"),
        (["serve", "--port", "auto", "--speculation", "sometimes"], 2, "--speculation"),
        (
            ["serve", "smollm2", "--port", "auto", "--draft", "x", "--speculation", "off"],
            2,
            "--draft x",
        ),
    ],
)
def test_flags_that_cannot_be_meant_are_refused(
    home: Path,
    arguments: list[str],
    code: int,
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert execute(arguments) == code
    assert words in capsys.readouterr().err


def test_a_draft_model_that_is_not_here_is_named(
    smollm2_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(["serve", str(smollm2_path), "--port", "auto", "--draft", "org/absent"]) == 3
    assert "org/absent" in capsys.readouterr().err


async def test_both_models_are_loaded_in_the_child_as_they_were_planned(
    smollm2_path: Path,
    here: Settings,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    request.getfixturevalue("importable")
    record = home / "record"
    record.touch()
    monkeypatch.setenv("RECORD", str(record))
    monkeypatch.setattr(registry, "loader", lambda name: RECORDING)
    prepared = both(smollm2_path, here, n_ctx=512)

    client, _ = await open_process(prepared)
    await client.close()

    assert loads(record) == [json.loads(made.to_json())["execution"] for made in prepared.plans]


def test_a_plan_made_again_keeps_the_model_that_guesses(
    smollm2_path: Path, here: Settings, on: Callable[[int], None]
) -> None:
    on(64 << 30)
    prepared = replace(both(smollm2_path, here), speculation=True)
    error = OutOfMemoryError("no memory", tier="ram", needed_bytes=0, held_bytes=0)

    smaller = replan(prepared, error)

    assert smaller.draft == prepared.draft
    assert smaller.plan != prepared.plan


def test_what_guesses_is_what_the_options_say() -> None:
    draft = DraftModel(plan("mock:echo"), LOADER)

    assert make_drafting(EngineOptions(speculation=False)) is None
    assert make_drafting(EngineOptions(speculation=False, draft=draft)) is None
    assert isinstance(make_drafting(EngineOptions()), PromptLookup)
    made = make_drafting(EngineOptions(draft=draft))
    assert isinstance(made, Both)
    made.close()


@pytest.mark.usefixtures("importable")
@pytest.mark.parametrize(
    "options",
    [
        EngineOptions(speculation=False),
        EngineOptions(),
        EngineOptions(draft=DraftModel(plan("mock:echo"), LOADER)),
        EngineOptions(draft=DraftModel(plan("mock:error"), LOADER)),
    ],
    ids=["nothing", "text", "model", "failing model"],
)
async def test_an_engine_in_its_process_says_the_same_whoever_guesses(
    options: EngineOptions,
) -> None:
    said = "one sentence twice, one sentence twice"
    engine = await EngineProcess.start(
        plan("mock:echo"), loader=LOADER, chat_template=None, options=options
    )
    try:
        events = [event async for event in engine.generate(request(said))]
    finally:
        await engine.close()

    assert "".join(event.text for event in events) == said


def other_vocabulary(plan: Any) -> MockRunner:
    """A loader whose model has more tokens than its target has."""
    return MockRunner("", vocabulary_size=900)


@pytest.mark.usefixtures("importable")
async def test_a_draft_model_of_another_family_is_a_usage_error_of_the_load() -> None:
    draft = DraftModel(plan("mock:echo"), "tests.unit.test_cli_guessing:other_vocabulary")

    with pytest.raises(UsageError, match=r"--draft: .* 900 tokens") as raised:
        await EngineProcess.start(
            plan("mock:echo"),
            loader=LOADER,
            chat_template=None,
            options=EngineOptions(draft=draft),
        )

    assert raised.value.exit_code == 2
