"""Models planned beside each other, and two of them in real children under a small limit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from localrun.backends import registry
from localrun.chat.messages import Message, ReplyOptions
from localrun.cli import beside
from localrun.cli.beside import Beside, plan_together, promised
from localrun.config import Settings
from localrun.errors import DoesNotFitError, MemoryInUseError
from localrun.hardware.machine import Machine
from localrun.hardware.profiles import named
from localrun.plan.plan import Plan, PlanRequest
from localrun.server.provider import LoadingProvider
from localrun.server.room import Holding
from tests.engine_child import LOADER, importable

__all__ = ["importable"]
MIB = 1 << 20
CPU = "cpu:8+ddr5-5600x2:64+nvme4"
CARD = "rtx-4090+ddr5-6000x2:128+nvme4"


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Machine]:
    """Let this machine be one by name, with ``usable`` bytes of its memories where given."""

    def choose(name: str, **usable: int) -> Machine:
        machine = named(name)
        tiers = tuple(
            replace(tier, usable_bytes=usable.get(tier.kind, tier.usable_bytes))
            for tier in machine.tiers
        )
        machine = replace(machine, tiers=tiers)
        monkeypatch.setattr(beside, "this_machine", lambda here: (machine, None))
        return machine

    return choose


@pytest.fixture
def pair(smollm2_path: Path, tmp_path: Path) -> tuple[str, str]:
    """The same model under two names."""
    names = tuple(str(tmp_path / f"{name}.gguf") for name in "ab")
    for name in names:
        Path(name).symlink_to(smollm2_path)
    return names  # type: ignore[return-value]  # of two


def holding(plan: Plan) -> Holding:
    held = promised(plan)
    return Holding(held, held)


def total(plan: Plan) -> int:
    return sum(promised(plan).values())


def made(ref: str, here: Settings, held: list[Holding], **asked: Any) -> Plan:
    squeezed = asked.pop("squeezed", False)
    candidate = Beside(ref, PlanRequest(**asked), here)
    return candidate.planned(held, held, squeezed=squeezed).plan


def test_disk_is_no_memory_that_a_plan_holds(smollm2_path: Path, here: Settings, on: Any) -> None:
    on(CPU)
    plan = made(str(smollm2_path), here, [])

    assert set(promised(plan)) == {"ram"}
    assert promised(plan)["ram"] == plan.budgets[0].total


def test_beside_another_a_model_keeps_its_context_and_both_fit_the_limit(
    pair: tuple[str, str], here: Settings, on: Any
) -> None:
    on(CPU)
    limit = 1200 * MIB
    first = made(pair[0], here, [], ram_bytes=limit)
    second = made(pair[1], here, [holding(first)], ram_bytes=limit)

    assert second.execution.n_ctx == first.execution.n_ctx
    assert total(first) + total(second) <= limit


def test_without_a_limit_the_memory_of_the_machine_is_shared(
    pair: tuple[str, str], here: Settings, on: Any
) -> None:
    # Weights that the first maps stay available; what it took is gone.
    usable = 1200 * MIB
    on(CPU, ram=usable)
    first = made(pair[0], here, [])
    mapped = Holding(promised(first), {"ram": 0})
    second = made(pair[1], here, [mapped])
    on(CPU, ram=usable - total(first))
    again = made(pair[1], here, [holding(first)])

    assert total(first) + total(second) <= usable
    assert again.budgets == second.budgets


def test_a_smaller_context_is_for_those_who_are_squeezed(
    pair: tuple[str, str], here: Settings, on: Any
) -> None:
    on(CPU)
    limit = 500 * MIB
    first = made(pair[0], here, [], ram_bytes=limit)
    busy = [Holding({"ram": 300 * MIB}, {"ram": 300 * MIB})]

    with pytest.raises(DoesNotFitError):
        made(pair[1], here, busy, ram_bytes=limit)
    squeezed = made(pair[1], here, busy, ram_bytes=limit, squeezed=True)

    assert squeezed.execution.n_ctx < first.execution.n_ctx
    assert total(squeezed) <= 200 * MIB
    with pytest.raises(DoesNotFitError):
        made(pair[1], here, busy, ram_bytes=limit, n_ctx=first.execution.n_ctx, squeezed=True)


def test_a_card_that_is_full_leaves_the_next_model_to_the_processor(
    pair: tuple[str, str], here: Settings, on: Any
) -> None:
    on(CARD)
    first = made(pair[0], here, [], vram_bytes=1200 * MIB)
    second = made(pair[1], here, [holding(first)], vram_bytes=1200 * MIB)

    assert promised(first)["vram:0"] > 0
    assert promised(first)["vram:0"] + promised(second).get("vram:0", 0) <= 1200 * MIB
    assert promised(second)["ram"] > promised(first)["ram"]


def test_models_of_one_command_line_must_fit_together(
    pair: tuple[str, str], here: Settings, on: Any
) -> None:
    on(CPU)
    plan_together(pair, PlanRequest(ram_bytes=1200 * MIB), here)
    plan_together(pair[:1], PlanRequest(ram_bytes=200 * MIB), here)

    with pytest.raises(DoesNotFitError) as refused:
        plan_together(pair, PlanRequest(ram_bytes=200 * MIB), here)
    assert f"{pair[0]} would be loaded too" in refused.value.message
    assert refused.value.shortfall["ram"] > 0
    with pytest.raises(DoesNotFitError) as alone:
        plan_together(pair, PlanRequest(ram_bytes=20 * MIB), here)
    assert "would be loaded too" not in alone.value.message


def children() -> set[int]:
    """Engines under this process; Python's own resource tracker is none."""
    return {
        child.pid
        for child in psutil.Process().children()
        if "localrun.cli.worker" in " ".join(child.cmdline())
    }


@pytest.mark.usefixtures("importable")
async def test_two_children_under_a_limit_for_one_take_turns_and_really_end(
    pair: tuple[str, str], here: Settings, on: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(CPU)
    monkeypatch.setattr(registry, "loader", lambda name: LOADER)
    request = PlanRequest(ram_bytes=500 * MIB)
    provider = LoadingProvider(
        lambda name: Beside(name, request, here), cards=list, keep_alive_s=None, wait_s=0.0
    )
    first, second = pair

    async def ask(name: str) -> str:
        async with provider.lease(name) as model:
            events = model.reply([Message("user", "hi")], ReplyOptions(max_tokens=1000))
            return "".join([event.text async for event in events])

    try:
        # The mock model says the reference that its plan was made for.
        assert await ask(first) == first
        before = children()
        assert len(before) == 1
        assert await ask(second) == second
        after = children()
        assert len(after) == 1
        assert not before & after
        async with provider.lease(second):
            with pytest.raises(MemoryInUseError, match=r"b\.gguf holds 0\.\d\d GiB of ram"):
                await ask(first)
        assert children() == after
        assert await ask(first) == first
    finally:
        await provider.close()
    assert children() == set()
