"""Knows no disk: what mlx-lm's DeepSeek-V4.1 needs around it.

Its class refuses a model with n-gram tables, which ``engram`` adds. It gathers the rows of every
query of a chunk at once. It rounds what it keeps to the release's FP8 and FP4, and its streams have
the type of the embedding: where everything is to be computed in float32, neither is so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, Final

import mlx.core as mx
from mlx.nn.layers.base import Module

from localrun.backends.mlx.engram import Memory, Model, Rows
from localrun.releases.engram import Engram

NAMES: Final = frozenset({"deepseek_v41", "deepseek_v41_text"})
_TABLES: Final = "engram_layer_ids"
_JOINS: Final = ("wkv.weight", "q_weight", "k_weight")
QUERIES: Final = 256
Attend = Callable[..., mx.array]
Pack = Callable[[Any, Mapping[str, mx.array]], None]


def has_tables(config: Mapping[str, Any]) -> bool:
    return bool(_text(config).get(_TABLES))


def without_tables(config: Mapping[str, Any]) -> dict[str, Any]:
    """What mlx-lm's class takes."""
    text = {**_text(config), _TABLES: ()}
    return {**config, "text_config": text} if "text_config" in config else text


def _text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    text = config.get("text_config", config)
    return text if isinstance(text, Mapping) else {}


def changed(module: ModuleType, *, float32: bool) -> None:
    """``module`` belongs to the caller alone."""
    module._sparse_attention = _in_slices(module._sparse_attention)  # type: ignore[attr-defined]
    if float32:
        module._fake_quant_fp8 = lambda x, block_size=32: x  # type: ignore[attr-defined]
        module._fake_quant_fp4 = lambda x, **_: x  # type: ignore[attr-defined]


def _in_slices(attend: Attend) -> Attend:
    """Each query gathers rows of its own, hundreds of kilobytes: not those of a whole chunk at
    once."""

    def sliced(q: mx.array, kvs: list[mx.array], indices: list[mx.array], **told: Any) -> mx.array:
        parts = [
            attend(q[:, at : at + QUERIES], kvs, [i[:, at : at + QUERIES] for i in indices], **told)
            for at in range(0, q.shape[1], QUERIES)
        ]
        return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=1)

    return sliced


class Widened(Module):
    """An embedding whose rows are float32, however it is stored."""

    def __init__(self, embedding: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.embedding = embedding

    def __call__(self, tokens: mx.array) -> mx.array:
        found: mx.array = self.embedding(tokens).astype(mx.float32)
        return found


def widen(model: Any) -> None:
    model.model.embed_tokens = Widened(model.model.embed_tokens)


def taken(weights: dict[str, mx.array], engram: Engram) -> dict[int, dict[str, mx.array]]:
    """Those of each memory, which leave ``weights``; what belongs to tables leaves them too.

    Raises:
        KeyError: one is absent.
    """
    found: dict[int, dict[str, mx.array]] = {}
    for layer in engram.layers:
        own = f"layers.{layer}.engram"
        found[layer] = {name: weights.pop(f"{own}.{name}") for name in _JOINS}
        if f"{own}.wkv.scale" in weights:
            found[layer]["wkv.scale"] = weights.pop(f"{own}.wkv.scale")
    for name in [name for name in weights if ".engram." in name]:
        del weights[name]
    return found


def joined(
    model: Any,
    module: ModuleType,
    held: Mapping[int, dict[str, mx.array]],
    engram: Engram,
    rows: Rows,
    pack: Pack,
) -> Model:
    """The model with a memory in each layer that has a table; ``held`` are their weights."""
    args = model.args
    memories: dict[int, Memory] = {}
    for layer, weights in held.items():
        columns = len(engram.primes[engram.layers.index(layer)]) * engram.width
        memory = Memory(args.hc_mult, args.hidden_size, columns, args.rms_norm_eps)
        if "wkv.scale" in weights:
            words, scales = module._repack(weights["wkv.weight"], weights.pop("wkv.scale"))
            weights |= {"wkv.weight": words, "wkv.scales": scales}
        pack(memory, weights)
        memory.load_weights(list(weights.items()), strict=True)
        memories[layer] = memory
    return Model(model, memories, rows)
