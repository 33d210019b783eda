"""Knows no tensors: how many weights a scale of an MLX checkpoint is for, by its config.json.

``quantization`` holds the packing of all modules, and under a module's name that of one
(https://github.com/ml-explore/mlx-lm/blob/main/mlx_lm/utils.py, ``quantize_model``). The words that
hold the weights do not tell: eight to one with a scale to 64, or four with a scale to 32, look the
same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from localrun.models.fields import Fields

_KEY = "quantization"
_GROUP_MAX = 1 << 16
_BITS_MAX = 32


@dataclass(frozen=True, slots=True)
class Packing:
    """``group``: weights to a scale; ``named``: those of single modules; ``bits`` of a weight."""

    group: int
    bits: int
    mode: str = "affine"
    named: Mapping[str, int] = field(default_factory=dict)

    def group_of(self, module: str) -> int:
        return self.named.get(module, self.group)

    @property
    def called(self) -> str:
        """As a person calls it: ``mlx-4bit``, ``mlx-mxfp4``."""
        return f"mlx-{self.bits}bit" if self.mode == "affine" else f"mlx-{self.mode}"


def packing_of(config: Fields) -> Packing | None:
    """None where the checkpoint is not quantized by mlx.

    Raises:
        HeaderError: a number that is none, or no packing has.
    """
    told = config.mapping(_KEY)
    if told is None:
        return None
    named = {}
    for module, value in told.values.items():
        own = told.mapping(module) if isinstance(value, Mapping) else None
        if own is not None:
            named[module] = own.needed("group_size", most=_GROUP_MAX)
    return Packing(
        told.needed("group_size", most=_GROUP_MAX),
        told.needed("bits", most=_BITS_MAX),
        told.text("mode") or "affine",
        named,
    )
