"""Knows no speeds: what each device reads and computes for a token, and for a chunk of prompt."""

from __future__ import annotations

from dataclasses import dataclass, replace

from localrun.plan.constants import FULL_TILE, PAGE
from localrun.plan.hits import Picking
from localrun.plan.load import Load
from localrun.plan.placement import Assignment
from localrun.plan.stack import NONE, Layer, Weights


@dataclass(frozen=True, slots=True)
class Share:
    """One device's part: weights that every token reads, and routed ``experts``. ``blocks`` of
    ``layers`` it computes; ``kv`` bytes read of the cache."""

    tier: str
    dense: Weights = NONE
    experts: Weights = NONE
    kv: float = 0.0
    layers: int = 0
    blocks: int = 0

    @property
    def weights(self) -> Weights:
        return self.dense + self.experts


@dataclass(frozen=True, slots=True)
class Token:
    """One decoded token. ``handovers`` counts layers that change between cards and host;
    ``missed`` bytes and ``misses`` are experts read from disk, in ``streaming`` layers, which can
    compute ``beside`` of what all read meanwhile, in ``beside_blocks``; ``rows`` n-gram rows in
    ``reads`` reads, the first after ``cover`` layers."""

    cards: tuple[Share, ...]
    host: Share | None
    handovers: int
    missed: float
    misses: float
    rows: int
    row_bytes: int
    reads: int
    cover: int
    on_disk: bool
    streaming: int = 0
    used: int = 0
    beside: float = 0.0
    beside_blocks: int = 0

    @property
    def row_fetched(self) -> int:
        """Bytes that looking its rows up reads: of a disk whole pages, a read that is not as long
        as one goes over an edge as often as it has bytes for it."""
        return self.row_bytes + self.reads * (PAGE - 1) if self.on_disk else self.row_bytes


@dataclass(frozen=True, slots=True)
class Chunk:
    """A chunk of ``tokens`` of prompt. ``parameters`` are multiplied with each token, by device,
    a card's experts as many times more as their small products are slower; ``bytes`` are weights
    read, by device; ``streamed`` bytes of experts and ``reads`` of n-gram rows come from disk.
    ``card_blocks`` and ``host_blocks`` of layers are computed one after the other."""

    tokens: int
    card_parameters: tuple[float, ...]
    card_bytes: tuple[float, ...]
    host_parameters: float
    host_bytes: float
    streamed: float
    reads: int
    card_attention: float
    host_attention: float
    card_blocks: int = 0
    host_blocks: int = 0


def token(made: Assignment, picking: Picking) -> Token:
    """The work of one token, with caches in the state that ``picking`` describes."""
    count, used = made.experts, made.used
    on_cards = picking.hits(made.card_slots, count, used) if made.card_slots else 0.0
    kept = picking.hits(made.card_slots + made.host_slots, count, used)
    if made.host is None:
        on_cards = 1.0  # read from the one memory, wherever they came from
    cards = tuple(_share(load, on_cards) for load in made.cards)
    host = None if made.host is None else _host(made, made.host, on_cards)
    misses = sum(layer.experts.used for layer in made.slotted if layer.experts) * (1 - kept)
    missed = sum(layer.routed.read for layer in made.slotted) * (1 - kept) * made.stack.stored
    tables = made.stack.tables
    rows = sum(table.table.rows_per_token for table in tables)
    return Token(
        cards=cards,
        host=host,
        handovers=_handovers(made, on_cards),
        missed=missed,
        misses=misses,
        rows=rows,
        row_bytes=sum(table.table.rows_per_token * table.table.row_bytes for table in tables),
        reads=made.row_reads,
        cover=min((table.layer for table in tables), default=0),
        on_disk=made.disk_tables > 0,
        streaming=len(made.slotted) if misses > 0 else 0,
        used=used,
        beside=sum(layer.shared.read for layer in made.slotted),
        beside_blocks=sum(1 + bool(layer.shared.bytes) for layer in made.slotted),
    )


def _share(load: Load, hits: float) -> Share:
    kv = sum(layer.kv_read for layer in load.layers) if load.kv else 0
    blocks = sum(layer.blocks for layer in load.layers)
    routed = load.whole + _part(load.single, hits)
    return Share(load.room.name, load.dense + load.head, routed, kv, len(load.layers), blocks)


def _host(made: Assignment, host: Load, on_cards: float) -> Share:
    share = _share(host, 1.0)
    extra, kv = share.experts, share.kv
    for load in made.cards:
        extra += _part(load.single, 1 - on_cards)
        if not made.choice.kv_on_cards:
            kv += sum(layer.kv_read for layer in load.layers)
    return replace(share, experts=extra, kv=kv)


def _part(weights: Weights, share: float) -> Weights:
    return Weights(
        int(weights.bytes * share),
        weights.wide * share,
        weights.packed * share,
        weights.parameters * share,
    )


def _handovers(made: Assignment, on_cards: float) -> int:
    """Layers of cards that wait for the host: for experts, or for attention over its cache."""
    if made.host is None or not made.cards:
        return 0
    computed = [layer for load in made.cards for layer in load.layers]
    if not made.choice.kv_on_cards:
        return len(computed)
    inside = {layer.index for layer in computed}
    apart = sum(layer.index in inside for layer in made.host.experts)
    if on_cards < 1:
        apart += len(made.slotted)
    return apart + (1 if made.host.layers else 0)


def chunk(
    made: Assignment, tokens: int, layers: int, depth: int, picking: Picking, *, cold: bool
) -> Chunk:
    """The work of ``tokens`` tokens of prompt together, in the first ``layers`` layers.

    ``cold`` is a chunk that finds nothing in the cache of experts yet.
    """
    slotted = {layer.index for layer in made.slotted}
    kept = (made.card_slots + made.host_slots) / made.experts if made.slotted else 1.0
    kept = 0.0 if cold and made.streams else kept
    held = made.card_slots / made.experts if made.slotted else 1.0
    card_parameters, card_bytes = [], []
    host_parameters = host_bytes = streamed = 0.0
    for load in made.cards:
        whole = {layer.index for layer in load.experts}
        parameters, size = 0.0, 0.0
        for layer in load.layers:
            if layer.index >= layers:
                continue
            parameters += layer.dense.parameters
            size += layer.dense.read
            here = 1.0 if layer.index in whole or made.host is None else 0.0
            if layer.index in slotted and made.host is not None:
                here = held
            picked = _touched(layer, tokens, picking)
            parameters += layer.routed.parameters * _small(layer, tokens) * here
            size += picked * here
            host_parameters += layer.routed.parameters * (1 - here)
            host_bytes += picked * (1 - here)
            streamed += picked * (1 - kept) if layer.index in slotted else 0.0
        card_parameters.append(parameters)
        card_bytes.append(size)
    for layer in made.host.layers if made.host else ():
        if layer.index < layers:
            picked = _touched(layer, tokens, picking)
            host_parameters += layer.dense.parameters + layer.routed.parameters
            host_bytes += layer.dense.read + picked
            streamed += picked * (1 - kept) if layer.index in slotted else 0.0
    attention = _attention(made, depth, layers)
    return Chunk(
        tokens,
        tuple(card_parameters),
        tuple(card_bytes),
        host_parameters,
        host_bytes,
        streamed * made.stack.stored,
        made.row_reads * tokens if made.disk_tables else 0,
        attention if made.cards and made.choice.kv_on_cards else 0.0,
        0.0 if made.cards and made.choice.kv_on_cards else attention,
        sum(_blocks(load, layers) for load in made.cards),
        _blocks(made.host, layers) if made.host else 0,
    )


def _blocks(load: Load, layers: int) -> int:
    return sum(layer.blocks for layer in load.layers if layer.index < layers)


def _touched(layer: Layer, tokens: int, picking: Picking) -> float:
    """Bytes of a layer's experts that the tokens of a chunk together read."""
    if layer.experts is None:
        return 0.0
    found = picking.touched(tokens, layer.experts.count, layer.experts.used)
    return found * layer.experts.bytes


def _small(layer: Layer, tokens: int) -> float:
    """How much slower a card's products of experts are, each of which sees few of the tokens."""
    if layer.experts is None or not layer.experts.used:
        return 1.0
    rows = tokens * layer.experts.used / layer.experts.count
    return 1 + FULL_TILE / max(1.0, rows)


def _attention(made: Assignment, depth: int, layers: int) -> float:
    """Operations of one token's attention over ``depth`` tokens: 4 a value of each query head.

    Windows, compressed rows and top-k selections bound the rows that count.
    """
    spec = made.stack.spec
    total = 4.0 * depth * spec.width * min(layers, spec.layers) if spec.encoder else 0.0
    for rows in spec.caches:
        if rows.kind == "index":
            continue
        seen = depth / rows.tokens_per_row
        for bound in (rows.window, rows.read_rows):
            seen = min(seen, bound) if bound else seen
        inside = sum(layer < layers for layer in rows.layers) * max(1, rows.readers)
        total += 4.0 * seen * spec.width * inside
    return total
