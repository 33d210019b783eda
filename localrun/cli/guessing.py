"""Knows no scheduler: what the user wants guessed ahead, and by which model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from localrun.cli.loading import Prepared, find, planned, promised
from localrun.cli.lookup import described
from localrun.config import Settings
from localrun.errors import DoesNotFitError, UsageError
from localrun.plan.plan import PlanRequest


@dataclass(frozen=True, slots=True)
class Guessing:
    """``on`` False guesses nothing; ``draft`` is the reference of a model that does, beside the
    text itself."""

    on: bool = True
    draft: str | None = None


def guessing(speculation: Literal["auto", "off"], draft: str | None) -> Guessing:
    """Raises UsageError where a model is to guess and nothing is to be guessed."""
    if speculation == "off" and draft is not None:
        raise UsageError(
            f"--draft {draft}: nothing is guessed with --speculation off",
            hint="leave one of the two out",
        )
    return Guessing(speculation == "auto", draft)


def with_guesses(prepared: Prepared, wanted: Guessing, here: Settings) -> Prepared:
    """``prepared``, and the model that guesses for it planned for the memory it leaves.

    Raises:
        ModelNotFoundError, HeaderError, PlanError: as ``prepare``, for the model that guesses.
        DoesNotFitError: both do not fit together.
    """
    if wanted.draft is None:
        return replace(prepared, speculation=wanted.on)
    found = described(find(wanted.draft, here))
    held = promised(prepared.plan)
    tiers = tuple(
        replace(tier, usable_bytes=max(0, tier.usable_bytes - held.get(tier.name, 0)))
        for tier in prepared.machine.tiers
    )
    execution = prepared.plan.execution
    asked = prepared.request or PlanRequest()
    request = PlanRequest(
        # As long as the model's, up to what this one was trained for: beyond it guesses nothing.
        n_ctx=min(execution.n_ctx, found.spec.n_ctx_train or execution.n_ctx),
        threads=execution.threads,
        parallel=execution.parallel,
        ram_bytes=_less(asked.ram_bytes, held.get("ram", 0) + held.get("unified", 0)),
        vram_bytes=_less(asked.vram_bytes, _fullest_card(held)),
    )
    try:
        draft = planned(found, request, replace(prepared.machine, tiers=tiers))
    except DoesNotFitError as error:
        raise DoesNotFitError(
            f"--draft {wanted.draft}: {error.message}, beside {prepared.plan.ref}",
            hint="lower --ctx, take a smaller one, or leave --draft out",
            shortfall=error.shortfall,
        ) from error
    return replace(prepared, draft=draft)


def _fullest_card(held: dict[str, int]) -> int:
    """``--vram`` is one limit for each card."""
    return max((size for tier, size in held.items() if tier.startswith("vram")), default=0)


def _less(limit: int | None, held: int) -> int | None:
    return None if limit is None else max(0, limit - held)
