"""Knows no other family: DeepSeek-V4.1, V4's block with shared caches and Engram tables.

Few layers own compressed rows and index keys; those behind them read the latest owner's, and some
choose anew among an owner's candidates. Engram layers look rows up by token n-grams
(https://huggingface.co/deepseek-ai/DeepSeek-V4.1-Flash, inference/model.py and engram.py; tensor
count and bytes agree with the released headers). The draft's rings of window rows are no part of
``caches``: they exist only while a draft runs.
"""

from __future__ import annotations

from collections.abc import Iterator

from localrun.models.architecture import Caches, Storage
from localrun.models.architectures.deepseek_v4 import (
    Sizes,
    key_bytes,
    ratios_of,
    sizes_of,
    spark_entry,
    spark_exit,
)
from localrun.models.fields import (
    CONTEXT_MAX,
    EXPERTS_MAX,
    HEADS_MAX,
    LAYERS_MAX,
    WIDTH_MAX,
    Fields,
)
from localrun.models.layout import LayoutTensor
from localrun.models.mla import float32, indexer_of, layers_of
from localrun.models.spec import CacheRows
from localrun.models.storage_v4 import StorageV4, storage_v4

_TABLE_ROWS_MAX = 2**40
_NGRAM_MAX = 64
_FLOAT_BYTES = 4
# A window row holds F8_E4M3 with a scale for 32 numbers, a compressed row two e2m1 codes a byte
# with a scale for 16.
_WINDOW_GROUP = 32
_ROW_GROUP = 16


def layout(config: Fields, storage: Storage) -> Iterator[LayoutTensor]:
    """Raises HeaderError for a field that is absent or that no model has."""
    stored = storage_v4(config, storage)
    sizes, ratios, layers = sizes_of(config), ratios_of(config), layers_of(config)
    experts = config.needed("n_routed_experts", most=EXPERTS_MAX)
    owners = _sources(config, "kv_source_layer_ids", ratios[:layers])
    choosers = _sources(config, "index_source_layer_ids", ratios[:layers])
    tables = _tables(config, layers)
    yield from stored.plain("embed.weight", sizes.vocabulary, sizes.width)
    for layer in range(layers):
        name = f"layers.{layer}"
        yield from _block(name, sizes, experts, stored)
        if layer in owners:
            yield from _owner(f"{name}.attn", config, sizes, ratios[layer], stored)
        if layer in choosers:
            yield from _chooser(f"{name}.attn.indexer", config, sizes, stored)
        if layer in tables:
            yield from _engram(f"{name}.engram", config, sizes, tables[layer], stored)
    yield from stored.plain("norm.weight", sizes.width)
    if not config.flag("tie_word_embeddings"):
        yield from stored.plain("head.weight", sizes.vocabulary, sizes.width)
    yield from _draft(config, sizes, stored)
    vision = config.mapping("vision_config")
    if vision:
        yield from _vision(vision, sizes.width, stored)


def _sources(config: Fields, key: str, ratios: tuple[int, ...]) -> tuple[int, ...]:
    """Layers that own something others read, in order; all of them compress."""
    ids = config.integers(key, most=LAYERS_MAX)
    if ids is None:
        raise config.absent(key)
    if not ids:
        raise config.error(key, "names no layer")
    for before, layer in zip((-1, *ids), ids, strict=False):
        if layer <= before:
            raise config.error(key, f"layer {layer} follows layer {before}")
        if layer >= len(ratios) or not ratios[layer]:
            raise config.error(key, f"layer {layer} is not one that compresses")
    return ids


def _tables(config: Fields, layers: int) -> dict[int, int]:
    """Rows of the n-gram table of each layer that has one."""
    ids = config.integers("engram_layer_ids", most=LAYERS_MAX) or ()
    rows = config.integers("engram_num_embeddings", least=1, most=_TABLE_ROWS_MAX) or ()
    if len(ids) != len(rows):
        raise config.error(
            "engram_num_embeddings", f"has {len(rows)} entries for {len(ids)} layers"
        )
    if len(set(ids)) != len(ids) or any(layer >= layers for layer in ids):
        raise config.error("engram_layer_ids", f"does not name {len(ids)} of {layers} layers")
    return dict(zip(ids, rows, strict=True))


def _block(name: str, sizes: Sizes, experts: int, stored: StorageV4) -> Iterator[LayoutTensor]:
    yield from sizes.norms(name, stored)
    yield from sizes.attention(f"{name}.attn", stored)
    yield from sizes.experts(f"{name}.ffn", experts, stored)
    yield float32(f"{name}.ffn.gate.bias", experts)
    yield float32(f"{name}.ffn.gate.bias_vl", experts)


def _owner(
    name: str, config: Fields, sizes: Sizes, ratio: int, stored: StorageV4
) -> Iterator[LayoutTensor]:
    head = config.needed("index_head_dim", most=WIDTH_MAX)
    yield from stored.plain(f"{name}.compressor.wkv.weight", sizes.head, sizes.width)
    yield from stored.plain(f"{name}.compressor.norm.weight", sizes.head)
    if ratio > 1:
        yield from stored.plain(f"{name}.compressor.wgate.weight", sizes.head, sizes.width)
    yield from stored.plain(f"{name}.indexer.wk.weight", head, sizes.head)
    yield from stored.plain(f"{name}.indexer.k_norm.weight", head)


def _chooser(name: str, config: Fields, sizes: Sizes, stored: StorageV4) -> Iterator[LayoutTensor]:
    indexer = indexer_of(config)
    yield from stored.linear(f"{name}.wq_b", indexer.heads * indexer.head, sizes.q_rank)
    yield from stored.plain(f"{name}.weights_proj.weight", indexer.heads, sizes.width)


def _found(config: Fields) -> int:
    """Rows that a token finds in each table: one a head for every length of n-gram from 2."""
    longest = config.needed("engram_max_ngram_size", least=2, most=_NGRAM_MAX)
    return (longest - 1) * config.needed("engram_n_heads", most=HEADS_MAX)


def _engram(
    name: str, config: Fields, sizes: Sizes, rows: int, stored: StorageV4
) -> Iterator[LayoutTensor]:
    head = config.needed("engram_head_dim", most=WIDTH_MAX)
    yield from stored.table(f"{name}.embed", rows, head)
    # A key for each stream and one value for all of them.
    outputs = (sizes.streams + 1) * sizes.width
    yield from stored.linear(f"{name}.wkv", outputs, _found(config) * head)
    yield from stored.plain(f"{name}.q_weight", sizes.streams, sizes.width)
    yield from stored.plain(f"{name}.k_weight", sizes.streams, sizes.width)


def _draft(config: Fields, sizes: Sizes, stored: StorageV4) -> Iterator[LayoutTensor]:
    stages = config.integer("num_nextn_predict_layers", least=0, most=LAYERS_MAX) or 0
    for stage in range(stages):
        name = f"mtp.{stage}"
        experts = config.needed("dspark_n_routed_experts", most=EXPERTS_MAX)
        yield from _block(name, sizes, experts, stored)
        if stage == 0:
            yield from spark_entry(config, name, sizes.width, stored)
        if stage == stages - 1:
            yield from stored.plain(f"{name}.norm.weight", sizes.width)
            yield from spark_exit(config, name, sizes, stored, ("embed", "head"))


def _vision(vision: Fields, out: int, stored: StorageV4) -> Iterator[LayoutTensor]:
    width = vision.needed("hidden_size", most=WIDTH_MAX)
    inner = vision.needed("intermediate_size", most=WIDTH_MAX)
    patch = vision.needed("patch_size", most=4096)
    side = vision.needed("downsample_ratio", most=4096)

    def biased(name: str, rows: int, columns: int) -> Iterator[LayoutTensor]:
        yield from stored.plain(f"{name}.weight", rows, columns)
        yield from stored.plain(f"{name}.bias", rows)

    yield from biased("vision.patch_embed.proj", width, 3 * patch * patch)
    for layer in range(layers_of(vision)):
        name = f"vision.blocks.{layer}"
        yield from stored.plain(f"{name}.norm1.weight", width)
        yield from stored.plain(f"{name}.norm2.weight", width)
        yield from biased(f"{name}.attn.wqkv", 3 * width, width)
        yield from biased(f"{name}.attn.wo", width, width)
        yield from stored.plain(f"{name}.mlp.w1.weight", 2 * inner, width)
        yield from stored.plain(f"{name}.mlp.w2.weight", width, inner)
    yield from stored.plain("vision.norm.weight", width)
    yield from biased("aligner.w1", out, side * side * width)
    yield from biased("aligner.w2", out, out)
    for part in ("start", "end", "newline"):
        yield from stored.plain(f"image_{part}", out)


def caches(config: Fields) -> Caches:
    """Layers behind the last owner keep only windows, so a prompt need not pass them.

    Raises:
        HeaderError: a field is absent or holds what no model has.
    """
    layers = layers_of(config)
    ratios = ratios_of(config)[:layers]
    owners = _sources(config, "kv_source_layer_ids", ratios)
    choosers = _sources(config, "index_source_layer_ids", ratios)
    head = config.needed("head_dim", most=WIDTH_MAX)
    window = config.needed("sliding_window", most=CONTEXT_MAX)
    size = head + -(-head // _WINDOW_GROUP)
    rows = [
        CacheRows("sliding", tuple(range(layers)), head, window=window, native_bytes=size),
    ]
    states: list[tuple[int, int]] = []
    for owner, end in zip(owners, (*owners[1:], layers), strict=True):
        if any(ratios[layer] != ratios[owner] for layer in range(owner, end)):
            raise config.error("compress_ratios", f"differ in layers {owner} to {end - 1}")
        choosing = sum(owner < layer < end for layer in choosers)
        rows += _owned(config, range(owner, end), ratios[owner], choosing)
        if ratios[owner] > 1:
            states.append((owner, 2 * ratios[owner] * head * _FLOAT_BYTES))
    seen = owners[-1] + 1
    found = _found(config) if _tables(config, layers) else 0
    return Caches(tuple(rows), tuple(states), seen if seen < layers else 0, found)


def _owned(config: Fields, layers: range, ratio: int, choosing: int) -> Iterator[CacheRows]:
    """What the first of ``layers`` keeps and all of them read; ``choosing`` others search it."""
    indexer = indexer_of(config)
    head = config.needed("head_dim", most=WIDTH_MAX)
    yield CacheRows(
        "compressed",
        (layers.start,),
        head,
        ratio,
        read_rows=indexer.top,
        native_bytes=-(-head // 2) + -(-head // _ROW_GROUP),
        readers=len(layers),
    )
    candidates = 0
    if config.values.get("candidate_source_layer_id") == layers.start:
        blocks = config.needed("candidate_topk_blocks", most=CONTEXT_MAX)
        candidates = blocks * config.needed("candidate_block_size", most=CONTEXT_MAX)
    yield CacheRows(
        "index",
        (layers.start,),
        indexer.head,
        ratio,
        native_bytes=key_bytes(indexer.head),
        readers=1 + choosing,
        reader_rows=candidates,
    )
