"""Knows no arithmetic of a model: what of it lies in which memory, and what steps read there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from localrun.backends.torch.model import Model
from localrun.backends.torch.tiers.use import CARD, RAM, StoreStats
from localrun.backends.torch.times import Tiers
from localrun.plan.plan import Execution
from localrun.plan.terms import DENSE, DISK, ENGRAM, EXPERTS, term

if TYPE_CHECKING:
    from localrun.backends.torch.loading import Loaded
    from localrun.backends.torch.tiers.store import ExpertStore

NOTHING_STORED: Final = StoreStats({}, {}, {}, 0, 0, {}, 0, 0, ())


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes by tier: ``weights`` and ``cache`` of experts that are kept singly, ``read`` by a step
    whatever it computes, ``picked`` by one token of experts that lie with their layer."""

    weights: Mapping[str, int]
    cache: Mapping[str, int]
    read: Mapping[str, int]
    picked: Mapping[str, int]
    tables: str
    tiers: Tiers
    model: Model
    store: ExpertStore | None = field(default=None)

    @classmethod
    def of(cls, loaded: Loaded, told: Execution, tiers: Tiers) -> Held:
        model, store = loaded.model, loaded.setup.experts
        weights: dict[str, int] = defaultdict(int)
        read: dict[str, int] = defaultdict(int)
        picked: dict[str, int] = defaultdict(int)
        cache: dict[str, int] = defaultdict(int)
        card_share = told.card_slots_per_layer / max(1, told.slots_per_layer)
        outside = model.nbytes - model.head_bytes
        # Rows that are kept as they are read take memory then: a step's growth has them.
        later = told.engram_cache_bytes if told.engram == DISK else 0
        for number, layer in enumerate(model.layer_bytes):
            tier = tiers.layer(number)
            weights[tier] += layer.dense
            read[tier] += layer.dense
            there = max(0, layer.table - later)
            later -= layer.table - there
            weights[CARD if told.engram == "vram" else RAM] += there
            outside -= layer.dense + layer.table + layer.experts
            if store is None:
                on_card = int(layer.experts * _share(told, tier, card_share))
                held = cache if told.slots_per_layer else weights
                held[CARD] += on_card
                held[RAM] += layer.experts - on_card
                picked[tier] += layer.picked
        weights[tiers.head] += model.head_bytes
        read[tiers.head] += model.head_bytes
        weights[RAM] += max(0, outside)
        tables = DISK if told.engram == DISK else RAM
        return cls(weights, cache, read, picked, tables, tiers, model, store)

    @property
    def on_card(self) -> int:
        return self.weights.get(CARD, 0) + self.cache.get(CARD, 0)

    def stored(self) -> StoreStats:
        """Of experts that are kept singly; of nothing where all lie with their layers."""
        return NOTHING_STORED if self.store is None else self.store.stats()

    def bytes_read(self, steps: int, stored: StoreStats) -> dict[str, int]:
        """Of so many steps, by term."""
        found = {term(tier, DENSE): size * steps for tier, size in self.read.items() if size}
        for tier, size in self.picked.items():
            if size:
                found[term(tier, EXPERTS)] = size * steps
        for tier, size in stored.computed.items():
            found[term(tier, EXPERTS)] = size
        if missed := stored.experts.get(DISK):
            found[DISK] = missed.bytes
        if rows := self.model.table_use.bytes:
            found[ENGRAM] = rows
        return found

    def by_tier(self, read: Mapping[str, int]) -> dict[str, int]:
        """Bytes of terms added up."""
        found: dict[str, int] = defaultdict(int)
        for name, size in read.items():
            tier = self.tables if name == ENGRAM else name.partition(" ")[0]
            found[tier] += size
        return dict(found)

    def memory(self, kv: int, compute: int, stored: StoreStats) -> dict[str, dict[str, int]]:
        """By tier, in all parts of a budget. Rows of layers lie where the plan has them, what steps
        take is of the memory that computes most of them."""
        layers = max(1, self.tiers.layers)
        on_card = kv * (layers - self.tiers.first) // layers if self.tiers.kv == CARD else 0
        rows = {CARD: on_card, RAM: kv - on_card}
        computing = self.tiers.head
        cache = self.cache if self.store is None else stored.memory
        found = {
            tier: {
                "weights": self.weights.get(tier, 0),
                "expert_cache": cache.get(tier, 0),
                "kv": rows[tier],
                "compute": compute if tier == computing else 0,
            }
            for tier in (CARD, RAM)
        }
        return {tier: parts for tier, parts in found.items() if any(parts.values())}


def _share(told: Execution, tier: str, slots: float) -> float:
    """Of a layer's experts that all lie in memory, how many lie on the card."""
    if told.slots_per_layer:
        return slots
    return float(tier == CARD)
