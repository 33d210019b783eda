"""Knows no file's content: which model and which kind of plan a figure holds for."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from typing import Final

from localrun.hardware.machine import Machine
from localrun.plan.plan import Plan, PlannedModel

# Counts changes of what is predicted of the same figures: ratios to what an older version would
# have said correct nothing.
_PREDICTIONS: Final = 3


@dataclass(frozen=True, slots=True)
class Identity:
    """A model: the same reference may hold other bytes tomorrow."""

    ref: str
    total_bytes: int
    quantization: str

    @property
    def stem(self) -> str:
        """How its files' names begin, whatever the reference holds."""
        text = f"{self.ref}\0{self.total_bytes}\0{self.quantization}"
        # The hash keeps apart what the slug would merge.
        slug = re.sub(r"[^a-z0-9]+", "-", self.ref.lower()).strip("-")[-60:].strip("-")
        digest = hashlib.sha256(text.encode()).hexdigest()
        return f"{slug or 'model'}-{digest[:16]}"


def identity_of(model: PlannedModel) -> Identity:
    # A path of bytes that are no text is one no JSON can hold.
    ref = model.ref.encode("utf-8", "backslashreplace").decode()
    return Identity(ref, model.total_bytes, model.quantization)


@dataclass(frozen=True, slots=True)
class Kind:
    """Plans whose predictions err alike. ``tiers`` are those that hold something, each with what
    its speed rests on: figures that were measured err otherwise than a data sheet's. ``figures``
    are those of the machine, hashed: measured anew, they err anew."""

    backend: str
    numerics: str
    threads: int
    streams: bool
    tiers: tuple[str, ...]
    figures: str


def kind_of(plan: Plan, machine: Machine) -> Kind:
    """What is learned of ``plan`` on ``machine``, whose figures it was predicted by."""
    told = plan.execution
    used = {budget.tier for budget in plan.budgets if budget.total}
    return Kind(
        plan.backend,
        told.numerics,
        told.threads,
        told.streams,
        tuple(
            sorted(f"{each.tier} {each.basis}" for each in plan.machine.tiers if each.tier in used)
        ),
        _figures(plan, machine),
    )


def _figures(plan: Plan, machine: Machine) -> str:
    speeds = [(each.name, each.read, each.flops, each.link) for each in machine.tiers]
    # Of a disk that is said to be faster than it is nothing is learned for those that are not.
    told = plan.request.disk_read, len(plan.request.mirrors)
    known = (_PREDICTIONS, speeds, machine.compute, machine.disk_reads, told)
    text = json.dumps(known, default=asdict, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
