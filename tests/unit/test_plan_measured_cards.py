"""What a card's own products were measured to do counts as it is: no share is taken of it again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from localrun.hardware.machine import Machine, Speed, Tier
from localrun.hardware.profiles import named
from localrun.plan.constants import FITTED
from localrun.plan.engines import engine
from localrun.plan.plan import PlanRequest
from localrun.plan.predict import chunk_terms, host_rate, token_terms
from localrun.plan.rooms import SIMULATED, rooms
from localrun.plan.stack import Weights
from localrun.plan.work import Chunk, Share, Token

MACHINES = {"vram": "rtx-4090+ddr5-6000x2:64+nvme4", "unified": "m1-16"}
ENGINE = engine("llama.cpp")


def card(machine: Machine) -> Tier:
    return machine.tiers[0]


def with_card(machine: Machine, tier: Tier) -> Machine:
    return replace(machine, tiers=(tier, *machine.tiers[1:]))


def terms(machine: Machine) -> tuple[dict[str, float], dict[str, float]]:
    """Of a token that reads 2 GB of wide and 6 GB of packed weights and 1 GB of keys and values,
    and of 512 tokens of prompt through 13 G parameters."""
    found, name = rooms(machine, PlanRequest(), ENGINE, device=True), card(machine).name
    share = Share(name, Weights(wide=2e9, packed=6e9, parameters=13e9), kv=1e9, layers=1)
    token = Token((share,), None, 0, 0.0, 0.0, 0, 0, 0, 0, False)
    chunk = Chunk(512, (13e9,), (8e9,), 0.0, 0.0, 0.0, 0, 0.0, 0.0)
    return (
        dict(token_terms(token, found, ENGINE, FITTED).parts),
        dict(chunk_terms(chunk, found, ENGINE, FITTED).parts),
    )


@pytest.mark.parametrize("kind", MACHINES)
def test_a_measured_card_reads_and_multiplies_at_what_was_measured(kind: str) -> None:
    machine = named(MACHINES[kind])
    tier = replace(
        card(machine), read=Speed(100.0, "measured", "x"), flops=Speed(10.0, "measured", "x")
    )

    token, chunk = terms(with_card(machine, tier))

    assert token[f"{tier.name} dense"] == pytest.approx(80.0)
    assert token[f"{tier.name} kv"] == pytest.approx(10.0)
    assert chunk[tier.name] == pytest.approx(512 * 2 * 13e9 / 10e12 * 1e3)


@pytest.mark.parametrize("kind", MACHINES)
def test_of_a_data_sheets_figures_a_card_gets_its_share(kind: str) -> None:
    machine = named(MACHINES[kind])
    tier = card(machine)
    sheet = replace(tier, read=Speed(100.0, "specified"), flops=Speed(10.0, "specified"))

    token, chunk = terms(with_card(machine, sheet))

    assert token[f"{tier.name} dense"] > 80.0 / 0.9
    assert token[f"{tier.name} kv"] > 10.0 / 0.9
    assert chunk[tier.name] > 512 * 2 * 13e9 / 10e12 * 1e3 / 0.9


def test_a_card_that_is_simulated_computes_as_its_host_does() -> None:
    machine = named(MACHINES["vram"])
    tier = replace(card(machine), read=Speed(100.0, "measured", "x"), device=SIMULATED)
    ram = machine.tier("ram")
    assert ram is not None

    token, _ = terms(with_card(machine, tier))

    rate = host_rate(ram, machine.compute, ENGINE, FITTED)
    assert token[f"{tier.name} dense"] == pytest.approx(8e3 / rate)
    assert token[f"{tier.name} kv"] == pytest.approx(1e3 / rate)
