"""Knows no shapes: what a tensor is for, told by its name alone.

Names are those of releases (``model.layers.3.mlp.down_proj.weight``, ``layers.3.ffn.gate.bias``)
and of GGUF files (``blk.3.ffn_down.weight``, the table ``LLM_TENSOR_NAMES`` in
https://github.com/ggml-org/llama.cpp/blob/master/src/llama-arch.cpp).
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from localrun.models.spec import GroupKind

_NUMBERED = re.compile(r"(?:^|\.)(?:blk|layers|h|blocks|mtp|encoder\.layer)\.([0-9]{1,9})(?:\.|$)")
_DIGITS = re.compile(r"[0-9]+")
_VISION = re.compile(
    r"^(?:model\.|language_model\.)?"
    r"(?:visual|vision\w*|vit|v|mm|multi_modal_projector|mm_projector|aligner|audio_tower)\."
    r"|^(?:model\.)?image_(?:start|end|newline)"
)
_DRAFT = re.compile(r"(?:^|\.)mtp\.|\.nextn\.|^nextn\.")
_TABLE = re.compile(r"engram[._]emb|ngram_emb|per_layer_token_embd|embed_tokens_per_layer")
_EXPERT = re.compile(
    r"\.experts\.|\.switch_(?:mlp|glu)\.|_exps\b|_chexps\b|\.ffn_(?:gate|up|down)\.#\."
)
_LAYER: Final[tuple[tuple[GroupKind, re.Pattern[str]], ...]] = (
    ("hyper_connections", re.compile(r"[._]hc_|hyper_connection")),
    ("indexer", re.compile(r"indexer")),
    ("experts", _EXPERT),
    (
        "shared_experts",
        re.compile(r"shared_expert|shared_mlp|_shexp|routed_expert|ffn_routed|ffn_latent"),
    ),
    (
        "router",
        re.compile(
            r"(?:mlp|ffn|moe|feed_forward)\.gate\.|router|ffn_gate_inp|exp_probs_b|tid#eid"
            r"|e_score_correction_bias"
        ),
    ),
    ("attention", re.compile(r"norm")),
    ("dense_ffn", re.compile(r"mlp|ffn|feed_forward|\.intermediate\.dense|#\.output\.dense")),
)
_ROOT: Final[tuple[tuple[GroupKind, re.Pattern[str]], ...]] = (
    ("hyper_connections", re.compile(r"(?:^|[._])hc_|hyper_connection")),
    ("head", re.compile(r"lm_head|norm|LayerNorm|(?:^|\.)(?:head\.|output[._])")),
    (
        "embedding",
        re.compile(
            r"embed_tokens|(?:^|\.)embed\.|token_embd\.|wte|word_embeddings"
            r"|(?:position|token_type)_embeddings|^(?:position_embd|token_types)\."
        ),
    ),
)


def classify(name: str, layers: int) -> tuple[GroupKind, int, bool]:
    """(kind, layer, whether it holds routed experts) of a tensor of a model of ``layers``.

    The layer is -1 outside of the layers. Draft layers are those numbered beyond the last one, or
    named as such; their stages count from 0. 0 layers means that it is not known how many.
    """
    kind, expert = _kind(_DIGITS.sub("#", name))
    found = _NUMBERED.search(name)
    layer = int(found[1]) if found else -1
    if kind == "vision":
        return kind, -1, False
    if kind == "draft":
        return kind, layer - layers if layer >= layers > 0 else max(layer, 0), expert
    if layer >= layers > 0:
        return "draft", layer - layers, expert
    return kind, layer, expert


@lru_cache(maxsize=4096)
def _kind(pattern: str) -> tuple[GroupKind, bool]:
    """Of a name with ``#`` for its numbers: a model has few such names."""
    if _VISION.search(pattern):
        return "vision", False
    expert = bool(_EXPERT.search(pattern))
    if _DRAFT.search(pattern):
        return "draft", expert
    if _TABLE.search(pattern):
        return "engram", False
    if ".#." in pattern:
        return next((kind for kind, mark in _LAYER if mark.search(pattern)), "attention"), expert
    return next((kind for kind, mark in _ROOT if mark.search(pattern)), "other"), False
