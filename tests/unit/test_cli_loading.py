"""From a plan to a running engine: executed as it stands, planned again where memory was short."""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from localrun.backends import registry
from localrun.cli import loading, machines
from localrun.cli.loading import Prepared, open_chat, open_process, prepare, replan
from localrun.cli.plan_view import one_line
from localrun.cli.saved_plans import prepare_saved
from localrun.errors import OutOfMemoryError
from localrun.hardware.profiles import named
from localrun.plan.plan import Plan, PlanRequest
from tests.engine_child import importable
from tests.refusing_loader import LOADER, loads

__all__ = ["importable"]
MIB = 1 << 20


@pytest.fixture
def record(home: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where loads are written down; every backend is the mock model."""
    request.getfixturevalue("importable")
    path = home / "record"
    path.touch()
    monkeypatch.setenv("RECORD", str(path))
    monkeypatch.setattr(registry, "loader", lambda name: LOADER)
    return path


@pytest.fixture
def refused(record: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let so many loads find no memory for their largest buffer."""

    def set_refused(count: int) -> None:
        monkeypatch.setenv("REFUSED", str(count))
        monkeypatch.setenv("HELD", str(300 * MIB))
        monkeypatch.setenv("NEEDED", str(200 * MIB))

    return set_refused


def prepared(path: Path, **asked: Any) -> Prepared:
    return prepare(str(path), PlanRequest(**asked))


def total(plan: Plan) -> int:
    return next(budget.total for budget in plan.budgets if budget.tier == "ram")


async def test_a_load_without_memory_is_planned_again_once_and_said_in_one_line(
    smollm2_path: Path, record: Path, refused: Callable[[int], None]
) -> None:
    refused(1)
    first = prepared(smollm2_path)
    said: list[str] = []

    client, plan = await open_process(first, said.append)
    await client.close()

    before, after = loads(record)
    assert before == json.loads(first.plan.to_json())["execution"]
    assert after == json.loads(plan.to_json())["execution"]
    assert total(plan) <= 400 * MIB < total(first.plan)
    [line] = said
    assert line.startswith("the library did not get its memory; planned again: ")
    assert f"ubatch {before['ubatch']} → {after['ubatch']}" in line


async def test_a_second_failure_is_the_error(
    smollm2_path: Path, record: Path, refused: Callable[[int], None]
) -> None:
    refused(2)
    said: list[str] = []

    with pytest.raises(OutOfMemoryError) as raised:
        await open_process(prepared(smollm2_path), said.append)

    assert raised.value.exit_code == 4
    assert len(loads(record)) == 2
    assert len(said) == 1


async def test_a_saved_plan_is_executed_exactly_or_not_at_all(
    smollm2_path: Path, record: Path, refused: Callable[[int], None], tmp_path: Path
) -> None:
    asked = PlanRequest(n_ctx=700, kv_type="q4_0", threads=1, ubatch=64)
    made = prepare(str(smollm2_path), asked).plan
    path = tmp_path / "plan.json"
    path.write_text(made.to_json())
    saved = prepare_saved(str(smollm2_path), path)

    client, plan = await open_process(saved)
    info = client.info
    await client.close()

    assert loads(record) == [json.loads(json.dumps(asdict(made.execution)))]
    assert plan.execution == made.execution
    assert (info.n_ctx, plan.execution.ubatch, plan.execution.kv_type) == (700, 64, "q4_0")

    refused(9)
    with pytest.raises(OutOfMemoryError):
        await open_process(saved)
    assert len(loads(record)) == 2


async def test_a_screen_is_told_and_not_the_terminal_beneath_it(
    smollm2_path: Path,
    record: Path,
    refused: Callable[[int], None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    refused(1)
    said: list[str] = []

    model = await open_chat(prepared(smollm2_path), said.append)
    await model.close()

    assert len(said) == 1
    assert capfd.readouterr().err == ""


def test_a_plan_that_cannot_become_smaller_leaves_the_error_as_it_was(
    smollm2_path: Path, home: Path
) -> None:
    short = OutOfMemoryError("none", tier="ram", needed_bytes=10, held_bytes=5)

    with pytest.raises(OutOfMemoryError) as raised:
        replan(prepared(smollm2_path), short)

    assert raised.value is short


@pytest.mark.parametrize("tier", ["ram", "vram:0"])
def test_one_memory_for_all_is_planned_again_whatever_the_library_calls_it(
    tier: str, smollm2_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mac = named("m4-max-128")
    monkeypatch.setattr(loading, "this_machine", lambda here: (mac, None))
    first = prepared(smollm2_path, n_ctx=8192)
    assert [budget.tier for budget in first.plan.budgets] == ["unified"]

    again = replan(first, OutOfMemoryError("none", tier=tier, needed_bytes=MIB, held_bytes=MIB))

    assert again.request is not None
    assert again.request.ram_bytes == first.plan.budgets[0].total * 7 // 8
    assert again.plan.budgets[0].total <= again.request.ram_bytes


def test_a_tier_that_nothing_was_planned_on_is_not_planned_again(
    smollm2_path: Path, home: Path
) -> None:
    with pytest.raises(OutOfMemoryError, match="none"):
        replan(prepared(smollm2_path), OutOfMemoryError("none", tier="vram:3"))


def test_chat_opens_with_the_plan_in_one_line(
    smollm2_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncio

    from localrun.cli.app import execute
    from localrun.tui import app as tui

    said: list[str] = []

    class Screen:
        def __init__(
            self, *, open_model: Callable[[str], Awaitable[Any]], model_ref: str, **rest: Any
        ) -> None:
            self._opened = open_model(model_ref)

        def say(self, message: str) -> None:
            said.append(message)

        def run(self) -> None:
            async def once() -> None:
                await (await self._opened).close()  # type: ignore[attr-defined]  # a chat model

            asyncio.run(once())

    monkeypatch.setattr(tui, "ChatApp", Screen)
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)

    assert execute(["chat", str(smollm2_path), "--ctx", "512", "--ram", "4GiB"]) == 0

    [line] = said
    assert line == one_line(prepared(smollm2_path, n_ctx=512, ram_bytes=4 << 30).plan)
    assert "of 4.0 GiB · context 512 · " in line


def test_a_machine_is_probed_once_for_a_plan(
    smollm2_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probes: list[Any] = []
    probed = machines.probed
    monkeypatch.setattr(
        machines, "probed", lambda *places: probes.append(places) or probed(*places)
    )

    prepare(str(smollm2_path), PlanRequest())

    assert len(probes) == 1
