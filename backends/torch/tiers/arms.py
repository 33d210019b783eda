"""Knows no disk: the places of a layer in two memories, each computed by what lies next to it.

Picks whose expert is on the card are computed there, others by the host's kernels meanwhile. An
expert's form on a card is not that on the host, so it changes arms only by being read again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import perf_counter

from torch import Tensor

from localrun.backends.torch.matrices.slots import ExpertSlots
from localrun.formats.extent import Extent

# Of a new measurement, in the average.
_NEW = 0.2


Product = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""``ExpertSlots.__call__``."""


def of_picks(
    product: Product, x: Tensor, weights: Tensor, picks: Tensor, places: Tensor, tokens: int
) -> Tensor:
    """``[m, D]``: what some of the picks ``[n, K]`` add, numbered row by row. Their experts lie in
    ``places`` int64 ``[m]``."""
    own = weights.reshape(-1)[picks]
    if x.shape[0] == 1:
        return product(x, places[None], own[None], tokens)[0]
    rows = x[picks // weights.shape[1]]
    return product(rows, places[:, None], own[:, None], tokens)[:, 0]


class Arms:
    """``ExpertSlots`` of two: places of ``card`` come first, if it has any, then those of ``host``,
    which is computed on the CPU."""

    def __init__(self, card: ExpertSlots | None, host: ExpertSlots) -> None:
        self.card, self.host = card, host
        self.name, self.count = host.name, host.count
        self.near = 0 if card is None else card.slots
        self.slots = self.near + host.slots
        self.slot_nbytes, self.read_nbytes = host.slot_nbytes, host.read_nbytes
        self._copy_s: float | None = None
        self._row_s: float | None = None

    def extents(self, expert: int) -> tuple[Extent, ...]:
        return self.host.extents(expert)

    def fill(self, slot: int, expert: int) -> None:
        if self.card is None or slot >= self.near:
            self.host.fill(slot - self.near, expert)
            return
        start = perf_counter()
        self.card.fill(slot, expert)
        self._copy_s = _averaged(self._copy_s, perf_counter() - start)

    def uploads(self, rows: Mapping[int, int]) -> frozenset[int]:
        """Of experts that are missing, with so many rows each, those that go to the card: as many
        as let both arms finish together, those with most rows first. All, as long as nobody knows
        what that takes."""
        if self.card is None:
            return frozenset()
        if self._copy_s is None or self._row_s is None:
            return frozenset(rows)
        copying, computing, chosen = 0.0, sum(rows.values()) * self._row_s, set()
        for expert in sorted(rows, key=lambda expert: -rows[expert]):
            copying += self._copy_s
            if copying > computing:
                break
            computing -= rows[expert] * self._row_s
            chosen.add(expert)
        return frozenset(chosen)

    def __call__(self, x: Tensor, slots: Tensor, weights: Tensor, tokens: int) -> Tensor:
        on_card = (slots < self.near).reshape(-1)
        if self.card is None or not bool(on_card.any()):
            return self._by_host(x, slots, weights, tokens)
        if bool(on_card.all()):
            return self.card(x, slots, weights, tokens)
        flat = slots.reshape(-1)
        here, there = on_card.nonzero()[:, 0], (~on_card).nonzero()[:, 0]
        # What a card was told to compute it computes while the host does its own.
        first = of_picks(self.card, x, weights, here, flat[here], tokens)
        second = of_picks(self._by_host, x, weights, there, flat[there], tokens)
        made = first.new_empty((flat.numel(), first.shape[-1]))
        made[here], made[there] = first, second
        return made.view(*slots.shape, -1)

    def _by_host(self, x: Tensor, slots: Tensor, weights: Tensor, tokens: int) -> Tensor:
        start = perf_counter()
        own = (slots - self.near).cpu()
        made = self.host(x.cpu(), own, weights.cpu(), tokens).to(x.device)
        self._row_s = _averaged(self._row_s, (perf_counter() - start) / max(1, own.numel()))
        return made

    def release(self, first: int) -> int:
        on_card = self.card.release(first) if self.card is not None and first < self.near else 0
        return on_card + self.host.release(max(0, first - self.near))

    def close(self) -> None:
        for each in (self.card, self.host):
            if each is not None:
                each.close()


def _averaged(before: float | None, now: float) -> float:
    return now if before is None else before + _NEW * (now - before)
