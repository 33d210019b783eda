"""Knows no machine and no library: what llama.cpp allocates for an encoder, which keeps no text.

A text is computed whole, so buffers are for the longest: of ``tokens``, the micro-batch. Read from
``src/models/bert.cpp``, ``build_attn_inp_no_cache`` and ``llama_context::output_reserve`` of the
pinned version; held to what it takes by tests/backends/test_bert_embeddings.py.
"""

from __future__ import annotations

from typing import Final

from localrun.models.spec import ModelSpec

_FLOAT, _HALF = 4, 2
# Of one token: its id, its position, and where its output goes.
_INPUTS: Final = 4 + 8 + 8
# Rows of the model's width that live at once: beside a widened feed-forward row its input, the
# block's input and the sum; in attention the input, queries, keys and values, and the last two
# again in 16 bits.
_FED, _ATTENDED = 3, 5.5
# Strings of a vocabulary's entry; nodes of the graphs, a layer; what the library starts with.
_ENTRY, _LAYER, _START = 220, 40_000, 500_000


def compute_bytes(spec: ModelSpec, tokens: int) -> int:
    """The compute buffer, with flash attention: one layer's rows and the mask of all pairs."""
    floats = max(spec.ffn_width + _FED * spec.width, _ATTENDED * spec.width)
    return int(tokens * (floats * _FLOAT + tokens * _HALF + _INPUTS))


def output_bytes(spec: ModelSpec) -> int:
    """What is there after the load: one row of states and, as for every model, one of logits."""
    return (spec.vocabulary + spec.width) * _FLOAT


def scratch_bytes(spec: ModelSpec, tokens: int) -> int:
    """Of RAM, beyond the load's log: the output of the longest text, for whose logits there is room
    too though nobody computes them; the vocabulary and the graphs; inputs of products in the
    kernels' own types."""
    rows = (tokens - 1) * output_bytes(spec)
    kept = spec.vocabulary * _ENTRY + spec.layers * _LAYER + _START
    same = spec.quantization == "F32"
    return rows + kept + (0 if same else tokens * max(spec.ffn_width, spec.width) * _HALF)
