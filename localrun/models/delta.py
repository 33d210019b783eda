"""Knows no family: the gated delta net, the linear attention of Qwen3-Next and its heirs.

https://github.com/huggingface/transformers, ``models/qwen3_next`` and ``models/qwen3_5``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from localrun.formats.types import SAFETENSORS_TYPES
from localrun.models.architecture import Storage
from localrun.models.fields import HEADS_MAX, LAYERS_MAX, WIDTH_MAX, Fields
from localrun.models.layout import LayoutTensor

_F32 = SAFETENSORS_TYPES["F32"]
_KERNEL_MAX = 1024
_SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}
_CONVOLUTION_BYTES = 4


@dataclass(frozen=True, slots=True)
class DeltaNet:
    """Sizes of one layer. ``state_type_bytes`` is of one number of the recurrent state."""

    width: int
    key_heads: int
    value_heads: int
    key_head: int
    value_head: int
    kernel: int
    state_type_bytes: int

    @classmethod
    def of(cls, config: Fields) -> Self:
        """
        Raises:
            HeaderError: a field is absent or holds what no model has.
        """
        kind = config.text("mamba_ssm_dtype") or "float32"
        if kind not in _SIZES:
            raise config.error("mamba_ssm_dtype", f"{kind!r} is not one of {', '.join(_SIZES)}")
        return cls(
            width=config.needed("hidden_size", most=WIDTH_MAX),
            key_heads=config.needed("linear_num_key_heads", most=HEADS_MAX),
            value_heads=config.needed("linear_num_value_heads", most=HEADS_MAX),
            key_head=config.needed("linear_key_head_dim", most=WIDTH_MAX),
            value_head=config.needed("linear_value_head_dim", most=WIDTH_MAX),
            kernel=config.needed("linear_conv_kernel_dim", most=_KERNEL_MAX),
            state_type_bytes=_SIZES[kind],
        )

    @property
    def keys(self) -> int:
        return self.key_heads * self.key_head

    @property
    def values(self) -> int:
        return self.value_heads * self.value_head

    @property
    def channels(self) -> int:
        """What the convolution runs over: queries, keys and values."""
        return 2 * self.keys + self.values

    @property
    def state_bytes(self) -> int:
        """One matrix a head, and the inputs that the next convolution still needs in F32."""
        recurrent = self.values * self.key_head * self.state_type_bytes
        return recurrent + self.channels * (self.kernel - 1) * _CONVOLUTION_BYTES

    def tensors(self, at: str, storage: Storage, *, fused: bool) -> Iterator[LayoutTensor]:
        """``fused`` projections are Qwen3-Next's; later releases store the four apart."""
        at = f"{at}linear_attn."
        if fused:
            yield from storage.linear(f"{at}in_proj_qkvz", self.channels + self.values, self.width)
            yield from storage.linear(f"{at}in_proj_ba", 2 * self.value_heads, self.width)
        else:
            yield from storage.linear(f"{at}in_proj_qkv", self.channels, self.width)
            yield from storage.linear(f"{at}in_proj_z", self.values, self.width)
            yield from storage.linear(f"{at}in_proj_b", self.value_heads, self.width)
            yield from storage.linear(f"{at}in_proj_a", self.value_heads, self.width)
        yield from storage.plain(f"{at}conv1d.weight", self.channels, 1, self.kernel)
        yield from storage.plain(f"{at}dt_bias", self.value_heads)
        yield from storage.plain(f"{at}A_log", self.value_heads)
        yield from storage.plain(f"{at}norm.weight", self.value_head)
        yield from storage.linear(f"{at}out_proj", self.width, self.values)


def linear_layers(config: Fields, layers: int) -> tuple[bool, ...]:
    """Which layers have linear attention: by name, or all but every fourth.

    Raises:
        HeaderError: a list that does not fit the layers, or an interval that no model has.
    """
    kinds = config.texts("layer_types", layers)
    if kinds is not None:
        return tuple(kind == "linear_attention" for kind in kinds)
    interval = config.integer("full_attention_interval", most=LAYERS_MAX) or 4
    return tuple((layer + 1) % interval != 0 for layer in range(layers))
