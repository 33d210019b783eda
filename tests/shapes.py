"""Writes small GGUF models of a given shape that llama.cpp loads and runs.

Weights are zeros in a file with holes: how much memory is taken does not depend on them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localrun.formats.types import GGUF_TYPES
from tests.gguf_builder import I32, TYPE_IDS, As, info, kv, padded, raw_gguf

Tensor = tuple[str, tuple[int, ...], str]


@dataclass(frozen=True)
class Shape:
    """``experts`` of 0 is dense; otherwise ``used`` of them, each ``ffn`` wide. ``window`` makes a
    gemma3 of it, whose every sixth layer sees the whole context."""

    layers: int = 4
    width: int = 256
    heads: int = 4
    kv_heads: int = 2
    head: int = 64
    ffn: int = 1024
    vocabulary: int = 1000
    tied: bool = False
    experts: int = 0
    used: int = 0
    window: int = 0
    pooling: int | None = None
    type: str = "F16"

    @property
    def architecture(self) -> str:
        return "qwen3moe" if self.experts else "gemma3" if self.window else "llama"

    def metadata(self) -> dict[str, Any]:
        values: dict[str, Any] = {
            "block_count": self.layers,
            "context_length": 32768,
            "embedding_length": self.width,
            "feed_forward_length": self.ffn,
            "attention.head_count": self.heads,
            "attention.head_count_kv": self.kv_heads,
            "attention.key_length": self.head,
            "attention.value_length": self.head,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "rope.dimension_count": self.head,
            "vocab_size": self.vocabulary,
        }
        if self.experts:
            values |= {
                "expert_count": self.experts,
                "expert_used_count": self.used,
                "expert_feed_forward_length": self.ffn,
            }
        if self.window:
            values["attention.sliding_window"] = self.window
        if self.pooling is not None:
            values["pooling_type"] = self.pooling
        return {
            "general.architecture": self.architecture,
            **{f"{self.architecture}.{key}": value for key, value in values.items()},
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "default",
            "tokenizer.ggml.tokens": [f"t{at}" for at in range(self.vocabulary)],
            "tokenizer.ggml.token_type": As(I32, [1] * self.vocabulary),
            "tokenizer.ggml.merges": ["t 1"],
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
        }

    def tensors(self) -> Iterator[Tensor]:
        yield "token_embd.weight", (self.vocabulary, self.width), self.type
        for layer in range(self.layers):
            for name, shape, kind in self._layer():
                yield f"blk.{layer}.{name}", shape, kind
        if not self.tied:
            yield "output.weight", (self.vocabulary, self.width), self.type
        yield "output_norm.weight", (self.width,), "F32"

    def _layer(self) -> Iterator[Tensor]:
        queries, keys = self.heads * self.head, self.kv_heads * self.head
        norms = {"attn_norm": self.width, "ffn_norm": self.width}
        if self.experts or self.window:
            norms |= {"attn_q_norm": self.head, "attn_k_norm": self.head}
        if self.window:
            norms |= {"post_attention_norm": self.width, "post_ffw_norm": self.width}
        for name, width in norms.items():
            yield f"{name}.weight", (width,), "F32"
        yield "attn_q.weight", (queries, self.width), self.type
        yield "attn_k.weight", (keys, self.width), self.type
        yield "attn_v.weight", (keys, self.width), self.type
        yield "attn_output.weight", (self.width, queries), self.type
        many, tail = ((self.experts,), "_exps") if self.experts else ((), "")
        if self.experts:
            yield "ffn_gate_inp.weight", (self.experts, self.width), "F32"
        yield f"ffn_gate{tail}.weight", (*many, self.ffn, self.width), self.type
        yield f"ffn_up{tail}.weight", (*many, self.ffn, self.width), self.type
        yield f"ffn_down{tail}.weight", (*many, self.width, self.ffn), self.type


def write(path: Path, shape: Shape) -> Path:
    """Write the model to ``path``."""
    infos, offset, count = b"", 0, 0
    for name, dims, type_name in shape.tensors():
        kind = GGUF_TYPES[TYPE_IDS[type_name]]
        size = math.prod(dims) // kind.block_elements * kind.block_bytes
        infos += info(name, reversed(dims), TYPE_IDS[type_name], offset)
        offset += size + -size % 32
        count += 1
    metadata = shape.metadata()
    keys = b"".join(kv(key, value) for key, value in metadata.items())
    head = padded(raw_gguf(keys, infos, n_tensors=count, n_kv=len(metadata)))
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + offset)
    return path
