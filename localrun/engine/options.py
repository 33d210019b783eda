"""Knows no process and no scheduling: how an engine is to work, beside the plan it executes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from localrun.plan.plan import Plan

STATE_BUDGET_BYTES = 2 * 1024**3


@dataclass(frozen=True, slots=True)
class DraftModel:
    """A second, smaller model that guesses ahead; ``loader`` as in ``EngineProcess.start``."""

    plan: Plan
    loader: str


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What a user may choose of an engine.

    state_folder: where the states of long prefixes are kept across restarts; None keeps none.
    state_budget_bytes: most that they take there.
    speculation: whether tokens may be guessed ahead at all.
    draft: the model that guesses; None looks into the text alone.
    """

    state_folder: Path | None = None
    state_budget_bytes: int = STATE_BUDGET_BYTES
    speculation: bool = True
    draft: DraftModel | None = None
