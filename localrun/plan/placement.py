"""Knows no speeds: what one choice of layers, experts and context puts on each tier.

The last layers go to the cards, in order (packing.py says how many to each); the experts of the
first of them stay with the host where the choice says so. Slots are as many in every layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from localrun.plan.constants import DEVICE_CONTEXT
from localrun.plan.engines import Engine
from localrun.plan.load import Choice, Load
from localrun.plan.packing import packed
from localrun.plan.rooms import SIMULATED, Room, Rooms
from localrun.plan.stack import Layer, Stack
from localrun.plan.staging import hot_rows, rows_read, staging


@dataclass(slots=True)
class Assignment:
    """Where everything is. ``slotted`` are the layers whose experts are kept singly:
    ``card_slots`` and ``host_slots`` of each, the others on disk."""

    choice: Choice
    stack: Stack
    cards: list[Load]
    host: Load | None
    disk: Room | None
    slotted: Sequence[Layer] = ()
    card_slots: int = 0
    host_slots: int = 0
    disk_tables: int = 0
    fragments: float = 0.0
    uploads: bool = True
    staged: bool = False
    ahead: bool = False
    text_only: bool = False

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
    def row_reads(self) -> int:
        """Reads of n-gram tables a token: one a row where its scales are in memory."""
        apart = 0 if self.choice.scales else 1
        return sum(
            each.table.rows_per_token * (each.table.pieces if apart else 1)
            for each in self.stack.tables
        )

    @property
    def cards_fit(self) -> bool:
        return all(load.free >= 0 for load in self.cards)

    @property
    def away(self) -> int:
        """Bytes of experts that no memory keeps, as they lie on disk."""
        kept = sum(load.cache for load in self.loads)
        return int((sum(each.routed.bytes for each in self.slotted) - kept) * self.stack.stored)

    @property
    def missing(self) -> dict[str, int]:
        """Bytes that each tier lacks; empty where everything fits.

        A cache that does not hold one token's experts finds nothing, so it counts as lacking.
        """
        lacks = {load.room.name: -load.free for load in self.loads if load.free < 0}
        disk = self.disk
        held = self.disk_tables + (self.away if self.streams else 0)
        held += unread(self.stack) if self.text_only else 0
        if held and (disk is None or held > disk.limit):
            lacks["disk"] = held - (disk.limit if disk else 0)
        slots = self.card_slots + self.host_slots
        base = self.host or self.cards[0]
        if not lacks and self.streams and slots < self.used:
            more = held_in(self.slotted, self.used) - held_in(self.slotted, slots)
            lacks[base.room.name] = max(1, more)
        asked = self.choice.cache_bytes
        if not lacks and self.streams and asked is not None:
            short = asked - base.cache - slot_bytes(self.slotted)
            if short > 0:
                lacks[base.room.name] = short
        return lacks


def unread(stack: Stack) -> int:
    """Bytes of what an engine that computes text alone leaves in the files."""
    return stack.draft.bytes + stack.vision.bytes


def slot_bytes(layers: Sequence[Layer]) -> int:
    """One slot in each of these layers."""
    return sum(layer.experts.bytes for layer in layers if layer.experts)


def held_in(layers: Sequence[Layer], slots: int) -> int:
    """Bytes of so many slots in each of these layers; none keeps more than there is."""
    sizes = ((layer.routed.bytes, layer.experts) for layer in layers)
    return sum(min(size, slots * experts.bytes) for size, experts in sizes if experts)


def place(choice: Choice, stack: Stack, rooms: Rooms, engine: Engine) -> Assignment:
    """Put every byte of ``stack`` somewhere; ``missing`` says where it is too much."""
    cards = [Load(room) for room in rooms.cards] if choice.card_layers > 0 else []
    host = Load(rooms.host) if rooms.host else None
    made = Assignment(
        *(choice, stack, cards, host, rooms.disk),
        fragments=engine.fragments,
        uploads=engine.uploads,
        staged=engine.staged,
        ahead=engine.tables == "ahead",
        text_only=engine.text_only and rooms.disk is not None and unread(stack) <= rooms.disk.limit,
    )
    first = 0
    if host is not None:
        whole = len(stack.layers) + 1
        first = max(0, whole - choice.card_layers) if cards else whole - 1
    apart = _experts_apart(made, first)
    if choice.slots:
        made.slotted = stack.routed
    if host is not None:
        host.compute_layers(stack, 0, first, slots=choice.slots)
        if not choice.slots:
            host.hold_experts(stack, 0, apart)
        host.kv = stack.kv_between(0, first)
    _outside(made)
    _buffers(made)
    if cards:
        _on_cards(made, first, apart)
    elif host is not None:
        _take_head(made, host)
    if made.slotted:
        _slots(made)
    return made


def _experts_apart(made: Assignment, first: int) -> int:
    """How many of the layers with experts leave them with the host."""
    stack, choice = made.stack, made.choice
    if made.host is None or choice.slots:
        return 0
    return min(len(stack.routed), stack.routed_before[first] + choice.host_experts)


def _outside(made: Assignment) -> None:
    """The embedding, of which single rows are read, and what is not used while decoding stay with
    the host."""
    stack = made.stack
    base = made.host or made.cards[0]
    base.embedding = stack.embedding.bytes
    base.extras = 0 if made.text_only else unread(stack)
    if made.choice.tables == "disk":
        made.disk_tables = stack.table_bytes
        base.rows = stack.scale_bytes if made.choice.scales else 0
        base.rows += hot_rows(stack) if made.staged else 0
        base.overhead += base.rows + (rows_read(stack) if made.ahead else 0)
    elif made.choice.tables == "vram" and made.cards:
        made.cards[0].tables = stack.table_bytes
    else:
        base.tables = stack.table_bytes


def _buffers(made: Assignment) -> None:
    """What is there whatever is placed."""
    buffers, host = made.choice.buffers, made.host
    if host is not None:
        alone = not made.cards or bool(host.layers)
        host.compute = buffers.process + (buffers.layers if alone else buffers.host)
        host.overhead += buffers.library
    copied = _largest_matrix(host) if host and made.uploads else 0
    for load in made.cards:
        load.compute = buffers.card + copied
        if load.room.tier.kind == "vram" and load.room.tier.device != SIMULATED:
            load.overhead = DEVICE_CONTEXT


def _largest_matrix(host: Load) -> int:
    """A matrix of the host's is copied to the card that computes a long prompt with it."""
    return max(
        (
            *(layer.expert_matrix for layer in host.experts),
            *(layer.matrix for layer in host.layers),
        ),
        default=0,
    )


def _on_cards(made: Assignment, first: int, apart: int) -> None:
    """The layers from ``first``, the experts of those with experts from ``apart``; the output layer
    goes with the last of them."""
    stack, choice = made.stack, made.choice
    kv_here = choice.kv_on_cards or made.host is None
    sizes = [layer.dense.bytes + layer.kv * kv_here for layer in stack.layers[first:]]
    if not choice.slots:
        for layer in stack.routed[apart:]:
            sizes[layer.index - first] += layer.routed.bytes
    sizes = [_grown(made, size) for size in sizes]
    sizes.append(_head_bytes(made))
    if choice.slots:
        counts = _spread(made, first, sizes)
    else:
        speeds = [load.room.tier.read.value for load in made.cards]
        counts = packed(sizes, [load.free for load in made.cards], speeds)
    start = first
    for load, count in zip(made.cards, counts, strict=True):
        stop = min(start + count, len(stack.layers))
        _take_layers(made, load, start, stop, apart, kv_here=kv_here)
        start = stop
        if not count:  # nothing runs there
            load.compute = load.overhead = 0
    if made.host is not None and not kv_here:
        made.host.kv = stack.kv
    last = max(at for at, count in enumerate(counts) if count)
    _take_head(made, made.cards[last])


def _take_layers(
    made: Assignment, load: Load, start: int, stop: int, apart: int, *, kv_here: bool
) -> None:
    stack, choice = made.stack, made.choice
    load.compute_layers(stack, start, stop, slots=choice.slots)
    if kv_here:
        load.kv = stack.kv_between(start, stop)
    if not choice.slots:
        before = stack.routed_before
        load.hold_experts(stack, max(apart, before[start]), max(apart, before[stop]))
    held = load.dense.bytes + load.whole.bytes + load.kv
    load.overhead += _grown(made, held) - held


def _grown(made: Assignment, size: int) -> int:
    """``size`` on a card, with what its allocator loses."""
    fragments = made.fragments if made.cards[0].room.tier.kind == "vram" else 0.0
    return size + int(fragments * size)


def _head_bytes(made: Assignment) -> int:
    """What the output layer adds to a card."""
    buffers, stack = made.choice.buffers, made.stack
    copy = stack.embedding.bytes if stack.tied and made.host is not None else 0
    return _grown(made, stack.head.bytes) + max(0, buffers.head - buffers.card) + copy


def _take_head(made: Assignment, last: Load) -> None:
    stack, buffers = made.stack, made.choice.buffers
    last.output, last.head = True, stack.head
    if stack.tied:
        # The table is read whole for the logits, and a second time in memory if it is elsewhere.
        last.head += replace(stack.embedding, bytes=0, tensors=0)
        last.copies = stack.embedding.bytes if last is not (made.host or last) else 0
    if made.cards:
        last.compute += max(0, buffers.head - buffers.card)
        last.overhead += _grown(made, stack.head.bytes) - stack.head.bytes


def _spread(made: Assignment, first: int, sizes: list[int]) -> list[int]:
    """Layers whose experts are in slots: each card needs room for slots of those it computes, so
    each takes the share of them that its memory is of all cards'."""
    layers = made.stack.layers[first:]
    free = [load.free for load in made.cards]
    ends = list(accumulate(load.room.limit for load in made.cards))
    counts, at = [0] * len(free), 0
    for place, size in enumerate(sizes):
        if place < len(layers) and layers[place].experts is not None:
            share = place / len(layers) * ends[-1]
            at = max(at, next((n for n, end in enumerate(ends) if share < end), 0))
        while at + 1 < len(free) and free[at] < size:
            at += 1
        free[at] -= size
        counts[at] += 1
    return counts


def _slots(made: Assignment) -> None:
    """Fill what is left with slots, the cards first where they compute all layers."""
    count, host, asked = made.experts, made.host, made.choice.cache_bytes
    each = slot_bytes(made.slotted)
    if host is not None:
        host.staging = staging(made.slotted, host.free, made.stack.stored, measured=made.staged)
        room = max(0, host.free - host.staging)
        fit = min(room, room if asked is None else asked) // each if each else count
    elif made.ahead:
        _stage_unified(made, each)
    if made.cards and made.choice.card_layers > len(made.stack.layers):
        own = [[at for at in load.layers if at.experts] for load in made.cards]
        sizes = [slot_bytes(layers) for layers in own]
        rooms = zip(made.cards, sizes, strict=True)
        fitting = [max(0, load.free) // size for load, size in rooms if size]
        if host is None and asked is not None and each:
            fitting.append(asked // each)
        made.card_slots = min(count, *fitting) if fitting else count
        if host is not None and made.choice.host_first:
            made.card_slots = min(made.card_slots, max(0, count - fit))
        for load, layers in zip(made.cards, own, strict=True):
            load.cache = held_in(layers, made.card_slots)
    if host is not None and made.card_slots < count:
        host.overhead += host.staging
        made.host_slots = min(count - made.card_slots, fit)
        slots = made.card_slots + made.host_slots
        host.cache = held_in(made.slotted, slots) - held_in(made.slotted, made.card_slots)
        if made.staged and not made.streams and not _apart(made):
            host.overhead -= host.staging
            host.staging = 0
    elif host is not None:
        host.staging = 0


def _stage_unified(made: Assignment, each: int) -> None:
    """Experts that one memory does not hold all come into some of it on their way."""
    card = made.cards[0]
    if each and card.free // each < made.experts:
        card.staging = staging(made.slotted, card.free, made.stack.stored, measured=True)
        card.overhead += card.staging


def _apart(made: Assignment) -> bool:
    """Whether slots are in two memories; a card that is simulated is a part of the host's."""
    return any(load.cache and load.room.tier.device != SIMULATED for load in made.cards)
