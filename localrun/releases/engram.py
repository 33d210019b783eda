"""Knows no tensors' bytes: the constants of Engram's n-gram tables, in a release and in GGUF files.

A token and the ones before it are hashed into rows of a table:
``row = (t0*m0 ^ t1*m1 ^ …) mod prime + offset``, one prime for every length of n-gram and head
(https://huggingface.co/deepseek-ai/DeepSeek-V4.1-Flash, inference/engram.py). A checkpoint holds
none of these numbers: they follow from config.json and the tokenizer.

GGUF files of V4.1 agree on ``deepseek41`` and on nothing else. Four conventions are read:

* tables as stored, e4m3 bytes and e8m0 scales in two I8 tensors, under ``engram.layers``,
  ``head_bucket_sizes``, ``head_offsets``, ``embedding_counts``, ``pad_token_id``:
  https://github.com/tarruda/llama.cpp (conversion/deepseek41.py). **These keys are written**: it
  loses no bit, and its other keys are llama.cpp's own;
* tables of a block type such as Q8_0, nine keys with ``layer_ids``, ``key_length``, ``primes``,
  ``offsets``, ``pad_id``: https://github.com/ggml-org/llama.cpp/pull/28696 and
  https://github.com/ikawrakow/ik_llama.cpp/pull/2455 with /pull/2506. The oldest of these files
  begin their keys with ``deepseek4.``;
* the same tables under ``n_heads``, ``head_dim``, ``num_embeddings``, ``pad_token_id``:
  https://github.com/mxxm-t/llama.cpp;
* numbers and scales of a row beside each other in one I8 tensor, ``engram.encoding`` saying so,
  ``rows``: https://github.com/antirez/ds4 (gguf-tools/deepseek41_quantize.py). **These tables are
  written**: a disk gives a row in one read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from math import isqrt
from typing import Final

import numpy as np

from localrun.formats.gguf_values import U32, Raw, U32s, Value
from localrun.models.bare import FILE
from localrun.models.fields import HEADS_MAX, LAYERS_MAX, VOCABULARY_MAX, WIDTH_MAX, Fields
from localrun.releases.checkpoint import Checkpoint
from localrun.releases.engram_tokens import token_classes

_NGRAM_MAX: Final = 64
BUCKETS_MAX: Final = 4096
"""Of all layers together: more is no model's."""
_START_MAX: Final = 2**31
_ROWS_MAX: Final = 2**32 - 1
_LONGEST: Final = 2**63 - 1
# So many numbers of a row share a scale.
GROUP: Final = 32
_SEED: Final = 10007
# ``enum gguf_metadata_value_type``.
_ARRAY, _U64 = 9, 10
# What a key is called in each convention, the one that is written first.
_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "layers": ("layers", "layer_ids"),
    "rows": ("embedding_counts", "num_embeddings", "rows"),
    "ngram": ("ngram_size", "max_ngram_size"),
    "heads": ("head_count", "n_heads"),
    "width": ("head_dim", "key_length"),
    "primes": ("head_bucket_sizes", "primes"),
    "offsets": ("head_offsets", "offsets"),
    "pad_token": ("pad_token_id",),
    "pad_class": ("pad_id",),
    "classes": ("compressed_vocab_size",),
}


@dataclass(frozen=True, slots=True)
class Engram:
    """Constants by layer. ``primes`` are the rows of a table's buckets, 2-grams' heads first;
    ``pad_class`` is the class that stands for a token before the text."""

    layers: tuple[int, ...]
    ngram: int
    heads: int
    width: int
    pad_class: int
    classes: tuple[int, ...]
    primes: tuple[tuple[int, ...], ...]
    multipliers: tuple[tuple[int, ...], ...]

    @property
    def rows(self) -> tuple[int, ...]:
        return tuple(map(sum, self.primes))

    @property
    def offsets(self) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(accumulate(each[:-1], initial=0)) for each in self.primes)

    def keys(self, pad_token: int) -> dict[str, Value]:
        """As GGUF has them, without the architecture before them."""
        made: dict[str, Value] = {
            "layers": U32s(self.layers),
            "ngram_size": U32(self.ngram),
            "head_count": U32(self.heads),
            "head_dim": U32(self.width),
            "embedding_counts": U32s(self.rows),
            "head_offsets": U32s(_flat(self.offsets)),
            "head_bucket_sizes": U32s(_flat(self.primes)),
            "multipliers": _u64s(_flat(self.multipliers)),
            "token_map": U32s(self.classes),
            "compressed_vocab_size": U32(max(self.classes) + 1),
            # Readers take the class of it, as of any token.
            "pad_token_id": U32(pad_token),
        }
        return {f"engram.{key}": value for key, value in made.items()}

    def hashed(self, layer: int, tokens: Sequence[int]) -> list[tuple[int, ...]]:
        """The rows of ``layer``'s table that each of ``tokens`` finds, a row for every bucket."""
        number = self.layers.index(layer)
        factors, primes = self.multipliers[number], self.primes[number]
        found = []
        history = [self.pad_class] * (self.ngram - 1)
        for token in tokens:
            history = [self.classes[token], *history[: self.ngram - 1]]
            mixed, row = history[0] * factors[0], []
            for length in range(1, self.ngram):
                mixed ^= history[length] * factors[length]
                row += [mixed] * self.heads
            offsets = self.offsets[number]
            found.append(tuple(h % p + o for h, p, o in zip(row, primes, offsets, strict=True)))
        return found


def _u64s(numbers: Sequence[int]) -> Raw:
    """The one array of unsigned 64-bit numbers that any family writes."""
    head = struct.pack("<IIQ", _ARRAY, _U64, len(numbers))
    return Raw(head + struct.pack(f"<{len(numbers)}Q", *numbers))


def _flat(numbers: Sequence[Sequence[int]]) -> tuple[int, ...]:
    return tuple(number for each in numbers for number in each)


def of_release(checkpoint: Checkpoint, config: Fields) -> Engram:
    """The constants of a release, held against what its configuration says of them.

    Raises:
        UsageError: there is no tokenizer.json, or one of another kind.
        HeaderError: a field or a token is absent or absurd, or they contradict each other.
    """
    layers = config.integers("engram_layer_ids", most=LAYERS_MAX) or ()
    ngram = config.needed("engram_max_ngram_size", least=2, most=_NGRAM_MAX)
    heads = config.needed("engram_n_heads", most=HEADS_MAX)
    each = (ngram - 1) * heads
    if each * len(layers) > BUCKETS_MAX:
        raise config.error("engram_n_heads", f"{each} buckets in {len(layers)} layers are too many")
    start = config.needed("engram_vocab_size", most=_START_MAX)
    tokens = config.needed("vocab_size", most=VOCABULARY_MAX)
    stream = primes_from(start)
    classes = token_classes(checkpoint, tokens)
    pad = config.needed("engram_pad_token_id", least=0, most=tokens - 1)
    found = Engram(
        layers,
        ngram,
        heads,
        config.needed("engram_head_dim", most=WIDTH_MAX),
        classes[pad],
        classes,
        tuple(tuple(islice(stream, each)) for _ in layers),
        tuple(multipliers(layer, max(classes) + 1, ngram) for layer in layers),
    )
    stated = config.integers("engram_num_embeddings", most=_ROWS_MAX)
    if stated != found.rows:
        problem = f"is {stated}, the primes from {start} on make {found.rows}"
        raise config.error("engram_num_embeddings", problem)
    count = config.needed("engram_compressed_vocab_size", most=VOCABULARY_MAX)
    if count != max(classes) + 1:
        problem = f"is {count}, the tokenizer beside {FILE} has {max(classes) + 1} classes"
        raise config.error("engram_compressed_vocab_size", problem)
    return found


def multipliers(layer: int, classes: int, ngram: int) -> tuple[int, ...]:
    """Odd numbers of which none, times a class, leaves 63 bits."""
    bound = max(1, _LONGEST // classes // 2)
    drawn = np.random.default_rng(_SEED * layer).integers(0, bound, size=ngram, dtype=np.int64)
    return tuple(2 * int(number) + 1 for number in drawn)


def primes_from(start: int) -> Iterator[int]:
    """Every prime from ``start`` on: no bucket of any layer has the rows of another."""
    number = max(2, start)
    while True:
        if all(number % factor for factor in range(2, isqrt(number) + 1)):
            yield number
        number += 1


def of_file(metadata: Mapping[str, object], file: str, widths: Mapping[int, int]) -> Engram | None:
    """The constants that a GGUF file states in any of the conventions; None where it has none.

    ``widths`` is how many numbers the rows of each layer's table have.

    Raises:
        HeaderError: a key is absent or absurd, or they contradict each other.
    """
    fields = _fields(metadata, file)
    layers = fields.integers("layers", most=LAYERS_MAX)
    if not layers:
        return None
    factors = _needed(fields, "multipliers", _LONGEST)
    primes = _needed(fields, "primes", _ROWS_MAX)
    classes = _needed(fields, "token_map", VOCABULARY_MAX)
    # Where lengths are not stated they follow from how many numbers there are.
    ngram = fields.integer("ngram", least=2, most=_NGRAM_MAX) or len(factors) // len(layers)
    heads = fields.integer("heads", most=HEADS_MAX) or (
        len(primes) // len(layers) // max(ngram - 1, 1)
    )
    width = fields.integer("width", most=WIDTH_MAX) or widths.get(layers[0], 0)
    buckets = (ngram - 1) * heads
    if len(primes) != buckets * len(layers) or not all(primes):
        raise fields.error("primes", f"are not {buckets} sizes for each of {len(layers)} layers")
    if len(factors) != ngram * len(layers):
        raise fields.error("multipliers", f"are not {ngram} for each of {len(layers)} layers")
    if not classes:
        raise fields.error("token_map", "is empty")
    found = Engram(
        layers,
        ngram,
        heads,
        width,
        _pad_class(fields, classes),
        classes,
        _apart(primes, buckets),
        _apart(factors, ngram),
    )
    _check(fields, found, widths)
    return found


def _fields(metadata: Mapping[str, object], file: str) -> Fields:
    """Under one set of words; errors name the file's own keys."""
    own = str(metadata.get("general.architecture", ""))
    prefixes = (f"{own}.engram.", "deepseek4.engram.")
    words = {**_NAMES, "multipliers": ("multipliers",), "token_map": ("token_map",)}
    values: dict[str, object] = {}
    names: dict[str, str] = {}
    for word, spellings in words.items():
        keys = [prefix + each for prefix in prefixes for each in spellings]
        key = next((each for each in keys if each in metadata), keys[0])
        names[word], values[word] = key, metadata.get(key)
    return Fields(values, file, names)


def _needed(fields: Fields, word: str, most: int) -> tuple[int, ...]:
    found = fields.integers(word, most=most)
    if found is None:
        raise fields.absent(word)
    return found


def _apart(numbers: Sequence[int], each: int) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(numbers[at : at + each]) for at in range(0, len(numbers), each))


def _pad_class(fields: Fields, classes: Sequence[int]) -> int:
    """Two conventions state a token, two its class already."""
    token = fields.integer("pad_token", least=0, most=len(classes) - 1)
    if token is not None:
        return classes[token]
    found = fields.integer("pad_class", least=0, most=max(classes))
    if found is None:
        raise fields.absent("pad_class")
    return found


def _check(fields: Fields, found: Engram, widths: Mapping[int, int]) -> None:
    offsets = fields.integers("offsets", most=_ROWS_MAX)
    if offsets is not None and offsets != _flat(found.offsets):
        raise fields.error("offsets", "are not the sums of the sizes before each")
    rows = fields.integers("rows", most=_ROWS_MAX)
    if rows is not None and rows != found.rows:
        raise fields.error("rows", f"are {rows}, the sizes of buckets make {found.rows}")
    if any(widths.get(layer, found.width) != found.width for layer in found.layers):
        raise fields.error("width", f"is {found.width}, the tables have {dict(widths)}")
