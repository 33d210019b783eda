"""Knows no family: the parts that most decoders share, and the caches of plain attention.

Names are those of the transformers library's checkpoints
(https://github.com/huggingface/transformers, ``models/llama/modeling_llama.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

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
from localrun.models.spec import CacheKind, CacheRows


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes that every layer of a decoder shares. ``head`` is one head's width."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head: int

    @classmethod
    def of(cls, config: Fields) -> Self:
        """
        Raises:
            AbsentError: a field is absent.
            HeaderError: a number that no model has.
        """
        layers = config.needed("num_hidden_layers", most=LAYERS_MAX)
        width = config.needed("hidden_size", most=WIDTH_MAX)
        heads = _same(config, "num_attention_heads", layers)
        if not heads:
            raise config.absent("num_attention_heads")
        kv_heads = _same(config, "num_key_value_heads", layers) or heads
        head = config.integer("head_dim", most=WIDTH_MAX) or width // heads
        if not head:
            raise config.error("num_attention_heads", f"{heads} heads in a width of {width}")
        return cls(layers, width, heads, kv_heads, head)

    def rows(self, layers: Sequence[int], window: int = 0) -> CacheRows:
        """Keys and values of ``layers``; of the last ``window`` tokens, 0 for all."""
        kind: CacheKind = "sliding" if window else "full"
        return CacheRows(kind, tuple(layers), 2 * self.kv_heads * self.head, window=window)


def _same(config: Fields, key: str, layers: int) -> int:
    """One number for all layers, whether written once or for each; 0 where it is absent."""
    found = set(config.per_layer(key, layers, most=HEADS_MAX) or ())
    if len(found) > 1 or (isinstance(config.values.get(key), tuple | list) and 0 in found):
        raise config.error(key, "differs by layer, in a family where it does not")
    return found.pop() if found else 0


def caches(shape: Shape, windowed: Sequence[bool], window: int | None) -> Caches:
    """Plain attention; the layers that are true in ``windowed`` see ``window`` tokens."""
    window = window or 0
    near = [layer for layer, short in enumerate(windowed) if short and window]
    far = [layer for layer in range(shape.layers) if layer not in set(near)]
    found = [shape.rows(far)] if far else []
    if near:
        found.append(shape.rows(near, window))
    return Caches(tuple(found))


def root(
    config: Fields, storage: Storage, prefix: str = "model.", head: str = "lm_head.weight"
) -> Iterator[LayoutTensor]:
    """Input embedding, last norm and, where it is not the embedding again, the output head."""
    width = config.needed("hidden_size", most=WIDTH_MAX)
    vocabulary = config.needed("vocab_size", most=VOCABULARY_MAX)
    yield from storage.plain(f"{prefix}embed_tokens.weight", vocabulary, width)
    yield from storage.plain(f"{prefix}norm.weight", width)
    if not config.flag("tie_word_embeddings"):
        yield from storage.plain(head, vocabulary, width)


def norms(at: str, width: int, storage: Storage, *names: str) -> Iterator[LayoutTensor]:
    for name in names:
        yield from storage.plain(f"{at}{name}.weight", width)


def projection(
    name: str, rows: int, columns: int, storage: Storage, bias: bool = False
) -> Iterator[LayoutTensor]:
    yield from storage.linear(name, rows, columns)
    if bias:
        yield from storage.plain(f"{name}.bias", rows)


def attention(
    at: str,
    shape: Shape,
    storage: Storage,
    *,
    bias: bool = False,
    output_bias: bool = False,
    gated: bool = False,
) -> Iterator[LayoutTensor]:
    """Queries, keys, values and output; a ``gated`` one has a gate beside each query."""
    at = f"{at}self_attn."
    queries = shape.heads * shape.head
    keys = shape.kv_heads * shape.head
    yield from projection(f"{at}q_proj", queries * (1 + gated), shape.width, storage, bias)
    yield from projection(f"{at}k_proj", keys, shape.width, storage, bias)
    yield from projection(f"{at}v_proj", keys, shape.width, storage, bias)
    yield from projection(f"{at}o_proj", shape.width, queries, storage, output_bias)


def head_norms(at: str, queries: int, keys: int, storage: Storage) -> Iterator[LayoutTensor]:
    yield from storage.plain(f"{at}self_attn.q_norm.weight", queries)
    yield from storage.plain(f"{at}self_attn.k_norm.weight", keys)


def feed_forward(
    at: str, width: int, inner: int, storage: Storage, *, copies: int = 1
) -> Iterator[LayoutTensor]:
    """A gated feed-forward network; ``at`` ends in a dot and holds ``{e}`` for its copies."""
    yield from storage.linear(f"{at}gate_proj", inner, width, copies=copies)
    yield from storage.linear(f"{at}up_proj", inner, width, copies=copies)
    yield from storage.linear(f"{at}down_proj", width, inner, copies=copies)


def mixture(
    config: Fields, at: str, width: int, storage: Storage, *, count_key: str, inner_key: str
) -> Iterator[LayoutTensor]:
    """A router and the experts it chooses from; ``at`` ends in a dot."""
    count = config.needed(count_key, most=EXPERTS_MAX)
    used = config.needed("num_experts_per_tok", most=EXPERTS_MAX)
    if used > count:
        raise config.error("num_experts_per_tok", f"{used} of {count} experts cannot be used")
    inner = config.needed(inner_key, most=WIDTH_MAX)
    yield from storage.plain(f"{at}gate.weight", count, width)
    yield from feed_forward(f"{at}experts.{{e}}.", width, inner, storage, copies=count)
