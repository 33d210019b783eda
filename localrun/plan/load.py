"""Knows no choice: what may be decided of a plan, and what one tier holds then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from localrun.plan.plan import Budget, KvType
from localrun.plan.rooms import Room
from localrun.plan.stack import NONE, Layer, Stack, Weights


@dataclass(frozen=True, slots=True)
class Buffers:
    """Bytes for a micro-batch: on a card, on the card with the output layer, on a host beside cards
    that compute all layers, on a host that computes some. ``process`` is what the program holds
    besides, ``library`` what is there whatever the model is."""

    card: int = 0
    head: int = 0
    host: int = 0
    layers: int = 0
    process: int = 0
    library: int = 0


@dataclass(frozen=True, slots=True)
class Choice:
    """What the planner decides. ``card_layers`` counts layers on cards, the head being one more;
    ``host_experts`` those of them whose experts stay with the host. With ``slots`` experts are
    kept singly instead, in at most ``cache_bytes`` of the host, ``host_first`` or on cards as many
    as fit there. ``tables`` is where n-gram tables
    lie: ``disk``, ``vram`` or beside the embedding; ``scales`` keeps those of tables on disk in
    memory."""

    n_ctx: int
    kv_type: KvType
    ubatch: int
    card_layers: int
    buffers: Buffers = Buffers()
    host_experts: int = 0
    kv_on_cards: bool = True
    slots: bool = False
    cache_bytes: int | None = None
    host_first: bool = False
    tables: str = ""
    scales: bool = False


@dataclass(slots=True)
class Load:
    """What one tier holds. ``layers`` are computed from here, ``experts`` are those whose experts
    lie here ``whole``, ``single`` the experts that its other layers pick from, ``cache`` bytes of
    slots, ``staging`` what experts are read into on their way to those, ``rows`` what is kept of
    n-gram tables on disk, ``extras`` what decoding does not read, ``copies`` what lies elsewhere
    too. ``overhead`` is all of this that is neither weights nor buffers of a step. ``output`` is
    true where the output layer is, whether or not it has tensors of its own."""

    room: Room
    layers: Sequence[Layer] = ()
    experts: Sequence[Layer] = ()
    output: bool = False
    head: Weights = NONE
    dense: Weights = NONE
    whole: Weights = NONE
    single: Weights = NONE
    embedding: int = 0
    tables: int = 0
    extras: int = 0
    copies: int = 0
    kv: int = 0
    compute: int = 0
    overhead: int = 0
    cache: int = 0
    staging: int = 0
    rows: int = 0

    def compute_layers(self, stack: Stack, start: int, stop: int, *, slots: bool) -> None:
        """Compute these layers from here; with ``slots``, their experts lie elsewhere singly."""
        self.layers = stack.layers[start:stop]
        self.dense = stack.dense(start, stop)
        if slots:
            self.single = stack.experts(stack.routed_before[start], stack.routed_before[stop])

    def hold_experts(self, stack: Stack, start: int, stop: int) -> None:
        """Keep all experts of these of the layers that have any."""
        self.experts = stack.routed[start:stop]
        self.whole = stack.experts(start, stop)

    @property
    def routed(self) -> int:
        return self.whole.bytes

    @property
    def idle(self) -> bool:
        return not self.total

    @property
    def weights(self) -> int:
        held = self.dense.bytes + self.routed + self.head.bytes
        return held + self.embedding + self.tables + self.extras + self.copies

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.compute + self.overhead + self.cache

    @property
    def free(self) -> int:
        return self.room.limit - self.total

    def budget(self) -> Budget:
        return Budget(
            tier=self.room.name,
            weights=self.weights,
            kv=self.kv,
            compute=self.compute,
            limit=self.room.limit,
            expert_cache=self.cache,
            overhead=self.overhead,
        )
