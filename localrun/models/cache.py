"""Knows no machine: the bytes that a sequence keeps and reads, by context and KV type."""

from __future__ import annotations

from typing import Final, Literal

from localrun.models.spec import CacheRows, ModelSpec

KvType = Literal["native", "f32", "f16", "bf16", "q8_0", "q4_0"]
# Numbers in a block and its bytes.
_BLOCKS: Final = {
    "f32": (1, 4),
    "f16": (1, 2),
    "bf16": (1, 2),
    "q8_0": (32, 34),
    "q4_0": (32, 18),
}


def row_bytes(rows: CacheRows, kv_type: KvType) -> int:
    """One row in one layer; ``native`` is 16 bits where the release has no format of its own."""
    if kv_type == "native":
        return rows.native_bytes or 2 * rows.elements
    count, size = _BLOCKS[kv_type]
    return -(-rows.elements // count) * size


def by_layer(spec: ModelSpec, n_ctx: int, kv_type: KvType) -> dict[int, int]:
    """Layer → the bytes it keeps of one sequence of ``n_ctx`` tokens."""
    kept: dict[int, int] = {}
    for rows in spec.caches:
        for layer in rows.layers:
            size = rows.rows_kept(n_ctx) // len(rows.layers) * row_bytes(rows, kv_type)
            kept[layer] = kept.get(layer, 0) + size
    for layer, size in spec.state_bytes:
        kept[layer] = kept.get(layer, 0) + size
    return kept


def cache_bytes(spec: ModelSpec, n_ctx: int, kv_type: KvType) -> int:
    """All rows and fixed states of one sequence of ``n_ctx`` tokens."""
    return sum(by_layer(spec, n_ctx, kv_type).values())


def growth(spec: ModelSpec, kv_type: KvType) -> float:
    """Bytes a token at unbounded context: windows and fixed states do not grow."""
    return sum(
        len(rows.layers) * row_bytes(rows, kv_type) / rows.tokens_per_row
        for rows in spec.caches
        if not rows.window
    )


def read_bytes(spec: ModelSpec, depth: int, kv_type: KvType) -> int:
    """What one token decoded after ``depth`` tokens reads of the cache, states included."""
    states = sum(size for _, size in spec.state_bytes)
    return states + sum(rows.rows_read(depth) * row_bytes(rows, kv_type) for rows in spec.caches)
