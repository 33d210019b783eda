"""Knows no other family: DeepSeek-V4, and the block that V4.1 shares with it.

One key-value head behind a window in every layer; layers of ratio 4 add compressed rows that an
indexer chooses from, those of another ratio compressed rows that are all read. Four residual
streams, no dense layers (https://huggingface.co/deepseek-ai/DeepSeek-V4-Flash, inference/model.py;
tensor counts and bytes agree with the released headers). A draft is one block (``mtp.0``), or with
``dspark_*`` fields one for each entry of ``compress_ratios`` beyond the layers. Its rings of window
rows are no part of ``caches``: they exist only while a draft runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from localrun.models.architecture import Caches, Storage
from localrun.models.fields import (
    EXPERTS_MAX,
    HEADS_MAX,
    LAYERS_MAX,
    VOCABULARY_MAX,
    WIDTH_MAX,
    Fields,
)
from localrun.models.layout import LayoutTensor
from localrun.models.mla import Indexer, float32, indexer_of, layers_of
from localrun.models.spec import CacheRows
from localrun.models.storage import I64
from localrun.models.storage_v4 import StorageV4, storage_v4

# Ratio 4 is the one whose windows overlap and whose rows an indexer chooses from.
OVERLAPPING = 4
_RATIO_MAX = 2**20
_FLOAT_BYTES = 4
# Rows of V4's cache: 448 F8_E4M3, 64 BF16, 7 scales and one byte of padding. An index key holds two
# e2m1 codes a byte and a scale for 32 numbers.
_BLOCK = 64
_KEY_GROUP = 32


@dataclass(frozen=True, slots=True)
class Sizes:
    """What every block of a model has in common."""

    width: int
    heads: int
    head: int
    rope: int
    q_rank: int
    groups: int
    o_rank: int
    inner: int
    shared: int
    streams: int
    vocabulary: int

    @property
    def mix(self) -> int:
        """Coefficients of one mixing: streams in, streams out, and one for each pair."""
        return self.streams * (self.streams + 2)

    def attention(self, name: str, storage: StorageV4) -> Iterator[LayoutTensor]:
        """The part without compressor and indexer."""
        rows, part = self.groups * self.o_rank, self.head * self.heads // self.groups
        yield from storage.linear(f"{name}.wq_a", self.q_rank, self.width)
        yield from storage.plain(f"{name}.q_norm.weight", self.q_rank)
        yield from storage.linear(f"{name}.wq_b", self.head * self.heads, self.q_rank)
        yield from storage.linear(f"{name}.wkv", self.head, self.width)
        yield from storage.plain(f"{name}.kv_norm.weight", self.head)
        yield from storage.linear(f"{name}.wo_a", rows, part)
        yield from storage.linear(f"{name}.wo_b", self.width, rows)
        yield float32(f"{name}.attn_sink", self.heads)

    def norms(self, name: str, storage: StorageV4) -> Iterator[LayoutTensor]:
        """Both norms of a block and the mixing of its streams."""
        for part in ("attn", "ffn"):
            yield from storage.plain(f"{name}.{part}_norm.weight", self.width)
            yield float32(f"{name}.hc_{part}_fn", self.mix, self.streams * self.width)
            yield float32(f"{name}.hc_{part}_base", self.mix)
            yield float32(f"{name}.hc_{part}_scale", 3)

    def experts(self, name: str, count: int, storage: StorageV4) -> Iterator[LayoutTensor]:
        """``name`` is the feed-forward module's."""
        yield from storage.plain(f"{name}.gate.weight", count, self.width)
        for matrix in ("w1", "w3"):
            path = f"{name}.experts.{{e}}.{matrix}"
            yield from storage.expert(path, self.inner, self.width, count)
        yield from storage.expert(f"{name}.experts.{{e}}.w2", self.width, self.inner, count)
        if self.shared:
            for matrix in ("w1", "w3"):
                path = f"{name}.shared_experts.{matrix}"
                yield from storage.linear(path, self.shared, self.width)
            yield from storage.linear(f"{name}.shared_experts.w2", self.width, self.shared)

    def head_mix(self, name: str) -> Iterator[LayoutTensor]:
        """What joins the streams before the head; ``name`` ends in a dot or is empty."""
        yield float32(f"{name}hc_head_fn", self.streams, self.streams * self.width)
        yield float32(f"{name}hc_head_base", self.streams)
        yield float32(f"{name}hc_head_scale", 1)


def sizes_of(config: Fields) -> Sizes:
    """Raises HeaderError for a field that is absent or that no model has."""
    inner = config.needed("moe_intermediate_size", most=WIDTH_MAX)
    sizes = Sizes(
        width=config.needed("hidden_size", most=WIDTH_MAX),
        heads=config.needed("num_attention_heads", most=HEADS_MAX),
        head=config.needed("head_dim", most=WIDTH_MAX),
        rope=config.needed("qk_rope_head_dim", most=WIDTH_MAX),
        q_rank=config.needed("q_lora_rank", most=WIDTH_MAX),
        groups=config.needed("o_groups", most=HEADS_MAX),
        o_rank=config.needed("o_lora_rank", most=WIDTH_MAX),
        inner=inner,
        shared=inner * (config.integer("n_shared_experts", least=0, most=EXPERTS_MAX) or 0),
        streams=config.needed("hc_mult", most=HEADS_MAX),
        vocabulary=config.needed("vocab_size", most=VOCABULARY_MAX),
    )
    if sizes.heads % sizes.groups:
        raise config.error("o_groups", f"{sizes.heads} heads are not a multiple of {sizes.groups}")
    return sizes


def ratios_of(config: Fields) -> tuple[int, ...]:
    """``compress_ratios``: one for each layer, and for draft blocks behind them."""
    layers = layers_of(config)
    ratios = config.integers("compress_ratios", most=_RATIO_MAX)
    if ratios is None:
        raise config.absent("compress_ratios")
    if not layers <= len(ratios) <= layers + LAYERS_MAX:
        raise config.error("compress_ratios", f"has {len(ratios)} entries for {layers} layers")
    if any(ratios[layers:]):
        raise config.error("compress_ratios", f"draft blocks behind layer {layers} are not 0")
    return ratios


def layout(config: Fields, storage: Storage) -> Iterator[LayoutTensor]:
    """Raises HeaderError for a field that is absent or that no model has."""
    stored = storage_v4(config, storage)
    sizes, ratios, layers = sizes_of(config), ratios_of(config), layers_of(config)
    indexer = indexer_of(config) if OVERLAPPING in ratios else None
    experts = config.needed("n_routed_experts", most=EXPERTS_MAX)
    used = config.needed("num_experts_per_tok", most=experts)
    hashed = config.integer("num_hash_layers", least=0, most=layers) or 0
    yield from stored.plain("embed.weight", sizes.vocabulary, sizes.width)
    for layer, ratio in enumerate(ratios[:layers]):
        name = f"layers.{layer}"
        yield from _block(name, sizes, experts, stored)
        if ratio:
            yield from _compressor(f"{name}.attn.compressor", sizes, sizes.head, ratio, stored)
        if indexer and ratio == OVERLAPPING:
            yield from _indexer(f"{name}.attn.indexer", sizes, indexer, stored)
        if layer < hashed:
            shape = (sizes.vocabulary, used)
            yield LayoutTensor(f"{name}.ffn.gate.tid2eid", shape, I64)
        else:
            yield float32(f"{name}.ffn.gate.bias", experts)
    yield from stored.plain("norm.weight", sizes.width)
    yield from sizes.head_mix("")
    if not config.flag("tie_word_embeddings"):
        yield from stored.plain("head.weight", sizes.vocabulary, sizes.width)
    yield from _draft(config, sizes, len(ratios) - layers, stored)


def _block(name: str, sizes: Sizes, experts: int, stored: StorageV4) -> Iterator[LayoutTensor]:
    yield from sizes.norms(name, stored)
    yield from sizes.attention(f"{name}.attn", stored)
    yield from sizes.experts(f"{name}.ffn", experts, stored)


def _compressor(
    name: str, sizes: Sizes, head: int, ratio: int, stored: StorageV4
) -> Iterator[LayoutTensor]:
    rows = _compressed_width(head, ratio)
    yield float32(f"{name}.ape", ratio, rows)
    yield from stored.plain(f"{name}.wkv.weight", rows, sizes.width)
    yield from stored.plain(f"{name}.wgate.weight", rows, sizes.width)
    yield from stored.plain(f"{name}.norm.weight", head)


def _compressed_width(head: int, ratio: int) -> int:
    return 2 * head if ratio == OVERLAPPING else head


def _indexer(
    name: str, sizes: Sizes, indexer: Indexer, stored: StorageV4
) -> Iterator[LayoutTensor]:
    yield from stored.linear(f"{name}.wq_b", indexer.heads * indexer.head, sizes.q_rank)
    yield from stored.plain(f"{name}.weights_proj.weight", indexer.heads, sizes.width)
    yield from _compressor(f"{name}.compressor", sizes, indexer.head, OVERLAPPING, stored)


def _draft(config: Fields, sizes: Sizes, extra: int, stored: StorageV4) -> Iterator[LayoutTensor]:
    spark = config.values.get("dspark_block_size") is not None
    one = config.integer("num_nextn_predict_layers", least=0, most=LAYERS_MAX) or 0
    stages, width = extra if spark else one, sizes.width
    experts = config.needed("n_routed_experts", most=EXPERTS_MAX)
    for stage in range(stages):
        name = f"mtp.{stage}"
        yield from _block(name, sizes, experts, stored)
        yield float32(f"{name}.ffn.gate.bias", experts)
        if spark and stage == 0:
            yield from spark_entry(config, name, width, stored)
        if not spark:
            yield from stored.linear(f"{name}.e_proj", width, width)
            yield from stored.linear(f"{name}.h_proj", width, width)
            yield from stored.plain(f"{name}.enorm.weight", width)
            yield from stored.plain(f"{name}.hnorm.weight", width)
        if not spark or stage == stages - 1:
            yield from stored.plain(f"{name}.norm.weight", width)
            yield from sizes.head_mix(f"{name}.")
        if spark and stage == stages - 1:
            pair = ("markov_w1", "markov_w2")
            yield from spark_exit(config, name, sizes, stored, pair)


def spark_entry(config: Fields, name: str, width: int, stored: StorageV4) -> Iterator[LayoutTensor]:
    """What takes the captured layers into the draft's first block."""
    targets = config.integers("dspark_target_layer_ids", most=LAYERS_MAX)
    if not targets:
        raise config.error("dspark_target_layer_ids", "names no layer")
    yield from stored.linear(f"{name}.main_proj", width, len(targets) * width)
    yield from stored.plain(f"{name}.main_norm.weight", width)


def spark_exit(
    config: Fields, name: str, sizes: Sizes, stored: StorageV4, pair: tuple[str, str]
) -> Iterator[LayoutTensor]:
    """The heads behind the draft's last block."""
    rank = config.needed("dspark_markov_rank", most=WIDTH_MAX)
    for part in pair:
        path = f"{name}.markov_head.{part}.weight"
        yield from stored.plain(path, sizes.vocabulary, rank)
    yield from stored.plain(f"{name}.confidence_head.proj.weight", 1, sizes.width + rank)


def key_bytes(head: int) -> int:
    """Of one index key of ``head`` numbers."""
    return -(-head // 2) + -(-head // _KEY_GROUP)


def caches(config: Fields) -> Caches:
    """Raises HeaderError for a field that is absent or that no model has."""
    layers = layers_of(config)
    ratios = ratios_of(config)[:layers]
    head = config.needed("head_dim", most=WIDTH_MAX)
    rope = config.needed("qk_rope_head_dim", most=head)
    window = config.needed("sliding_window", most=2**31 - 1)
    scales = -(-(head - rope) // _BLOCK)
    row = head - rope + 2 * rope + scales + scales % 2
    every = tuple(range(layers))
    rows = [CacheRows("sliding", every, head, window=window, native_bytes=row)]
    states: list[tuple[int, int]] = []
    indexer = indexer_of(config) if OVERLAPPING in ratios else None
    for ratio in sorted(set(ratios) - {0}):
        chosen = tuple(layer for layer in every if ratios[layer] == ratio)
        top = indexer.top if indexer and ratio == OVERLAPPING else 0
        rows.append(CacheRows("compressed", chosen, head, ratio, read_rows=top, native_bytes=row))
        tail = _tail(head, ratio)
        if indexer and ratio == OVERLAPPING:
            size = key_bytes(indexer.head)
            rows.append(CacheRows("index", chosen, indexer.head, ratio, native_bytes=size))
            tail += _tail(indexer.head, ratio)
        states += [(layer, tail) for layer in chosen]
    return Caches(tuple(rows), tuple(sorted(states)))


def _tail(head: int, ratio: int) -> int:
    """Of the open group of a compressor, and the one before it where they overlap: two floats a
    channel and token."""
    tokens = 2 * ratio if ratio == OVERLAPPING else ratio
    return tokens * _compressed_width(head, ratio) * 2 * _FLOAT_BYTES
