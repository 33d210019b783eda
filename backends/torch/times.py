"""Knows no layer's mathematics: what steps spent and read, by the terms of a plan.

A stopwatch says which kind of work a time went to, the layer it happened in says on which memory.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch

from localrun.backends.torch.clock import Mark, Stopwatch, Term, unmeasured
from localrun.backends.torch.tiers.use import CARD, RAM
from localrun.engine.runner import ExpertUse
from localrun.plan.plan import Execution
from localrun.plan.terms import DENSE, DISK, ENGRAM, EXPERTS, KV, term

_KINDS: Final[Mapping[Term, str]] = {"rows": KV, "index": KV, "engram": ENGRAM, "experts": EXPERTS}


@dataclass(frozen=True, slots=True)
class Tiers:
    """Which memory holds what: the layers from ``first`` on lie on the card, and the head with
    them; without a card ``first`` is beyond them all."""

    layers: int
    first: int
    head: str
    kv: str
    """Where layers of the card keep rows."""

    @classmethod
    def of(cls, told: Execution, layers: int) -> Tiers:
        """The head counts as one more layer in ``gpu_layers``."""
        if not told.gpu_layers:
            return cls(layers, layers, RAM, RAM)
        first = max(0, layers + 1 - told.gpu_layers)
        return cls(layers, first, CARD, CARD if told.kv_on_device else RAM)

    def layer(self, number: int) -> str:
        return CARD if number >= self.first else RAM

    def rows(self, number: int) -> str:
        """Of a layer's cache."""
        return self.kv if number >= self.first else RAM


class Times:
    """Seconds since the load. On a card nothing is measured: every mark would wait for it."""

    def __init__(self, tiers: Tiers, device: torch.device) -> None:
        self._tiers = tiers
        self._clock = Stopwatch(device) if device.type == "cpu" else None
        self._seconds: dict[str, float] = defaultdict(float)

    @property
    def mark(self) -> Mark:
        return unmeasured if self._clock is None else self._clock.mark

    def begin(self) -> None:
        """Right before a step."""
        if self._clock is not None:
            self._clock.restart()

    def passed(self, number: int) -> None:
        """What was marked since the last call belongs to layer ``number``, -1 the embedding."""
        tiers = self._tiers
        tier, rows = (tiers.layer(number), tiers.rows(number)) if number >= 0 else (RAM, RAM)
        self._take(tier, rows)

    def end(self) -> None:
        """What was marked since the last layer belongs to the head."""
        self._take(self._tiers.head, self._tiers.head)

    def _take(self, tier: str, rows: str) -> None:
        if self._clock is None:
            return
        for name, seconds in self._clock.take().items():
            kind = _KINDS.get(name, DENSE)
            where = rows if kind == KV else tier
            self._seconds[ENGRAM if kind == ENGRAM else term(where, kind)] += seconds

    def terms(self, experts: Mapping[str, ExpertUse], waited_for_rows: float) -> dict[str, float]:
        """By term. Of a store's layers ``experts`` says what computing and waiting took; the rest
        of their time, and what joins rows of tables, is that of any other weights of the layer."""
        found = dict(self._seconds)
        if experts:
            for tier in (RAM, CARD):
                whole = found.pop(term(tier, EXPERTS), 0.0)
                if whole:
                    found[term(tier, DENSE)] = found.get(term(tier, DENSE), 0.0) + whole
            for tier, use in experts.items():
                if use.seconds:
                    found[DISK if tier == DISK else term(tier, EXPERTS)] = use.seconds
            base = term(self._tiers.layer(self._tiers.layers - 1), DENSE)
            found[base] = found.get(base, 0.0) - sum(use.seconds for use in experts.values())
        if ENGRAM in found:
            base = term(self._tiers.layer(0), DENSE)
            joined = max(0.0, found[ENGRAM] - waited_for_rows)
            found[ENGRAM] -= joined
            found[base] = found.get(base, 0.0) + joined
        return found
