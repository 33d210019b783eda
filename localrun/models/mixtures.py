"""Knows no release: which type every tensor of a GGUF file gets in a mixture such as ``Q4_K_M``.

The rules are those of ``llama_tensor_get_type`` in
https://github.com/ggml-org/llama.cpp/blob/master/src/llama-quant.cpp.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from localrun.errors import UsageError
from localrun.formats.text import shown
from localrun.formats.types import GGUF_TYPES
from localrun.models.layout import LayoutTensor

_TYPES: Final = {kind.name: kind for kind in GGUF_TYPES.values()}
# The type of most tensors, by mixture.
_DEFAULTS: Final = {
    "F32": "F32",
    "F16": "F16",
    "BF16": "BF16",
    "Q8_0": "Q8_0",
    "Q6_K": "Q6_K",
    "Q5_K_M": "Q5_K",
    "Q5_K_S": "Q5_K",
    "Q5_1": "Q5_1",
    "Q5_0": "Q5_0",
    "Q4_K_M": "Q4_K",
    "Q4_K_S": "Q4_K",
    "Q4_1": "Q4_1",
    "Q4_0": "Q4_0",
    "IQ4_NL": "IQ4_NL",
    "IQ4_XS": "IQ4_XS",
    "Q3_K_L": "Q3_K",
    "Q3_K_M": "Q3_K",
    "Q3_K_S": "Q3_K",
    "IQ3_M": "IQ3_S",
    "IQ3_S": "IQ3_S",
    "IQ3_XS": "IQ3_S",
    "IQ3_XXS": "IQ3_XXS",
    "Q2_K": "Q2_K",
    "Q2_K_S": "Q2_K",
    "IQ2_M": "IQ2_S",
    "IQ2_S": "IQ2_XS",
    "IQ2_XS": "IQ2_XS",
    "IQ2_XXS": "IQ2_XXS",
    "IQ1_M": "IQ1_M",
    "IQ1_S": "IQ1_S",
    "TQ2_0": "TQ2_0",
    "TQ1_0": "TQ1_0",
    "Q2_0": "Q2_0",
    "Q1_0": "Q1_0",
    "MXFP4": "MXFP4",
    "NVFP4": "NVFP4",
}
_ALIASES: Final = {
    "MXFP4_MOE": "MXFP4",
    "Q3_K": "Q3_K_M",
    "Q4_K": "Q4_K_M",
    "Q5_K": "Q5_K_M",
}
_SMALLEST: Final = frozenset({"IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ1_S", "IQ1_M"})
# Mixtures that are made with an importance matrix or not at all.
_WEIGHTED: Final = _SMALLEST | {"IQ3_XXS", "IQ3_XS", "Q2_K_S"}
_FALLBACKS: Final = {
    "TQ1_0": "Q4_0",
    "TQ2_0": "Q4_0",
    "Q2_0": "Q4_0",
    "Q2_K": "Q4_0",
    "Q3_K": "Q4_0",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}
_FLOATS: Final = frozenset({"F32", "F16", "BF16"})
_INTEGERS: Final = frozenset({"I8", "I16", "I32", "I64"})
_KEPT: Final = re.compile(
    r"_norm\.weight|ffn_gate_inp\.weight|ffn_gate_tid2eid|altup|laurel|per_layer_model_proj"
    r"|ssm_conv1d|shortconv\.conv\.weight|indexer\.[kq]_proj\.weight|^position_embd\.|^token_types\."
    r"|time_mix_(?:first|w[012]|v[012]|a[012]|g[12]|decay_w[12]|lerp_fused)\.weight"
    r"|attn_rel_b\.weight|\.position_embd|\.rel_pos|\.patch_embd|\.patch_merger"
    r"|sam\.(?:pos_embd|neck\.|net_)|a\.rvq\.codebook|mm\.a\.code_embd"
)
_KEPT_IN_GLM5: Final = re.compile(
    r"hc_|indexer\.attn_q_b|indexer\.attn_k|indexer\.proj|indexer_compressor_(?:gate|ape)"
    r"|ssm_[fg]_[ab]\.weight|ssm_beta\.weight|attn_kv_a_mqa\.weight|attn_[kv]_b\.weight"
)
_WIDE_IN_GLM5: Final = re.compile(r"attn_q_a|attn_q_b|nextn\.eh_proj")
_CATEGORIES: Final = (
    ("qkv", "attn_qkv.weight"),
    ("kv_b", "attn_kv_b.weight"),
    ("v", "attn_v.weight"),
    ("k", "attn_k.weight"),
    ("q", "attn_q.weight"),
    ("attention_output", "attn_output.weight"),
    ("up", "ffn_up"),
    ("gate", "ffn_gate"),
    ("down", "ffn_down"),
)


def known() -> tuple[str, ...]:
    """Every mixture by the name it goes by."""
    return tuple(_DEFAULTS)


def mixture_name(quant: str, *, flag: str = "--quant") -> str:
    """``quant``, which ``flag`` was given, in the spelling of ``known()``.

    Raises:
        UsageError: no such mixture.
    """
    name = quant.upper()
    name = _ALIASES.get(name, name)
    if name not in _DEFAULTS:
        raise UsageError(
            f"{flag} {shown(quant)}: there is no such quantization",
            hint=f"one of {', '.join(_DEFAULTS)}",
        )
    return name


@dataclass(frozen=True, slots=True)
class Model:
    """What of a model the rules look at. ``architecture`` is GGUF's or config.json's name,
    ``grouped`` how many query heads share keys and values, ``blocks`` counts draft layers too."""

    architecture: str
    blocks: int
    experts: int
    grouped: int

    @property
    def is_70b(self) -> bool:
        """The 80 layers whose values eight heads share."""
        return self.blocks == 80 and (
            self.architecture == "qwen2" or (self.architecture == "llama" and self.grouped > 1)
        )

    @property
    def is_glm5(self) -> bool:
        return self.architecture.startswith(("glm5_next", "glm5-next"))


@dataclass(frozen=True, slots=True)
class Assigned:
    """A tensor with the type it gets; ``wanted`` is another where no block of that divides its
    rows."""

    tensor: LayoutTensor
    wanted: str


def retyped(
    tensors: Iterable[LayoutTensor], quant: str, model: Model, *, weighted: bool | None = None
) -> Iterator[LayoutTensor]:
    """``tensors`` of a GGUF file in floats with the types that the mixture ``quant`` gives them.

    They are visited in their order, which is by layer and name where the rules are to count as
    llama.cpp does. ``weighted`` says whether an importance matrix is at hand; None where the
    smallest mixtures have one and others have not.

    Raises:
        UsageError: no such mixture.
    """
    for each in assigned(tensors, quant, model, weighted=weighted):
        yield each.tensor


def assigned(
    tensors: Iterable[LayoutTensor],
    quant: str,
    model: Model,
    *,
    weighted: bool | None = None,
    override: Callable[[str], str | None] = lambda _: None,
) -> Iterator[Assigned]:
    """The same with what the rules wanted. ``override`` may name the type of a tensor that may be
    quantized; the rules do not count such a one.

    Raises:
        UsageError: no such mixture.
    """
    name = mixture_name(quant)
    found = list(tensors)
    chooser = _Chooser(
        name,
        model,
        name in _WEIGHTED if weighted is None else weighted,
        tied=all(tensor.name != "output.weight" for tensor in found),
        values=sum(_category(tensor.name) in _VALUES for tensor in found),
    )
    for tensor in found:
        wanted = got = tensor.type.name
        if quantizable(tensor, model):
            wanted = override(tensor.name) or chooser.type_of(tensor)
            got = fitting(wanted, tensor.shape[-1])
        yield Assigned(LayoutTensor(tensor.name, tensor.shape, _TYPES[got], tensor.copies), wanted)


def quantizable(tensor: LayoutTensor, model: Model) -> bool:
    """Whether a mixture may change the tensor's type: what it may not stays as it is."""
    name = tensor.name
    if not name.endswith("weight") or tensor.type.name in _INTEGERS:
        return False
    if math.prod(tensor.shape[:-1]) < 2:  # one row: a vector, however it is written
        return False
    if _KEPT.search(name):
        return False
    return not (model.is_glm5 and _KEPT_IN_GLM5.search(name))


def _category(name: str) -> str:
    if name == "output.weight":
        return "output"
    if name in {"token_embd.weight", "per_layer_token_embd.weight"}:
        return "embedding"
    return next((category for category, mark in _CATEGORIES if mark in name), "other")


_VALUES: Final = frozenset({"qkv", "kv_b", "v"})


def _more(layer: int, layers: int) -> bool:
    """The first and last eighth, and every third layer between."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


@dataclass(slots=True)
class _Chooser:
    quant: str
    model: Model
    weighted: bool
    tied: bool
    values: int
    seen: dict[str, int] = field(default_factory=dict)

    def type_of(self, tensor: LayoutTensor) -> str:
        """Of a tensor that may be quantized, before its width is looked at."""
        default = _DEFAULTS[self.quant]
        if default in _FLOATS:
            return default
        category = _category(tensor.name)
        if self.quant == "NVFP4":
            return "BF16" if category in {"output", "embedding"} else default
        if self.quant == "MXFP4":
            return "MXFP4" if self._of_experts(tensor, category) else "Q8_0"
        if self.model.is_glm5 and _WIDE_IN_GLM5.search(tensor.name):
            return "Q8_0"
        return self._chosen(tensor, category, default)

    def _of_experts(self, tensor: LayoutTensor, category: str) -> bool:
        if category in {"output", "embedding"} or len(tensor.shape) < 3 or tensor.shape[-3] < 2:
            return False
        # Its latent projections have three dimensions too.
        return self.model.architecture != "bailingmoe3" or category in {"up", "gate", "down"}

    def _chosen(self, tensor: LayoutTensor, category: str, default: str) -> str:
        if category == "output" or (self.tied and category == "embedding"):
            return self._output(tensor.shape[-1], default)
        if category == "embedding":
            return self._embedding(default)
        count = self._count("v" if category in _VALUES else category)
        if self.quant in _SMALLEST:
            return self._smallest(category, count, default)
        if category in _VALUES:
            return self._value(count, default)
        layer, layers = self._layer(tensor.name, count)
        if category in {"k", "q"}:
            return self._query_or_key(category, default)
        if category == "down":
            return self._down(layer, layers, default)
        if category == "attention_output":
            return self._attention_output(default)
        if category in {"gate", "up"} and self.quant == "IQ3_XS":
            inside = layers // 8 <= layer < 7 * layers // 8
            return "IQ3_XXS" if inside else default
        return default

    def _count(self, category: str) -> int:
        """How many of this category came before."""
        number = self.seen.get(category, 0)
        self.seen[category] = number + 1
        return number

    def _layer(self, name: str, count: int) -> tuple[int, int]:
        """Mixtures are counted by the layer in the name, dense models by what came before."""
        if self.model.experts > 1 and name.startswith("blk."):
            return int(name.split(".")[1]), self.model.blocks
        return count, self.model.blocks

    def _output(self, width: int, default: str) -> str:
        if width % _TYPES[default].block_elements or default == "Q8_0":
            return "Q8_0"
        return "Q5_K" if self.quant in _SMALLEST | {"IQ3_XXS"} else "Q6_K"

    def _embedding(self, default: str) -> str:
        if self.quant in {"IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M"}:
            return "Q2_K"
        if self.quant in {"TQ1_0", "TQ2_0", "Q2_0"}:
            return "Q4_K"
        return "IQ3_S" if self.quant in {"IQ2_S", "IQ2_M", "IQ3_XXS"} else default

    def _smallest(self, category: str, count: int, default: str) -> str:
        better = "IQ3_S" if self.quant in {"IQ2_S", "IQ2_M"} else "Q2_K"
        eight = self.model.experts == 8
        if category in _VALUES:
            return "Q4_K" if self.model.grouped >= 4 or self.model.experts >= 4 else better
        if category == "k" and eight:
            return "Q4_K"
        if category == "down" and count < self.model.blocks // 8:
            return better
        if category == "attention_output":
            small = {"IQ1_S": "IQ2_XXS", "IQ1_M": "IQ2_XXS", "IQ2_S": "IQ3_S", "IQ2_M": "IQ3_S"}
            return "Q5_K" if eight else small.get(self.quant, default)
        return default

    def _value(self, count: int, default: str) -> str:
        chosen = self._value_by_mixture(count, default)
        if self.model.is_70b and chosen in {"Q3_K", "Q4_K"}:
            chosen = "Q5_K"
        return "Q8_0" if self.model.experts == 8 else chosen

    def _value_by_mixture(self, count: int, default: str) -> str:
        shared = self.model.grouped >= 4
        if self.quant == "Q2_K":
            return "Q4_K" if shared else "Q3_K"
        if self.quant in {"Q2_K_S", "IQ3_XS", "IQ3_S"} and shared:
            return "Q4_K"
        if self.quant == "IQ3_XXS":
            return "Q4_K" if shared else default if self.weighted else "IQ3_S"
        if self.quant in {"IQ4_NL", "IQ4_XS"} and shared:
            return "Q5_K"
        if self.quant in {"Q4_K_M", "Q5_K_M"}:
            return "Q6_K" if _more(count, self.values) else default
        fixed = {
            "IQ3_M": "Q4_K",
            "Q3_K_M": "Q5_K" if count < 2 else "Q4_K",
            "Q3_K_L": "Q5_K",
            "Q4_K_S": "Q5_K" if count < 4 else default,
        }
        return fixed.get(self.quant, default)

    def _query_or_key(self, category: str, default: str) -> str:
        if category == "k" and self.model.experts == 8:
            return "Q8_0"
        return {"IQ3_XS": "IQ3_XXS", "IQ3_XXS": "IQ2_S"}.get(self.quant, default)

    def _down(self, layer: int, layers: int, default: str) -> str:
        first = layer < layers // 8
        more = _more(layer, layers)
        if self.quant == "IQ3_XXS" and not self.weighted:
            return "Q4_K" if first else "Q3_K"
        if self.quant == "IQ3_M":
            return "Q4_K" if first or (self.model.experts == 8 and more) else default
        if self.quant in {"IQ4_NL", "IQ4_XS"} and not self.weighted:
            return "Q5_K" if first else default
        if self.quant in {"Q4_0", "Q5_0"} and self.weighted and first:
            return {"Q4_0": "Q4_1", "Q5_0": "Q5_1"}[self.quant]
        fixed = {
            "Q2_K": "Q3_K",
            "Q2_K_S": "Q4_K" if first else default,
            "Q3_K_M": "Q5_K" if layer < layers // 16 else "Q4_K",
            "Q3_K_L": "Q5_K",
            "Q4_K_M": "Q6_K" if more else default,
            "Q5_K_M": "Q6_K" if more else default,
            "Q4_K_S": "Q5_K" if first else default,
        }
        return fixed.get(self.quant, default)

    def _attention_output(self, default: str) -> str:
        if self.model.experts == 8:
            wide = {"Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M"}
            small = self.quant.startswith(("IQ3", "IQ4"))
            return "Q5_K" if small or self.quant in wide else default
        fixed = {
            "Q2_K": "Q3_K",
            "IQ3_XXS": "IQ3_S",
            "Q3_K_M": "Q4_K",
            "Q3_K_L": "Q5_K",
            "IQ3_M": "Q4_K",
        }
        return fixed.get(self.quant, default)


def fitting(name: str, width: int) -> str:
    """``name``, or the type in its place whose blocks divide a row: a smaller block, or none."""
    if width % _TYPES[name].block_elements:
        name = _FALLBACKS.get(name, "IQ4_NL" if name.startswith("IQ") else name)
        if width % _TYPES[name].block_elements:
            return "F16"
    return name
