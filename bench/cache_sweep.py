"""How often an expert is found in a cache of so many places a layer: planned beside counted.

    python bench/cache_sweep.py [--tokens N] [--layers N] [--json]

A synthetic router picks the experts of DeepSeek-V4.1-Flash as ``plan/hits.py`` assumes it, unevenly
by i^-s, each layer with an order of its own. The picks go through the expert store that models run
with, from half a token's picks to all experts; only bytes are missing. Then both cliffs. The lower
is where one place fewer costs most, as a token's own picks push each other out. The upper is where
a cache passes what memory keeps: how many places plans of that model give a layer under limits, and
how many would pass them. Exit code 1 where the planned curve is more than 5 points (root mean
square) off the counted one, or a cliff more than one place.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import count, pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from localrun.backends.torch.tiers.store import ExpertStore
from localrun.disk.reader import Requests
from localrun.disk.staged import Stage
from localrun.errors import DoesNotFitError
from localrun.formats.extent import Extent
from localrun.hardware.profiles import named
from localrun.models.describe import describe_config
from localrun.models.geometries import geometry
from localrun.plan.constants import GIB
from localrun.plan.hits import hit_rate
from localrun.plan.plan import Plan, PlanRequest
from localrun.plan.planner import plan
from localrun.plan.search import Candidate, Source

EXPERTS, USED = 384, 6
SKEWS = (0.9, 1.3)
PLACES = (3, 4, 5, 6, 7, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 320, 384)
MOST_OFF = 0.05
MACHINE = "cpu:16+ddr5-5600x2:128+nvme4"
LIMITS_GIB = (32, 48, 64, 96)


class NoDisk:
    """A reader whose reads have ended when they begin."""

    bytes_read, busy, done, seconds = 0, False, True, 0.0

    def begin(self, requests: Requests, into: NDArray[np.uint8], *, ahead: bool = False) -> NoDisk:
        return self

    def wait(self, check: Callable[[], None] = lambda: None) -> None:
        """They have."""

    def leave(self) -> None:
        """They have."""

    def close(self) -> None:
        """There is nothing."""


@dataclass(frozen=True)
class NoBytes:
    """Slots in which nothing lies and whose products are nothing."""

    name: str
    slots: int
    count: int = EXPERTS
    slot_nbytes: int = 1
    read_nbytes: int = 1

    def extents(self, expert: int) -> tuple[Extent, ...]:
        return (Extent(0, expert, 1),)

    def fill(self, slot: int, expert: int) -> None:
        """Nothing."""

    def __call__(self, x: Tensor, slots: Tensor, weights: Tensor, tokens: int) -> Tensor:
        return x.new_zeros((*slots.shape, 1))

    def release(self, first: int) -> int:
        return 0

    def close(self) -> None:
        """There is nothing."""


@dataclass(frozen=True)
class Point:
    skew: float
    places: int
    planned: float
    counted: float


@dataclass(frozen=True)
class Limit:
    """Of a plan under ``gib`` of memory: places of a layer, and how many would pass the limit."""

    gib: int
    places: int
    passing: int


def drawn(skew: float, tokens: int, seed: int) -> NDArray[np.int64]:
    """``[tokens, USED]``: experts drawn one by one as often as i^-s says, until so many are."""
    source = np.random.default_rng(seed)
    order = source.permutation(EXPERTS)
    # The largest of these are what drawing without putting back gives.
    keys = -skew * np.log(np.arange(1, EXPERTS + 1)) + source.gumbel(size=(tokens, EXPERTS))
    return np.asarray(order[np.argsort(-keys, axis=1)[:, :USED]])


def counted(places: int, picks: list[NDArray[np.int64]], cold: int) -> float:
    """The share of picks that a store finds, once ``cold`` tokens have filled it."""
    store = ExpertStore(
        NoDisk(), Stage(), slots=places, card_slots=0, staging_bytes=USED << 13, workers=1
    )
    with closing(store):
        slots = [NoBytes(f"layers.{at}.", store.places(EXPERTS)) for at in range(len(picks))]
        layers = [store.layer(each, USED) for each in slots]
        x, weights, ids = torch.zeros((1, 1)), torch.zeros((1, USED)), torch.zeros(1)
        before = 0
        for token in range(len(picks[0])):
            if token == cold:
                before = found(store)
            for layer, own in zip(layers, picks, strict=True):
                layer.begin(x, torch.from_numpy(own[token : token + 1]), weights, ids)()
        return (found(store) - before) / (len(layers) * USED * (len(picks[0]) - cold))


def found(store: ExpertStore) -> int:
    use = store.stats().experts.get("ram")
    return use.picks if use else 0


def swept(tokens: int, layers: int) -> list[Point]:
    made = []
    for skew in SKEWS:
        picks = [drawn(skew, 2 * tokens, seed) for seed in range(layers)]
        for places in PLACES:
            planned = hit_rate(places, EXPERTS, USED, skew)
            made.append(Point(skew, places, planned, counted(places, picks, tokens)))
    return made


def off(points: list[Point]) -> float:
    return math.sqrt(sum((each.planned - each.counted) ** 2 for each in points) / len(points))


def planned_under(gib: int) -> Limit | None:
    """None where the model does not fit."""
    spec = describe_config(geometry("deepseek-v4.1-flash"))
    source = Source("a model", (), (Candidate("torch", "for its experts", False),))
    try:
        made = plan(spec, named(MACHINE), PlanRequest(ram_bytes=gib * GIB, vram_bytes=0), source)
    except DoesNotFitError:
        return None
    return Limit(gib, made.execution.slots_per_layer, _passing(made))


def _passing(made: Plan) -> int:
    """How many places of each layer are more than the host's memory holds."""
    budget = next(each for each in made.budgets if each.tier == "ram")
    kept = made.execution.slots_per_layer
    one = budget.expert_cache / max(1, kept)
    return next(more for more in count(kept) if budget.total + (more - kept) * one > budget.limit)


def cliff(points: list[Point], of: Callable[[Point], float]) -> int:
    """Where the steepest rise ends, of sizes that differ by one place."""
    near = [(a, b) for a, b in pairwise(points) if b.places == a.places + 1]
    return max(near, key=lambda pair: of(pair[1]) - of(pair[0]))[1].places


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=1000, help="counted, after as many to fill")
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    told = parser.parse_args()
    points = swept(told.tokens, told.layers)
    by_skew = {skew: [each for each in points if each.skew == skew] for skew in SKEWS}
    result: dict[str, Any] = {
        "points": [asdict(each) for each in points],
        "rms": {str(skew): off(own) for skew, own in by_skew.items()},
        "lower": {
            str(skew): {
                "planned": cliff(own, lambda each: each.planned),
                "counted": cliff(own, lambda each: each.counted),
            }
            for skew, own in by_skew.items()
        },
        "limits": [asdict(each) for gib in LIMITS_GIB if (each := planned_under(gib))],
    }
    wrong = [skew for skew, rms in result["rms"].items() if rms > MOST_OFF]
    wrong += [skew for skew, ends in result["lower"].items()
              if abs(ends["planned"] - ends["counted"]) > 1]  # fmt: skip
    wrong += [str(each["gib"]) for each in result["limits"] if each["passing"] > each["places"] + 1]
    if told.json:
        print(json.dumps(result, indent=2))
    else:
        _show(result)
    return 1 if wrong else 0


def _show(result: dict[str, Any]) -> None:
    print("   s  places  planned  counted")
    for each in result["points"]:
        print("{skew:4} {places:7} {planned:8.1%} {counted:8.1%}".format(**each))
    for skew, rms in result["rms"].items():
        ends = result["lower"][skew]
        print(f"s = {skew}: {100 * rms:.1f} points apart (root mean square); the lower cliff is "
              f"planned at {ends['planned']} places, counted at {ends['counted']}")  # fmt: skip
    for each in result["limits"]:
        print("{gib} GiB: {places} places a layer, {passing} would pass it".format(**each))


if __name__ == "__main__":
    raise SystemExit(main())
