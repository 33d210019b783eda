"""Knows no terminal: which part of a tier's memory becomes which cells of its bar.

A part is told by its letter and its pattern; colour repeats what they say. Capital letters are
weights of the model, small ones are memory that running it takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from localrun.plan.plan import Budget, Placement

# The smallest segment that shows a pattern on both sides of its letter.
_LETTERED = 3


@dataclass(frozen=True, slots=True)
class Kind:
    """How one kind of bytes is drawn. ``colour`` is hexadecimal, from palettes that stay distinct
    for colour-blind readers (https://jfly.uni-koeln.de/color/) where kinds stand side by side."""

    letter: str
    name: str
    pattern: str
    colour: str


KINDS: dict[str, Kind] = {
    "weights": Kind("W", "weights", "■", "#56b4e9"),
    "embedding": Kind("T", "token embedding", "▄", "#a6d854"),
    "attention": Kind("A", "attention", "█", "#e69f00"),
    "indexer": Kind("I", "indexer", "▐", "#7fd1c7"),
    "dense_ffn": Kind("D", "dense FFN", "▚", "#d9cb3c"),
    "shared_experts": Kind("S", "shared experts", "▞", "#cc79a7"),
    "router": Kind("R", "router", "▀", "#f4a582"),
    "hyper_connections": Kind("H", "hyper-connections", "╬", "#c2a878"),
    "experts": Kind("E", "experts", "▓", "#56b4e9"),
    "engram": Kind("N", "Engram", "░", "#2fbf8f"),
    "head": Kind("O", "output head", "▌", "#b39ddb"),
    "draft": Kind("P", "draft", "╱", "#9575cd"),
    "vision": Kind("V", "vision", "╲", "#8da0cb"),
    "other": Kind("X", "other", "┼", "#b0b0b0"),
    "expert_cache": Kind("e", "cached experts", "▒", "#8fd0f5"),
    "kv": Kind("k", "KV", "╳", "#e8663c"),
    "compute": Kind("c", "compute", "═", "#a0a0a0"),
    "overhead": Kind("o", "overhead", "─", "#808080"),
}
_RUNNING = ("expert_cache", "kv", "compute", "overhead")


@dataclass(frozen=True, slots=True)
class Part:
    """``count`` is how many experts they are, 0 for everything else or where nothing says."""

    kind: Kind
    bytes: int
    count: int = 0


@dataclass(frozen=True, slots=True)
class Segment:
    """``cells`` neighbouring cells of a bar; no kind is free room."""

    kind: Kind | None
    cells: int

    def text(self, *, ascii_only: bool) -> str:
        """Exactly ``cells`` characters, the letter in the middle."""
        if self.kind is None:
            return ("." if ascii_only else "·") * self.cells
        if ascii_only:
            return self.kind.letter * self.cells
        if self.cells < _LETTERED:
            return self.kind.letter + self.kind.pattern * (self.cells - 1)
        before = (self.cells - 1) // 2
        pattern = self.kind.pattern
        return pattern * before + self.kind.letter + pattern * (self.cells - before - 1)


def parts_of(budget: Budget, placements: Sequence[Placement]) -> tuple[Part, ...]:
    """What lies on a tier, in the order it is drawn; their bytes add up to ``budget.total``.

    Groups may name their layer (``experts[3]``); weights that no placement names are ``weights``.
    """
    found, experts = dict.fromkeys(KINDS, 0), 0
    for placement in placements:
        name = placement.group.partition("[")[0]
        if placement.tier == budget.tier and name not in _RUNNING:
            found[name if name in found else "other"] += placement.bytes
            experts += placement.count if name == "experts" else 0
    placed = sum(found.values())
    found["weights"] += max(0, budget.weights - placed)
    # Experts in a cache are placed too, but the budget counts them apart.
    found["experts"] -= min(found["experts"], budget.expert_cache, max(0, placed - budget.weights))
    for name in _RUNNING:
        found[name] = getattr(budget, name)
    counted = "experts" if found["experts"] else "expert_cache"
    return tuple(
        Part(KINDS[name], count, experts if name == counted else 0)
        for name, count in found.items()
        if count > 0
    )


def segments(parts: Sequence[Part], limit: int, width: int) -> tuple[Segment, ...]:
    """``width`` cells in proportion; whatever is there gets one cell at least while cells last.

    Where the parts exceed ``limit`` they fill the whole bar, otherwise what is left is free room.
    """
    free = max(0, limit - sum(part.bytes for part in parts))
    cells = apportion([*(part.bytes for part in parts), free], width)
    kinds = [*(part.kind for part in parts), None]
    return tuple(
        Segment(kind, count) for kind, count in zip(kinds, cells, strict=True) if count > 0
    )


def apportion(amounts: Sequence[int], cells: int) -> list[int]:
    """Whole cells in proportion to ``amounts``, ``cells`` in all (0 where nothing is there).

    An amount above zero gets one cell at least, taken from the largest, while cells last.
    """
    total = sum(amounts)
    if total <= 0:
        return [0] * len(amounts)
    there = [at for at, amount in enumerate(amounts) if amount > 0]
    shares = [max(1, amount * cells // total) if amount > 0 else 0 for amount in amounts]
    there.sort(key=lambda at: -(amounts[at] * cells % total))
    for at in there[: max(0, cells - sum(shares))]:
        shares[at] += 1
    while sum(shares) > cells:
        shares[shares.index(max(shares))] -= 1
    return shares
