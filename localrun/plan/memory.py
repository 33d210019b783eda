"""Knows no machine and no library: what llama.cpp will allocate for a plan's execution.

Weights, cache and output follow from sizes alone. The compute buffer holds the tensors of one
graph that live at the same time; what lives longest together was read from llama.cpp's graphs and
ggml's allocator (src/llama-graph.cpp and ggml/src/ggml-alloc.c of the pinned version), and
``python bench/memory.py`` prints it beside what the library reports.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from localrun.formats.header import TensorInfo
from localrun.models.cache import row_bytes
from localrun.models.spec import Group, ModelSpec
from localrun.plan import encoder
from localrun.plan.plan import Execution, KvType
from localrun.plan.seats import Seats, largest_upload, weights_held

# Sequences that the runner keeps where a plan asks for one stream: they share its cells. More
# streams have one sequence each, and cells of their own.
SEQUENCES: Final = 4
# A context is rounded up to whole steps of this many cells.
_CELLS: Final = 256
_FLOAT, _HALF = 4, 2
# Of one token: its id, its position, where its key and value go, its row of the output.
_INPUTS: Final = 4 + 4 + 8 + 8 + 4
# Rows of the model's width beside a block's own tensors: the residual, the block's sum with it and
# a normalized copy.
_ROWS: Final = 3
# Beside the logits: the last layer's output and its normalized copy. A third where attention is
# more than one operation (no flash attention, or a cache whose rows are rotated).
_HEAD_ROWS: Final = 2
# Latent attention, by heads and elements of a cached row: queries as wide as the row, outputs
# nearly so, and the queries that the wide ones were made of.
_LATENT: Final = 2.55


# A layer with a state instead of rows: what its matrices make, and as much for the convolution.
_RECURRENT: Final = 2.0
# What a process holds beside the buffers: strings of a vocabulary's entry, and its merges where
# there are some; nodes of three graphs, a layer; what the library starts with.
_ENTRY, _MERGED_ENTRY, _LAYER, _START = 220, 360, 40_000, 500_000
# Rows of logits in a large step, of all streams and of each: guesses verified, texts embedded.
_STEP_ROWS, _STREAM_ROWS = 32, 8
# Where a token's row of an expert goes (struct mmid_row_mapping).
_ROUTE: Final = 8


@dataclass(frozen=True, slots=True)
class Parts:
    """Bytes on one tier.

    ``mapped`` is what a mapped file takes beyond the weights that are used from it: pages that the
    system drops when memory is short. ``scratch`` is what no line of llama.cpp's log names: inputs
    of matrix products in the kernels' own types, the vocabulary, graphs, rows of logits beyond one
    for each sequence.
    """

    weights: int = 0
    kv: int = 0
    compute: int = 0
    output: int = 0
    scratch: int = 0
    mapped: int = 0

    @property
    def needed(self) -> int:
        """What must stay in memory."""
        return self.weights + self.kv + self.compute + self.output + self.scratch

    @property
    def total(self) -> int:
        """What the process is seen to take."""
        return self.needed + self.mapped

    @property
    def logged(self) -> int:
        """What the sizes in llama.cpp's load log add up to."""
        return self.total - self.scratch


def llamacpp_memory(
    spec: ModelSpec,
    execution: Execution,
    tensors: Sequence[TensorInfo] = (),
    *,
    repacked: frozenset[str] = frozenset(),
) -> dict[str, Parts]:
    """What the pinned llama.cpp allocates by tier (``ram``, ``vram:0``, …).

    ``tensors`` of the file's header make weights exact; the groups stand for them where they are
    not given. ``repacked`` are the tensor types of ``seats.repacked_types``.
    """
    seats = Seats(spec, execution)
    held = weights_held(spec, tensors, seats, repacked)
    kv = _kv(spec, execution, seats)
    uploaded = largest_upload(spec, tensors, seats)
    compute = _compute(spec, execution, seats, uploaded)
    output, scratch = _beside(spec, execution)
    tiers = ["ram", *sorted({*held.weights, *kv, *compute} - {"ram"})]
    return {
        tier: Parts(
            weights=held.weights.get(tier, 0),
            kv=kv.get(tier, 0),
            compute=compute.get(tier, 0),
            output=output if tier == "ram" else 0,
            scratch=scratch if tier == "ram" else 0,
            mapped=held.mapped if tier == "ram" and execution.mmap else 0,
        )
        for tier in tiers
    }


def _beside(spec: ModelSpec, execution: Execution) -> tuple[int, int]:
    """``output`` and ``scratch`` of RAM."""
    if spec.encoder:
        return encoder.output_bytes(spec), encoder.scratch_bytes(spec, execution.ubatch)
    scratch = scratch_bytes(spec, execution.ubatch, execution.parallel)
    return output_bytes(spec, execution), scratch


def llamacpp_kv_bytes(spec: ModelSpec, execution: Execution) -> int:
    """The cache on all tiers. Windows do not shorten it: it is kept whole so that it can be cut
    anywhere."""
    return sum(_kv_by_layer(spec, execution).values())


def output_bytes(spec: ModelSpec, execution: Execution) -> int:
    """A row of logits for each sequence. It grows when a batch wants more rows."""
    return sequences(execution.parallel) * vocabulary(spec) * _FLOAT


def vocabulary(spec: ModelSpec) -> int:
    return spec.vocabulary or (spec.tokenizer.vocabulary if spec.tokenizer else 0)


def scratch_bytes(spec: ModelSpec, ubatch: int, parallel: int) -> int:
    """Of RAM, wherever the weights are: what llama.cpp's log leaves out."""
    width = max(spec.width, 1)
    inputs = routes = 0.0
    for group in spec.groups:
        if group.layer >= 0:
            # The product of gate and up is a third of the block, queries about half.
            inputs = max(inputs, group.active_parameters / width / 3)
        if group.kind == "experts" and group.experts:
            routes = max(routes, group.experts.count * group.experts.used * _ROUTE)
    merged = spec.tokenizer is not None and spec.tokenizer.model == "gpt2"
    entry = _MERGED_ENTRY if merged else _ENTRY
    kept = vocabulary(spec) * entry + spec.layers * _LAYER + _START
    rows = max(_STEP_ROWS, _STREAM_ROWS * parallel) - sequences(parallel)
    kept += rows * vocabulary(spec) * _FLOAT
    return kept + int(ubatch * (max(inputs, width) * _HALF + routes))


def device_compute_bytes(
    spec: ModelSpec,
    ubatch: int,
    n_ctx: int,
    *,
    head: bool = True,
    uploaded: int = 0,
    floats: float | None = None,
) -> int:
    """The compute buffer of a device that holds whole layers, with flash attention.

    What the CPU's buffer holds, and the prompt's embedded rows, which the CPU looks up and copies
    over. ``n_ctx`` is what one stream holds, ``ubatch`` at most what all do. ``head`` is false for
    a device without the output layer. ``uploaded`` is the largest matrix in RAM: a long prompt is
    computed with a copy of it on the device. ``floats`` is ``layer_floats(spec)`` for who asks
    often. Assumed, not measured: a device's kernels may ask for scratch memory of their own beyond
    it.
    """
    floats = layer_floats(spec) if floats is None else floats
    mask = cells(n_ctx) * _HALF
    body = _masks(spec) * mask + (floats + spec.width) * _FLOAT
    last = _head_bytes(spec, mask) if head else 0
    return int(max(ubatch * body + _states(spec), ubatch * last)) + ubatch * _INPUTS + uploaded


def host_compute_bytes(spec: ModelSpec, ubatch: int, n_ctx: int) -> int:
    """The host's buffer beside devices that hold all layers: inputs on their way there."""
    row = _masks(spec) * cells(n_ctx) * _HALF + spec.width * _FLOAT + _INPUTS
    return ubatch * row


def cells(n_ctx: int) -> int:
    """How many tokens the cache has room for when ``n_ctx`` are asked for."""
    return -(-max(n_ctx, 1) // _CELLS) * _CELLS


def layer_floats(spec: ModelSpec, layers: Iterable[int] | None = None, *, scores: int = 0) -> float:
    """32-bit numbers a token has in the compute buffer in the widest of ``layers`` (of all),
    masks and inputs left out.

    A matrix of ``width`` columns makes one number for each of its rows, and all results of a
    block live at once; so a block's parameters over the width are how many they are, whatever its
    matrices are called. ``scores`` are those of a token's attention, all heads together, where
    they are written down (without flash attention).
    """
    chosen = None if layers is None else frozenset(layers)
    blocks: dict[int, _Block] = {}
    for group in spec.groups:
        if group.layer >= 0 and (chosen is None or group.layer in chosen):
            blocks.setdefault(group.layer, _Block()).add(group, max(spec.width, 1))
    for rows in spec.caches:
        for layer in rows.layers:
            if layer in blocks:
                blocks[layer].cached += rows.elements
                blocks[layer].latent |= rows.kind == "latent"
    for layer, _ in spec.state_bytes:
        if layer in blocks:
            blocks[layer].recurrent = not blocks[layer].cached
    widest = (block.floats(spec.width, spec.heads, scores) for block in blocks.values())
    return max(widest, default=3.0 * spec.ffn_width + scores)


@dataclass(slots=True)
class _Block:
    """One layer: numbers a token that its matrices make, by kind. ``cached`` are those it keeps."""

    attention: float = 0.0
    dense: float = 0.0
    shared: float = 0.0
    routed: float = 0.0
    used: int = 1
    cached: int = 0
    latent: bool = False
    recurrent: bool = False

    def add(self, group: Group, width: int) -> None:
        made = group.active_parameters / width
        if group.kind in ("attention", "indexer"):
            self.attention += made
        elif group.kind == "dense_ffn":
            self.dense += made
        elif group.kind == "shared_experts":
            self.shared += made
        elif group.kind == "experts":
            self.routed += made
            self.used = group.experts.used if group.experts else 1

    def floats(self, width: int, heads: int, scores: int) -> float:
        made = max(0.0, self.attention - self.cached) / 2
        output = heads * self.cached if self.latent else made
        fed = max(self.dense, self._experts(width), self.shared + 2 * width)
        # Where attention's output lay is a hole that feed-forward's three tensors must fit to use.
        hole = output if fed > 3 * output else width
        return max(self._attention(output, scores), fed + hole, width) + _ROWS * width

    def _attention(self, output: float, scores: int) -> float:
        if self.latent:
            return _LATENT * output + scores
        if self.recurrent:
            return _RECURRENT * self.attention
        if scores:
            return self.attention + scores
        # Flash attention begins when keys and values are in the cache, and reuses their place.
        return max(2 * output, output + 1.5 * self.cached)

    def _experts(self, width: int) -> float:
        """Gate, up and their product; the outputs fit where gate and up were, or come on top."""
        outputs = self.used * width
        return self.routed + (outputs if self.routed * 2 / 3 < outputs else 0)


def sequences(parallel: int) -> int:
    """How many a plan for ``parallel`` streams leads to."""
    return parallel if parallel > 1 else SEQUENCES


def plain_attention(spec: ModelSpec, kv_type: KvType, parallel: int) -> bool:
    """Whether several streams on the host compute attention as matrix products.

    llama.cpp's flash attention sums on a CPU in one way for one token of one sequence, in another
    for a few and in a third for 64, partly in 16 bits: a text would hang on which others are
    computed beside it. Products sum alike for a stream among others and for the same one alone;
    their scores take room.
    """
    simple = all(rows.kind in ("full", "sliding") for rows in spec.caches)
    same = len({rows.elements for rows in spec.caches}) == 1
    return parallel > 1 and kv_type == "f16" and simple and same and not spec.state_bytes


def step_tokens(ubatch: int, n_ctx: int, parallel: int) -> int:
    """Tokens of the largest step: those of a micro-batch, as far as all streams hold them."""
    seats = sequences(parallel)
    return min(max(n_ctx * parallel, seats), max(ubatch, seats))


def _masks(spec: ModelSpec) -> int:
    """Layers with a window and layers without have a mask each."""
    return 1 + (len({bool(rows.window) for rows in spec.caches}) > 1)


def kv_by_layer(spec: ModelSpec, n_ctx: int, kv_type: KvType, parallel: int) -> dict[int, int]:
    """The cache by layer: ``n_ctx`` cells, rounded up, for each of ``parallel`` streams. Windows do
    not shorten it: it is kept whole so that it can be cut anywhere. Fixed states are kept for every
    sequence."""
    kept: dict[int, int] = {}
    for rows in spec.caches:
        count = -(-cells(n_ctx) // rows.tokens_per_row) * parallel
        for layer in rows.layers:
            kept[layer] = kept.get(layer, 0) + count * row_bytes(rows, kv_type)
    for layer, size in spec.state_bytes:
        kept[layer] = kept.get(layer, 0) + size * sequences(parallel)
    return kept


def _kv_by_layer(spec: ModelSpec, execution: Execution) -> dict[int, int]:
    return kv_by_layer(spec, execution.n_ctx, execution.kv_type, execution.parallel)


def _kv(spec: ModelSpec, execution: Execution, seats: Seats) -> dict[str, int]:
    found: dict[str, int] = {}
    for layer, size in _kv_by_layer(spec, execution).items():
        tier = seats.layer(layer) if execution.kv_on_device else "ram"
        found[tier] = found.get(tier, 0) + size
    return found


def _compute(spec: ModelSpec, execution: Execution, seats: Seats, uploaded: int) -> dict[str, int]:
    """By tier. A device's figures are those of ``device_compute_bytes``."""
    if spec.encoder:
        tiers = {seats.layer(layer) for layer in range(spec.layers + 1)}
        return dict.fromkeys(tiers, encoder.compute_bytes(spec, execution.ubatch))
    n_ctx, seated = execution.n_ctx, sequences(execution.parallel)
    tokens = step_tokens(execution.ubatch, n_ctx, execution.parallel)
    head = seats.layer(spec.layers)
    found = {
        card: device_compute_bytes(spec, tokens, n_ctx, head=head == card, uploaded=uploaded)
        for card in seats.cards
    }
    here = [layer for layer in range(spec.layers) if seats.layer(layer) == "ram"]
    if seats.cards and not here:
        found["ram"] = host_compute_bytes(spec, tokens, n_ctx)
        return found
    flash = execution.flash_attention
    mask = cells(n_ctx) * (_HALF if flash else _FLOAT)
    floats = layer_floats(spec, here, scores=0 if flash else spec.heads * cells(n_ctx))
    body = tokens * (_masks(spec) * mask + floats * _FLOAT)
    if not flash and _masks(spec) > 1:
        body += tokens * spec.width * _FLOAT
    body += _states(spec, seated)
    if flash and execution.kv_type == "f32":
        # Flash attention reads 16-bit numbers: one layer's are converted at a time.
        body += cells(n_ctx) * execution.parallel * _elements(spec) * _HALF
    rotated = execution.kv_type in ("q8_0", "q4_0")
    last = tokens * _head_bytes(spec, mask, rotated=rotated) if head == "ram" else 0
    if last and (not flash or rotated):
        last += tokens * spec.width * _FLOAT
    found["ram"] = int(max(body, last)) + tokens * _INPUTS
    return found


def _states(spec: ModelSpec, seated: int = SEQUENCES) -> int:
    """One layer's states of all sequences, gathered for a step."""
    return seated * max((size for _, size in spec.state_bytes), default=0)


def _head_bytes(spec: ModelSpec, mask: int, *, rotated: bool = False) -> int:
    """Of one token: its logits, and what lives beside them."""
    row = spec.width * _FLOAT
    # The place that a mask has left may be too large for one row and too small for two; whether
    # the allocator then takes the logits past it hangs on the order of the nodes. Rows that are
    # rotated for a quantized cache leave such places from half a row on.
    least = row // 2 if rotated else row
    hole = _masks(spec) * mask + 2 * row if least <= mask < 2 * row else 0
    return vocabulary(spec) * _FLOAT + _HEAD_ROWS * row + hole


def _elements(spec: ModelSpec) -> int:
    return max((rows.elements for rows in spec.caches), default=0)
