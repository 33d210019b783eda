"""Knows no family: Kimi Delta Attention, the linear attention of Kimi-Linear, K3 and GLM-5.3.

https://github.com/huggingface/transformers, ``models/kimi_linear``; names are those of releases.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from localrun.models.architecture import Storage
from localrun.models.fields import HEADS_MAX, WIDTH_MAX, Fields
from localrun.models.layout import LayoutTensor
from localrun.models.mla import float32

_STATE_BYTES = 4
_KERNEL_MAX = 1024


@dataclass(frozen=True, slots=True)
class Kda:
    """Sizes of one layer; ``full_gate`` projects the output's gate in one matrix, not in two."""

    heads: int
    head: int
    kernel: int
    full_gate: bool

    @property
    def width(self) -> int:
        return self.heads * self.head

    @property
    def state_bytes(self) -> int:
        """F32: a square for each head, and the inputs that the next convolution still needs."""
        history = 3 * self.width * (self.kernel - 1)
        return _STATE_BYTES * (self.width * self.head + history)

    def tensors(
        self, name: str, width: int, decay: tuple[int, ...], storage: Storage
    ) -> Iterator[LayoutTensor]:
        """``width`` is the model's, ``decay`` the shape of ``A_log``."""
        for part in "qkv":
            yield from storage.linear(f"{name}.{part}_proj", self.width, width)
            yield from storage.plain(f"{name}.{part}_conv1d.weight", self.width, 1, self.kernel)
        yield from storage.linear(f"{name}.f_a_proj", self.head, width)
        yield from storage.linear(f"{name}.f_b_proj", self.width, self.head)
        yield float32(f"{name}.dt_bias", self.width)
        yield float32(f"{name}.A_log", *decay)
        yield from storage.linear(f"{name}.b_proj", self.heads, width)
        if self.full_gate:
            yield from storage.linear(f"{name}.g_proj", self.width, width)
        else:
            yield from storage.linear(f"{name}.g_a_proj", self.head, width)
            yield from storage.linear(f"{name}.g_b_proj", self.width, self.head)
        yield from storage.plain(f"{name}.o_norm.weight", self.head)
        yield from storage.linear(f"{name}.o_proj", width, self.width)


def kda_of(config: Fields) -> Kda:
    """From ``linear_attn_config`` or the ``linear_…`` fields that stand for it.

    Raises:
        HeaderError: a field is absent or holds what no model has.
    """
    inner = config.mapping("linear_attn_config")
    if inner and inner.values.get("num_heads") is not None:
        return Kda(
            heads=inner.needed("num_heads", most=HEADS_MAX),
            head=inner.needed("head_dim", most=WIDTH_MAX),
            kernel=inner.needed("short_conv_kernel_size", most=_KERNEL_MAX),
            full_gate=inner.flag("use_full_rank_gate"),
        )
    return Kda(
        heads=config.integer("linear_num_heads", most=HEADS_MAX)
        or config.needed("num_attention_heads", most=HEADS_MAX),
        head=config.needed("linear_head_dim", most=WIDTH_MAX),
        kernel=config.needed("linear_conv_kernel_dim", most=_KERNEL_MAX),
        full_gate=False,
    )


def linear_layers(config: Fields, layers: int) -> tuple[bool, ...] | None:
    """Which layers have linear attention; None where nothing says so.

    By ``layer_types``; or by the two lists of ``linear_attn_config``, which count from 1 and
    together name every layer once; or by ``num_key_value_heads``, a list with 0 for them (GGUF).

    Raises:
        HeaderError: they do not fit the number of layers.
    """
    kinds = config.texts("layer_types", layers)
    if kinds is not None:
        return tuple(kind == "linear_attention" for kind in kinds)
    inner = config.mapping("linear_attn_config")
    if inner is not None:
        return _by_lists(inner, layers)
    if isinstance(config.values.get("num_key_value_heads"), tuple | list):
        heads = config.per_layer("num_key_value_heads", layers, most=HEADS_MAX) or ()
        return tuple(not count for count in heads)
    return None


def _by_lists(inner: Fields, layers: int) -> tuple[bool, ...]:
    linear = inner.integers("kda_layers", least=1, most=layers)
    full = inner.integers("full_attn_layers", least=1, most=layers)
    if linear is None or full is None:
        raise inner.absent("kda_layers" if linear is None else "full_attn_layers")
    if sorted((*linear, *full)) != list(range(1, layers + 1)):
        raise inner.error("kda_layers", f"and full_attn_layers do not name {layers} layers once")
    chosen = frozenset(linear)
    return tuple(layer in chosen for layer in range(1, layers + 1))
