"""Knows no files: what a planner and a runner need to know of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """``model`` is the family (``gpt2``, ``llama``, …), ``pre`` its pre-tokenizer's name."""

    model: str
    pre: str
    vocabulary: int


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Geometry and identity of one model.

    ``kv_bytes_per_token`` is for 16-bit keys and values over all layers; zero where the
    architecture's cache is not known. ``tensor_types`` maps a type's name to (tensors, bytes).
    """

    architecture: str
    name: str
    parameters: int
    tensor_bytes: int
    tensors: int
    layers: int
    n_ctx_train: int
    kv_bytes_per_token: int
    tensor_types: Mapping[str, tuple[int, int]]
    tokenizer: Tokenizer | None
    chat_template: str | None
    licence: str | None
    experts: int = 0
    experts_used: int = 0
