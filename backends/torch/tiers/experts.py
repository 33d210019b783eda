"""Knows no file: the experts of a layer of which only some are in memory.

What is there is computed while the rest is read. Every expert's rows of a step are one product,
whichever group it comes in, and products are added as those of ``feed_forward.Experts``: so no
text depends on what was where.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from localrun.backends.tiers.places import Acquired, Places
from localrun.backends.torch.matrices.slots import ExpertSlots
from localrun.backends.torch.tiers.arms import Arms, of_picks

if TYPE_CHECKING:
    from localrun.backends.torch.tiers.store import ExpertStore

Guess = Callable[[Tensor, Tensor], Tensor]
"""What a router would choose: of ``[T, D]`` and the ids int64 ``[T]``, int64 ``[T, K]``."""
# Of so many times as many picks as there are experts nearly every expert is one.
_NEARLY_ALL: Final = 4
# To compute with so many takes longer than to begin it.
_WORTH_BYTES: Final = 4 << 20


class StreamedExperts:
    """Has the interface of ``feed_forward.Experts``. ``top`` experts are picked a token; ``guess``
    says which, of what enters another layer. ``at`` counts the layers that have experts, ``number``
    all of the model. Made by ``ExpertStore.layer``."""

    def __init__(
        self,
        store: ExpertStore,
        at: int,
        number: int,
        slots: ExpertSlots,
        top: int,
        guess: Guess | None,
        card_slots: int,
    ) -> None:
        self._store, self.slots = store, slots
        self.at, self.number = at, number
        self._top, self._guess = top, guess
        self.arms = slots if isinstance(slots, Arms) else None
        apart = self.arms is not None
        self.places = Places(slots.slots, self.arms.near if self.arms else card_slots, apart)
        self.picks = np.zeros(slots.count, dtype=np.int64)
        self.expert_nbytes: Final = slots.slot_nbytes
        """Of one place."""
        self.together: Final = -(-_WORTH_BYTES // max(1, self.expert_nbytes))
        """Experts that are computed at once where they do not come faster."""
        self.read_nbytes: Final = slots.read_nbytes
        """What is read of files for one expert."""

    @property
    def count(self) -> int:
        return self.slots.count

    @property
    def nbytes(self) -> int:
        """Of places."""
        return self.expert_nbytes * self.places.count

    def begin(
        self, x: Tensor, chosen: Tensor, weights: Tensor, tokens: Tensor
    ) -> Callable[[], Tensor]:
        """See ``feed_forward.Experts``: what is missing is read from here on."""
        return _Run(self._store, self, x, chosen, weights, tokens).finish

    def __call__(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """See ``feed_forward.Experts``."""
        return _Run(self._store, self, x, chosen, weights, None).finish()

    def likely(self, x: Tensor, tokens: Tensor) -> Sequence[int]:
        """Of those that are not there the ones that will be picked, the surest first, by what
        enters the layer before."""
        if self.places.number == self.count:
            return ()
        if x.shape[0] * self._top >= _NEARLY_ALL * self.count:
            wanted: Iterable[int] = range(self.count)
        elif self._guess is None:
            wanted = ()
        else:
            wanted = dict.fromkeys(self._guess(x, tokens).T.flatten().tolist())
        return [expert for expert in wanted if expert not in self.places]

    @property
    def least(self) -> int:
        """Places that hold a token's picks together: in fewer they push each other out."""
        return min(self._top, self.count)

    def shrink(self, places: int) -> int:
        """Keep so many places; how many bytes went back to the system."""
        if places >= self.places.count:
            return 0
        self.places.shrink(places)
        return self.slots.release(places)

    def close(self) -> None:
        self._store.abandon()
        self.slots.close()


class _Run:
    """One step of one layer: ``T`` tokens of ``K`` picks, numbered token by token."""

    def __init__(
        self,
        store: ExpertStore,
        layer: StreamedExperts,
        x: Tensor,
        chosen: Tensor,
        weights: Tensor,
        tokens: Tensor | None,
    ) -> None:
        self._store, self._layer = store, layer
        self._x, self._weights, self._tokens = x, weights, tokens
        self._chosen: NDArray[np.int64] = chosen.cpu().numpy()
        self._made: Tensor | None = None
        self._looked = False
        store.begun(layer)
        experts = self._sorted_picks()
        self._distinct = len(experts)
        self._on_card = self._uploads(experts)
        self._acquired = layer.places.acquire(self._in_order(experts), self._on_card)
        self._left = list(self._acquired.left)
        self._count(self._acquired)
        store.loads.want(layer.slots, self._acquired.misses, self._left)
        if not self._acquired.misses:
            self._look_ahead()

    def _sorted_picks(self) -> list[int]:
        """Experts of this step, the last used last; ``_picks_of`` finds their picks."""
        flat = self._chosen.reshape(-1)
        number = np.bincount(flat, minlength=self._layer.count)
        self._layer.picks += number
        self._by_expert = np.argsort(flat, kind="stable")
        self._number, self._ends = number, np.cumsum(number)
        return list(dict.fromkeys(flat[::-1].tolist()))[::-1]

    def _in_order(self, experts: list[int]) -> list[int]:
        """Where not all have a place at once, those first that are being read already."""
        if len(experts) <= self._layer.places.count:
            return experts
        early = self._store.loads.guessed_of(self._layer.slots)
        return sorted(experts, key=lambda expert: expert not in early)

    def _uploads(self, experts: list[int]) -> frozenset[int]:
        """Those that are missing and shall lie on a card with memory of its own."""
        layer = self._layer
        if layer.arms is None:
            return frozenset()
        missing = (expert for expert in experts if expert not in layer.places)
        return layer.arms.uploads({expert: int(self._number[expert]) for expert in missing})

    def _picks_of(self, experts: Iterable[int]) -> NDArray[np.int64]:
        ends, order = self._ends, self._by_expert
        parts = [order[ends[expert - 1] if expert else 0 : ends[expert]] for expert in experts]
        return np.concatenate(parts)

    def _count(self, acquired: Acquired) -> None:
        """What was found where."""
        uses, layer = self._store.uses, self._layer
        missing = (*acquired.misses, *acquired.left)
        far = [expert for expert in acquired.hits if expert not in acquired.near]
        found = ((uses.card, tuple(acquired.near)), (uses.ram, far), (uses.disk, missing))
        for use, experts in found:
            if experts:
                size = layer.read_nbytes if use is uses.disk else layer.expert_nbytes
                use.found(int(self._number[list(experts)].sum()), len(experts) * size)

    def finish(self) -> Tensor:
        """float32 ``[T, D]``."""
        self._compute_all()
        self._store.ended()
        if self._made is None:
            return self._x.new_zeros(self._x.shape, dtype=torch.float32)
        return self._made.sum(1, dtype=torch.float32)

    def _compute_all(self) -> None:
        """What is there first; then what came, while its successors are read."""
        coming, ready = dict(self._acquired.misses), dict(self._acquired.hits)
        self._want_more(coming)
        ready |= self._arrived(coming, wait=False)
        if not coming:
            self._look_ahead()
        if ready:
            self._compute(ready)
            ready = {}
            self._want_more(coming)
        self._look_ahead()
        while coming:
            ready |= self._arrived(coming)
            if coming and not self._left and len(ready) < self._layer.together:
                continue
            self._compute(ready)
            ready = {}
            self._want_more(coming)
            self._look_ahead()

    def _arrived(self, coming: dict[int, int], *, wait: bool = True) -> dict[int, int]:
        """Of what is coming those that are there now, with their places."""
        if not coming:
            return {}
        store, before = self._store, self._store.loads.waited
        came = store.loads.next(store.interrupt, wait=wait)
        store.uses.disk.seconds += store.loads.waited - before
        for expert in came:
            self._layer.places.arrived(expert)
        return {expert: coming.pop(expert) for expert in came}

    def _want_more(self, coming: dict[int, int]) -> None:
        """Of what had no place, as much as has one now."""
        claimed: dict[int, int] = {}
        while self._left:
            expert = self._left[0]
            place = self._layer.places.claim(expert, expert in self._on_card)
            if place is None:
                break
            claimed[self._left.pop(0)] = place
        if claimed:
            self._store.loads.want(self._layer.slots, claimed, self._left)
            coming.update(claimed)

    def _compute(self, experts: dict[int, int]) -> None:
        """All picks of experts that are there, by their places; these may be given up then."""
        start = perf_counter()
        at = np.zeros(self._layer.count, dtype=np.int64)
        at[list(experts)] = list(experts.values())
        if len(experts) == self._distinct:
            places = torch.from_numpy(at[self._chosen]).to(self._x.device)
            tokens = self._chosen.shape[0]
            self._made = self._layer.slots(self._x, places, self._weights, tokens)
        else:
            self._compute_some(self._picks_of(experts), at)
        self._layer.places.let_go(experts)
        self._spent(experts, perf_counter() - start)

    def _compute_some(self, picks: NDArray[np.int64], at: NDArray[np.int64]) -> None:
        (tokens, choices), device = self._chosen.shape, self._x.device
        index = torch.from_numpy(picks).to(device)
        places = torch.from_numpy(at[self._chosen.reshape(-1)[picks]]).to(device)
        made = of_picks(self._layer.slots, self._x, self._weights, index, places, tokens)
        if self._made is None:
            self._made = made.new_empty((tokens, choices, made.shape[-1]))
        self._made.view(tokens * choices, -1)[index] = made

    def _spent(self, experts: dict[int, int], seconds: float) -> None:
        """On each arm. Where a card is only declared, experts that came from disk are computed
        from the host's memory, if that has any places."""
        layer, uses, card = self._layer, self._store.uses, self._layer.places.card
        if layer.arms is not None:
            on_card = sum(place < card for place in experts.values())
        elif card == layer.places.count:
            on_card = len(experts)
        else:
            on_card = len(self._acquired.near & experts.keys())
        for use, number in ((uses.card, on_card), (uses.ram, len(experts) - on_card)):
            use.seconds += seconds * number / len(experts)
            use.computed += number * layer.expert_nbytes

    def _look_ahead(self) -> None:
        """Once, as soon as all that this layer needs has been begun."""
        if self._tokens is not None and not self._left and not self._looked:
            self._looked = True
            self._store.look_ahead(self._layer, self._x, self._tokens)
