"""Knows no other family: Llama, Mistral and SmolLM2 as GGUF's ``llama``.

llama.cpp turns adjacent pairs of a head where transformers turns its halves, so the rows of queries
and keys are moved. Llama 3's stretching of positions is a tensor of factors, one for each pair
(https://github.com/ggml-org/llama.cpp/blob/master/conversion/llama.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

import numpy as np

from localrun.models.architectures.llama import layout
from localrun.models.bare import flat
from localrun.models.blocks import Shape
from localrun.models.fields import CONTEXT_MAX, VOCABULARY_MAX, Fields
from localrun.models.storage import F32 as FLOAT
from localrun.models.storage import Plain
from localrun.quantize.checkpoint import Checkpoint
from localrun.quantize.families.metadata import (
    decoder,
    number,
    require,
    rope,
    rope_parameters,
    with_defaults,
)
from localrun.quantize.families.model import gguf_model
from localrun.quantize.families.tensors import Held, made_of
from localrun.quantize.gguf_writer import U32, Value, Written
from localrun.quantize.models import GgufModel, GgufTensor
from localrun.quantize.views import Changed, heads_halved, heads_interleaved
from localrun.quantize.weights import Floats, Weight

ARCHITECTURE: Final = "llama"
DEFAULTS: Final[Mapping[str, Mapping[str, object]]] = {
    "llama": {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 10000.0},
    "mistral": {
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "num_key_value_heads": 8,
    },
}
_EXPECTED: Final = {
    "hidden_act": ("silu",),
    "mlp_bias": (False,),
    "partial_rotary_factor": (1.0,),
}
_FREQUENCIES: Final = "rope_freqs.weight"
# Of Llama 3.1 and later, and what they have where a config.json leaves them out.
USUAL: Final[Mapping[str, float]] = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def convert(checkpoint: Checkpoint, weights: Mapping[str, Weight], name: str) -> GgufModel:
    """See ``registry.Family``."""
    config = configured(flat(checkpoint.config))
    require(config, _EXPECTED)
    shape = Shape.of(config)
    made = made_of(
        weights,
        layout(config, Plain()),
        config,
        change=lambda name, weight: interleaved(name, weight, shape),
        extra=_frequencies(config, shape.head),
    )
    turned, notes = rope(ARCHITECTURE, config)
    keys: dict[str, Value] = {
        **decoder(ARCHITECTURE, config),
        **turned,
        "llama.vocab_size": U32(config.needed("vocab_size", most=VOCABULARY_MAX)),
        "llama.rope.dimension_count": U32(shape.head),
    }
    return gguf_model(
        checkpoint, ARCHITECTURE, name, config, made, keys, (*notes, *window_notes(config))
    )


def configured(config: Fields) -> Fields:
    """With what the class of transformers takes for fields that are not stated."""
    kind = config.text("model_type") or ARCHITECTURE
    config = with_defaults(config, DEFAULTS[kind])
    if kind == "mistral":
        return config
    return replace(config, values={**config.values, "head_dim": Shape.of(config).head})


def window_notes(config: Fields) -> tuple[str, ...]:
    """A window that this architecture of llama.cpp's does not compute."""
    window = config.integer("sliding_window", most=CONTEXT_MAX)
    context = config.needed("max_position_embeddings", most=CONTEXT_MAX)
    if window is None or window >= context:
        return ()
    return (f"its layers see {window} tokens back; llama.cpp will let them see the whole context",)


def interleaved(name: str, weight: Weight, shape: Shape) -> Weight:
    """Queries and keys as llama.cpp's rotary kernel wants them; others as they are."""
    return _turned(name, weight, shape, back=False)


def halved(name: str, weight: Weight, shape: Shape) -> Weight:
    """The way back; ``name`` is GGUF's."""
    return _turned(name, weight, shape, back=True)


def _turned(name: str, weight: Weight, shape: Shape, *, back: bool) -> Weight:
    stem, _, suffix = name.rpartition(".")
    heads = {"attn_q": shape.heads, "attn_k": shape.kv_heads}.get(stem.rpartition(".")[2])
    if heads is None:
        return weight
    if suffix == "weight":
        return heads_halved(weight, heads) if back else heads_interleaved(weight, heads)
    # A bias is one row, so its columns move.
    places = np.arange(heads * shape.head)
    split = (heads, shape.head // 2, 2) if back else (heads, 2, shape.head // 2)
    order = places.reshape(split).swapaxes(1, 2).reshape(-1)
    return Changed(weight, lambda rows: np.ascontiguousarray(rows[:, order]))


def _frequencies(config: Fields, head: int) -> Iterator[GgufTensor]:
    """Where positions are stretched Llama 3's way."""
    if (rope_parameters(config).text("rope_type") or "").lower() == "llama3":
        numbers = factors(config, head)
        target = Written(_FREQUENCIES, FLOAT, numbers.shape)
        yield GgufTensor(target, Held(_FREQUENCIES, numbers), fixed=True)


def factors(config: Fields, head: int) -> Floats:
    """Llama 3's factors, one for each pair of a head's: how much slower it turns than it was
    trained to (``LlamaModel.generate_extra_tensors``; all in 32 bits as there).

    Raises:
        HeaderError: numbers that stretch nothing.
    """
    stated = rope_parameters(config)
    said = {key: number(stated, key) or usual for key, usual in USUAL.items()}
    factor, low, high, trained = said.values()
    if not 0 < low < high:
        raise stated.error("high_freq_factor", f"{high} is not above low_freq_factor, {low}")
    one = np.float32(1)
    wavelengths = _wavelengths(stated, head)
    smooth = (np.float32(trained) / wavelengths - np.float32(low)) / np.float32(high - low)
    between = one / ((one - smooth) / np.float32(factor) + smooth)
    long = np.where(wavelengths > np.float32(trained / low), np.float32(factor), between)
    found: Floats = np.where(wavelengths < np.float32(trained / high), one, long)
    return found


def _wavelengths(stated: Fields, head: int) -> Floats:
    """Tokens that a pair takes to turn once."""
    base = np.float32(number(stated, "rope_theta") or 10000.0)
    exponents = np.arange(0, head, 2, dtype=np.float32) / np.float32(head)
    found: Floats = np.float32(2 * math.pi) / (np.float32(1) / base**exponents)
    return found


def scaling_of(config: Fields, numbers: Floats) -> dict[str, object]:
    """The ``rope_scaling`` that most likely has these factors: its borders are Llama 3's, and the
    trained context is told by a factor between them. The caller holds it against them."""
    largest = float(numbers.max())
    between = np.flatnonzero((numbers > 1) & (numbers < largest))
    said: dict[str, object] = {"rope_type": "llama3", **USUAL, "factor": float(f"{largest:.7g}")}
    if not between.size:
        return said
    at = int(between[0])
    waves = _wavelengths(rope_parameters(config), 2 * numbers.size)
    smooth = (1 / float(numbers[at]) - 1 / largest) / (1 - 1 / largest)
    low, high = USUAL["low_freq_factor"], USUAL["high_freq_factor"]
    trained = round(float(waves[at]) * (smooth * (high - low) + low))
    return {**said, "original_max_position_embeddings": trained}
