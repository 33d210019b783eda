"""Knows no other family than Qwen3-Next: Qwen3.8, with its n-gram table and hyper-connections.

https://github.com/huggingface/transformers, ``models/qwen4_exp``: gated delta nets, every fourth
layer attention through an index, and one table of hashed n-grams (``ple``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from localrun.formats.types import SAFETENSORS_TYPES
from localrun.models import blocks, towers
from localrun.models.architecture import Caches, Storage
from localrun.models.architectures.qwen3_next import draft, experts
from localrun.models.delta import DeltaNet, linear_layers
from localrun.models.fields import HEADS_MAX, LAYERS_MAX, WIDTH_MAX, Fields
from localrun.models.layout import LayoutTensor
from localrun.models.spec import CacheRows

_I64 = SAFETENSORS_TYPES["I64"]
_NGRAM_MAX = 16
_HASHES_MAX = 256
_ROWS_MAX = 2**31 - 1
_PARTS_MAX = 65_536
_STREAMS_MAX = 64
_STATE_BYTES = 4
_TOKEN_BYTES = 8


@dataclass(frozen=True, slots=True)
class Table:
    """An n-gram table: one hash a head, ``rows_read`` in all, each into rows of its own."""

    layers: tuple[int, ...]
    width: int
    ngram: int
    rows_read: int
    base: int
    divisor: int
    parts: int
    kernel: int

    @classmethod
    def of(cls, config: Fields, shape: blocks.Shape) -> Self | None:
        """None where no layer has one.

        Raises:
            HeaderError: a field is absent or holds what no model has.
        """
        # The release counts layers from 1, a GGUF file from 0 and under another name.
        layers = config.integers("ple_layers", most=shape.layers - 1)
        if layers is None:
            counted = config.integers("ple_layer_ids", least=1, most=shape.layers) or ()
            layers = tuple(layer - 1 for layer in counted)
        if not layers:
            return None
        ngram = config.needed("ngram_size", least=2, most=_NGRAM_MAX)
        hashes = (ngram - 1) * config.needed("heads_per_ngram", most=HEADS_MAX)
        if hashes * len(layers) > _HASHES_MAX:
            raise config.error("heads_per_ngram", f"makes {hashes * len(layers)} tables")
        return cls(
            layers=layers,
            width=config.integer("ple_embed_dim", most=WIDTH_MAX) or shape.width,
            ngram=ngram,
            rows_read=hashes,
            base=config.integer("ngram_vocab_size_base", least=2, most=_ROWS_MAX) or 20_000_000,
            divisor=config.integer("make_ngram_vocab_size_divisible_by", most=_ROWS_MAX) or 128,
            parts=config.integer("split_ngram_parts", most=_PARTS_MAX) or 512,
            kernel=config.integer("ple_conv_kernel_size", most=1024) or 4,
        )

    def rows(self, place: int) -> int:
        """Of the table of the ``place``-th layer that has one: a prime for each hash, padded."""
        size, total = self.base - 1, 0
        for number in range((place + 1) * self.rows_read):
            size = _prime_after(size)
            total += size if number >= place * self.rows_read else 0
        return -(-total // self.divisor) * self.divisor

    def tensors(
        self, at: str, layer: int, width: int, streams: int, storage: Storage
    ) -> Iterator[LayoutTensor]:
        place = self.layers.index(layer)
        rows, at = self.rows(place), f"{at}ple."
        table = f"{at}ple_embedding."
        each = -(-rows // self.parts)
        for part in range(-(-rows // each)):
            count = min(each, rows - part * each)
            yield from storage.plain(
                f"{table}ngram_embedding.shard_{part}.weight", count, self.width // self.rows_read
            )
        yield LayoutTensor(f"{table}layer_multipliers", (self.ngram,), _I64)
        yield LayoutTensor(f"{table}ngram_heads_vocab_sizes", (self.rows_read,), _I64)
        yield LayoutTensor(f"{table}ngram_heads_offsets", (self.rows_read,), _I64)
        yield from storage.linear(f"{at}key_proj", streams, self.width)
        yield from storage.linear(f"{at}value_proj", width, self.width)
        for name in ("norm_key", "norm_query", "norm_conv"):
            yield from storage.plain(f"{at}{name}.weight", streams)
        yield from storage.plain(f"{at}conv1d.weight", streams, 1, self.kernel)

    def state_bytes(self, streams: int) -> int:
        """The inputs of a convolution dilated by the n-gram's size, and the last token ids."""
        history = (self.kernel - 1) * self.ngram * streams * _STATE_BYTES
        return history + (self.ngram - 1) * _TOKEN_BYTES


def layout(config: Fields, storage: Storage) -> Iterator[LayoutTensor]:
    shape = blocks.Shape.of(config)
    net, table = DeltaNet.of(config), Table.of(config, shape)
    streams = shape.width * config.needed("hc_count", least=2, most=_STREAMS_MAX)
    nested = "model.language_model." if "text_config" in config.values else "model."
    yield from blocks.root(config, storage, nested)
    yield from _mixer(f"{nested}hyper_connection_mixer.", streams, config, storage)
    for layer, linear in enumerate(linear_layers(config, shape.layers)):
        at = f"{nested}layers.{layer}."
        for name in ("attn_hyper_connection", "mlp_hyper_connection"):
            yield from _mixer(f"{at}{name}.", streams, config, storage)
            yield from storage.plain(
                f"{at}{name}.block_inject_weight.weight", streams // shape.width, streams
            )
        if linear:
            yield from net.tensors(at, storage, fused=False)
        else:
            yield from _attention(at, shape, config, storage)
        if table and layer in table.layers:
            yield from table.tensors(at, layer, shape.width, streams, storage)
        yield from experts(f"{at}mlp.", shape.width, config, storage, merged=True)
    yield from draft(config, shape, storage)
    vision = config.mapping("vision_config")
    if vision is not None:
        yield from towers.qwen(vision, storage)


def _mixer(at: str, streams: int, config: Fields, storage: Storage) -> Iterator[LayoutTensor]:
    rank = config.needed("hc_lowrank", most=WIDTH_MAX)
    yield from storage.plain(f"{at}hc_norm.weight", streams)
    yield from storage.plain(f"{at}input_mix_weight_down.weight", rank, streams)
    yield from storage.plain(f"{at}input_mix_weight_up.weight", streams, rank)


def _attention(
    at: str, shape: blocks.Shape, config: Fields, storage: Storage
) -> Iterator[LayoutTensor]:
    bias = config.flag("attention_bias")
    yield from blocks.attention(at, shape, storage, bias=bias, output_bias=bias, gated=True)
    yield from blocks.head_norms(at, shape.head, shape.head, storage)
    if config.values.get("indexer_n_heads") is None:
        return
    head = config.needed("indexer_head_dim", most=WIDTH_MAX)
    heads = config.needed("indexer_n_heads", most=HEADS_MAX)
    keys = config.needed("indexer_kv_heads", most=HEADS_MAX)
    indexer = f"{at}self_attn.indexer."
    yield from storage.linear(f"{indexer}index_qk_proj", (heads + keys) * head, shape.width)
    yield from blocks.norms(indexer, head, storage, "q_layernorm", "k_layernorm")


def caches(config: Fields) -> Caches:
    """Index keys are kept for every token and pooled when they are read."""
    shape = blocks.Shape.of(config)
    net, table = DeltaNet.of(config), Table.of(config, shape)
    linear = linear_layers(config, shape.layers)
    states = {layer: net.state_bytes for layer, each in enumerate(linear) if each}
    if table:
        streams = shape.width * config.needed("hc_count", least=2, most=_STREAMS_MAX)
        for layer in table.layers:
            states[layer] = states.get(layer, 0) + table.state_bytes(streams)
    full = tuple(layer for layer, each in enumerate(linear) if not each)
    return Caches(
        tuple(_rows(config, shape, full)) if full else (),
        tuple(sorted(states.items())),
        table_rows=table.rows_read if table else 0,
    )


def _rows(config: Fields, shape: blocks.Shape, full: tuple[int, ...]) -> Iterator[CacheRows]:
    if config.values.get("indexer_n_heads") is None:
        yield shape.rows(full)
        return
    budget = config.needed("indexer_budget", most=_ROWS_MAX)
    ratio = config.integer("indexer_compress_ratio", most=LAYERS_MAX) or 1
    elements = 2 * shape.kv_heads * shape.head
    # The tail of an unfinished block is read beside the blocks that the index chose.
    yield CacheRows("full", full, elements, read_rows=budget + ratio - 1)
    yield CacheRows("index", full, config.needed("indexer_head_dim", most=WIDTH_MAX))


def _prime_after(number: int) -> int:
    number += 1
    while not _is_prime(number):
        number += 1
    return number


def _is_prime(number: int) -> bool:
    """Miller-Rabin with bases that decide every number below 3,215,031,751."""
    small = (2, 3, 5, 7)
    if number < 2 or any(number % prime == 0 for prime in small):
        return number in small
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in small:
        power = pow(base, odd, number)
        if power in (1, number - 1):
            continue
        if all((power := power * power % number) != number - 1 for _ in range(twos - 1)):
            return False
    return True
