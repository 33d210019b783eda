"""Knows no speeds: what one choice of layers, experts and context puts on each tier.

The last layers go to the cards, in order, each to the first card with room; the experts of the
first of them stay with the host where the choice says so. Slots are as many in every layer.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from localrun.plan.constants import DEVICE_CONTEXT, STAGING
from localrun.plan.engines import Engine
from localrun.plan.plan import Budget, KvType
from localrun.plan.rooms import SIMULATED, Room, Rooms
from localrun.plan.stack import NONE, Layer, Stack, Weights


@dataclass(frozen=True, slots=True)
class Buffers:
    """Bytes for a micro-batch: on a card, on the card or host with the output layer, on a host
    beside cards."""

    card: int = 0
    head: int = 0
    host: int = 0


@dataclass(frozen=True, slots=True)
class Choice:
    """What the planner decides. ``card_layers`` counts layers on cards, the head being one more;
    ``host_experts`` those of them whose experts stay with the host. With ``slots`` experts are
    kept singly instead, in at most ``cache_bytes`` of the host. ``tables`` is where n-gram tables
    lie, ``disk`` or beside the embedding."""

    n_ctx: int
    kv_type: KvType
    ubatch: int
    card_layers: int
    buffers: Buffers = Buffers()
    host_experts: int = 0
    kv_on_cards: bool = True
    slots: bool = False
    cache_bytes: int | None = None
    tables: str = ""


@dataclass(slots=True)
class Load:
    """What one tier holds. ``layers`` are computed from here, ``experts`` are those whose experts
    lie here whole, ``cache`` bytes of slots, ``extras`` what decoding does not read."""

    room: Room
    layers: list[Layer] = field(default_factory=list)
    experts: list[Layer] = field(default_factory=list)
    head: Weights = NONE
    dense: Weights = NONE
    routed: int = 0
    embedding: int = 0
    tables: int = 0
    extras: int = 0
    kv: int = 0
    compute: int = 0
    overhead: int = 0
    cache: int = 0

    def take(self, layer: Layer, kv: int, *, whole: bool) -> None:
        """Compute a layer from here, with all of its experts where ``whole``."""
        self.layers.append(layer)
        self.dense += layer.dense
        self.kv += kv
        if whole and layer.experts is not None:
            self.take_experts(layer)

    def take_experts(self, layer: Layer) -> None:
        self.experts.append(layer)
        self.routed += layer.routed.bytes

    @property
    def weights(self) -> int:
        held = self.dense.bytes + self.routed + self.head.bytes
        return held + self.embedding + self.tables + self.extras

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


@dataclass(slots=True)
class Assignment:
    """Where everything is. ``slotted`` are the layers whose experts are kept singly:
    ``card_slots`` and ``host_slots`` of each, the others on disk."""

    choice: Choice
    stack: Stack
    cards: list[Load]
    host: Load | None
    disk: Room | None
    slotted: list[Layer] = field(default_factory=list)
    card_slots: int = 0
    host_slots: int = 0
    disk_tables: int = 0
    fragments: float = 0.0

    @property
    def loads(self) -> list[Load]:
        return [*self.cards, *([self.host] if self.host else [])]

    @property
    def experts(self) -> int:
        """Experts of a slotted layer."""
        return max((layer.experts.count for layer in self.slotted if layer.experts), default=0)

    @property
    def used(self) -> int:
        """Experts that a token picks of a slotted layer."""
        return max((layer.experts.used for layer in self.slotted if layer.experts), default=0)

    @property
    def streams(self) -> bool:
        """Whether experts are read from disk while the model runs."""
        return self.card_slots + self.host_slots < self.experts

    @property
    def missing(self) -> dict[str, int]:
        """Bytes that each tier lacks; empty where everything fits.

        A cache that does not hold one token's experts finds nothing, so it counts as lacking.
        """
        lacks = {load.room.name: -load.free for load in self.loads if load.free < 0}
        slots = self.card_slots + self.host_slots
        base = self.host or self.cards[0]
        if not lacks and self.streams and slots < self.used:
            lacks[base.room.name] = (self.used - slots) * slot_bytes(self.slotted)
        asked = self.choice.cache_bytes
        if not lacks and self.streams and asked is not None:
            short = asked - base.cache - slot_bytes(self.slotted)
            if short > 0:
                lacks[base.room.name] = short
        return lacks


def slot_bytes(layers: list[Layer]) -> int:
    """One slot in each of these layers."""
    return sum(layer.experts.bytes for layer in layers if layer.experts)


def place(choice: Choice, stack: Stack, rooms: Rooms, engine: Engine) -> Assignment:
    """Put every byte of ``stack`` somewhere; ``missing`` says where it is too much."""
    cards = [Load(room) for room in rooms.cards] if choice.card_layers > 0 else []
    host = Load(rooms.host) if rooms.host else None
    made = Assignment(choice, stack, cards, host, rooms.disk, fragments=engine.fragments)
    _buffers(made)
    _layers(made)
    _outside(made)
    if made.slotted:
        _slots(made)
    return made


def _buffers(made: Assignment) -> None:
    """What is there whatever is placed."""
    buffers = made.choice.buffers
    for load in made.cards:
        load.compute = buffers.card
        if load.room.tier.kind == "vram" and load.room.tier.device != SIMULATED:
            load.overhead = DEVICE_CONTEXT
    if made.host is not None:
        made.host.compute = buffers.host if made.cards else buffers.head


def _layers(made: Assignment) -> None:
    choice, host, at = made.choice, made.host, 0
    first = len(made.stack.layers) + 1 - choice.card_layers
    apart = choice.host_experts
    for layer in made.stack.layers:
        slotted = choice.slots and layer.experts is not None
        if slotted:
            made.slotted.append(layer)
        if host is not None and (not made.cards or layer.index < first):
            host.take(layer, layer.kv, whole=not slotted)
            continue
        to_host = host is not None and layer.experts is not None and not slotted and apart > 0
        apart -= int(to_host)
        kv = layer.kv if choice.kv_on_cards or host is None else 0
        whole = not (slotted or to_host)
        size = layer.dense.bytes + kv + whole * layer.routed.bytes
        if slotted:
            at = max(at, _even(made.cards, layer.index / len(made.stack.layers)))
        at = _next(made.cards, at, int(size * (1 + made.fragments)))
        made.cards[at].take(layer, kv, whole=whole)
        if made.cards[at].room.tier.kind == "vram":
            made.cards[at].overhead += int(made.fragments * size)
        if host is not None:
            host.kv += layer.kv - kv
            if to_host:
                host.take_experts(layer)


def _next(cards: list[Load], at: int, size: int) -> int:
    """The card for the next ``size`` bytes: this one, the next with room, else the last."""
    while at + 1 < len(cards) and cards[at].free < size:
        at += 1
    return at


def _even(cards: list[Load], place: float) -> int:
    """The card whose share of all cards' memory ``place``, of 0 to 1, lies in: each needs room for
    slots of the layers that it computes."""
    total, sum_to = sum(load.room.limit for load in cards), 0
    for at, load in enumerate(cards):
        sum_to += load.room.limit
        if place * total < sum_to:
            return at
    return len(cards) - 1


def _outside(made: Assignment) -> None:
    """The head goes with the last layers; the embedding, of which single rows are read, and what
    is not used while decoding stay with the host."""
    stack = made.stack
    base = made.host or made.cards[0]
    last = _last(made) if made.cards else base
    last.head = stack.head
    last.compute = made.choice.buffers.head
    base.embedding = stack.embedding.bytes
    base.extras = stack.draft.bytes + stack.vision.bytes
    if made.choice.tables == "disk":
        made.disk_tables = stack.table_bytes
    else:
        base.tables = stack.table_bytes
    if last.room.tier.kind == "vram":
        last.overhead += int(made.fragments * stack.head.bytes)
    copied = _largest_matrix(made.host) if made.host else 0
    for load in made.cards:
        load.compute += copied
        if not load.layers and load is not last:  # nothing runs there
            load.compute = load.overhead = 0


def _largest_matrix(host: Load) -> int:
    """At most: a matrix of the host's is copied to the card that computes a long prompt with it.

    A layer's experts are three matrices, and no other part of it is fewer.
    """
    return max(
        (
            *(layer.routed.bytes // 3 for layer in host.experts),
            *(layer.dense.bytes // 3 for layer in host.layers),
        ),
        default=0,
    )


def _last(made: Assignment) -> Load:
    """The card for the output layer: the last that computes a layer, or the next with room."""
    used = max((at for at, load in enumerate(made.cards) if load.layers), default=0)
    buffers, head = made.choice.buffers, made.stack.head.bytes
    size = int(head * (1 + made.fragments)) + buffers.head - buffers.card
    return made.cards[_next(made.cards, used, size)]


def _slots(made: Assignment) -> None:
    """Fill what is left with slots, the cards first where they compute all layers."""
    count, host, asked = made.experts, made.host, made.choice.cache_bytes
    if made.cards and made.choice.card_layers > len(made.stack.layers):
        own = [slot_bytes([at for at in load.layers if at.experts]) for load in made.cards]
        sizes = zip(made.cards, own, strict=True)
        fitting = [max(0, load.free) // size for load, size in sizes if size]
        if host is None and asked is not None:
            fitting.append(asked // slot_bytes(made.slotted))
        made.card_slots = min(count, *fitting)
        for load, size in zip(made.cards, own, strict=True):
            load.cache = made.card_slots * size
    if host is not None and made.card_slots < count:
        host.overhead += STAGING
        each = slot_bytes(made.slotted)
        room = max(0, host.free if asked is None else min(asked, host.free))
        made.host_slots = min(count - made.card_slots, room // each)
        host.cache = made.host_slots * each
