"""Knows no clock: a V4.1 of a few wide layers in memory, and the n-gram tables that it looks up.

Its dense part is numbers from one pool of random ones; its tables are as the release has them: 24
rows of 264 bytes a token and layer, one tensor, found by the release's own hash.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from synthetic_configs import base

from localrun.backends.torch.architectures import deepseek_v41
from localrun.backends.torch.architectures.deepseek_v41 import DeepseekV41
from localrun.backends.torch.matrices.table import Table
from localrun.backends.torch.model import Setup
from localrun.backends.torch.numerics import FAST
from localrun.backends.torch.tensors import Tensors
from localrun.formats.extent import Extent
from localrun.formats.header import TensorInfo
from localrun.formats.reader import FileSource
from localrun.formats.types import GGUF_TYPES
from localrun.models.bare import Bare, flat
from localrun.models.storage import F32, Plain
from localrun.releases.engram import Engram, multipliers, primes_from
from localrun.releases.engram_rows import NativeRows
from localrun.releases.release import Release
from localrun.releases.stored.part import Part
from localrun.releases.stored.plain import Integers
from localrun.releases.weights import Bytes, Floats, Weight

LAYERS = (1, 14)
WIDTH, ROW = 256, 264
HEADS, NGRAM = 8, 4
VOCABULARY = 8192
CPU = torch.device("cpu")
_I8 = next(kind for kind in GGUF_TYPES.values() if kind.name == "I8")
_POOL = np.random.default_rng(0).standard_normal(1 << 22).astype(np.float32)
_SLAB = 64 << 20
_DEPTH = 20
_CHANGES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 1024,
    "num_hidden_layers": _DEPTH,
    "compress_ratios": [0, 0, *(2 for _ in range(9)), *(1 for _ in range(9))],
    "kv_source_layer_ids": [2, 11],
    "index_source_layer_ids": [2, 11, 15],
    "candidate_source_layer_id": 11,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "num_nextn_predict_layers": 0,
    "engram_layer_ids": list(LAYERS),
    "engram_n_heads": HEADS,
    "engram_head_dim": WIDTH,
    "engram_max_ngram_size": NGRAM,
}
_LEFT = ("dspark_", "quantization_config", "expert_dtype")


@dataclass(frozen=True)
class Drawn:
    """A matrix out of the pool, or ones where it is a norm's."""

    name: str
    shape: tuple[int, ...]
    stored: str = "F32"
    read_bytes: int = 0
    place: tuple[int, int] = (0, 0)
    step: int = 1

    def ranges(self, start: int, stop: int) -> Iterator[Extent]:
        yield from ()

    def rows(self, start: int, stop: int) -> Floats:
        wide = self.shape[-1] if self.shape else 1
        if "norm" in self.name:
            return np.ones((stop - start, wide), np.float32)
        first = (crc32(self.name.encode()) + start * wide) % _POOL.size
        drawn = np.take(_POOL, np.arange(first, first + (stop - start) * wide), mode="wrap")
        return (drawn * np.float32(wide**-0.5)).reshape(stop - start, wide)

    def blocks(self, type: str, start: int, stop: int) -> Bytes | None:
        return None


def constants(table_bytes: int) -> Engram:
    """Of tables that are about ``table_bytes`` large each."""
    each = (NGRAM - 1) * HEADS
    stream = primes_from(table_bytes // ROW // each)
    primes = tuple(tuple(islice(stream, each)) for _ in LAYERS)
    factors = tuple(multipliers(layer, VOCABULARY, NGRAM) for layer in LAYERS)
    classes = tuple(range(VOCABULARY))
    return Engram(LAYERS, NGRAM, HEADS, WIDTH, 2, classes, primes, factors)


def write_table(path: Path, rows: int, seed: int) -> None:
    """Random codes and scales on the disk, none of them no number."""
    source = np.random.default_rng(seed)
    with path.open("wb") as file:
        for start in range(0, rows, _SLAB // ROW):
            count = min(_SLAB // ROW, rows - start)
            made = np.frombuffer(source.bytes(count * ROW), np.uint8).reshape(count, ROW).copy()
            made[:, :WIDTH] &= 0xBF
            made[:, WIDTH:] = 115 + made[:, WIDTH:] % 8
            file.write(made.data)
            file.flush()
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        os.fsync(file.fileno())


def table_weight(path: Path, number: int, rows: int) -> NativeRows:
    """The table in file ``number``; the file stays open."""
    name = f"blk.{LAYERS[number]}.engram_embd.weight"
    info = TensorInfo(name, _I8, (rows, ROW), 0, rows * ROW, number)
    return NativeRows(Integers(Part(FileSource(path), info, path.name)), None)


def dense_model(held: Engram, wide: int, threads: int, capacity: int) -> DeepseekV41:
    """With feed-forward parts ``wide`` numbers wide, and tables of one row that are none."""
    config = base("deepseek_v41")
    text = {**config["text_config"], **_CHANGES, "moe_intermediate_size": wide}
    text["engram_num_embeddings"] = list(held.rows)
    kept = {k: v for k, v in text.items() if not k.startswith(_LEFT)}
    whole = {k: v for k, v in config.items() if k != "vision_config" and not k.startswith(_LEFT)}
    whole["text_config"] = kept
    bare = Bare.of(whole)
    weights: dict[str, Weight] = {
        name: Drawn(name, tensor.shape)
        for tensor in bare.architecture.layout(bare.fields, Plain(F32))
        for name in tensor.names()
    }
    release = Release("dense", whole, weights, {}, engram=held)
    # Tables on disk take nothing, and nothing is read of them before a token is.
    setup = Setup(FAST, CPU, capacity, threads=threads, engram="disk")
    made = deepseek_v41.build(flat(whole), Tensors(release, setup))
    assert isinstance(made, DeepseekV41)
    return made


def with_tables(model: DeepseekV41, tables: Sequence[Table]) -> DeepseekV41:
    """The same matrices, other tables."""
    found, layers = iter(tables), []
    for layer in model.layers:
        memory = layer.memory
        if memory is not None:
            memory = replace(memory, table=next(found))
        layers.append(replace(layer, memory=memory))
    return replace(model, layers=tuple(layers))
