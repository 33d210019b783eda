"""Knows neither V4 nor V4.1: the parts that blocks of both have, taken by the names they share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from localrun.backends.torch.layers.feed_forward import Gated
from localrun.backends.torch.layers.grouped_output import GroupedOutput
from localrun.backends.torch.layers.hyper_connections import Mix
from localrun.backends.torch.layers.mixture import Mixture
from localrun.backends.torch.layers.routing import Router
from localrun.backends.torch.tensors import Tensors
from localrun.models.architectures.deepseek_v4 import Sizes


class Shared(Protocol):
    """What both configurations say."""

    @property
    def sizes(self) -> Sizes: ...
    @property
    def experts(self) -> int: ...
    @property
    def limit(self) -> float: ...
    @property
    def eps(self) -> float: ...
    @property
    def hc_eps(self) -> float: ...
    @property
    def iterations(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Parts:
    """Every method raises as ``Tensors`` does."""

    config: Shared
    tensors: Tensors

    def wide(self, name: str, *shape: int) -> Tensor:
        return self.tensors.plain(name, *shape, dtype=torch.float32)

    def mix(self, name: str) -> Mix:
        config, sizes = self.config, self.config.sizes
        return Mix(
            self.wide(f"{name}_fn", sizes.mix, sizes.streams * sizes.width),
            self.wide(f"{name}_base", sizes.mix),
            self.wide(f"{name}_scale", 3),
            sizes.streams,
            config.eps,
            config.hc_eps,
            config.iterations,
        )

    def output(self, name: str) -> GroupedOutput:
        """``name`` is the attention's."""
        sizes = self.config.sizes
        part, latent = sizes.head * sizes.heads // sizes.groups, sizes.groups * sizes.o_rank
        wo_a = self.tensors.plain(f"{name}.wo_a.weight", latent, part)
        return GroupedOutput(
            wo_a.view(sizes.groups, sizes.o_rank, part),
            self.tensors.linear(f"{name}.wo_b", sizes.width, latent),
        )

    def mixture(self, name: str, router: Router) -> Mixture:
        """``name`` is the feed-forward part's."""
        config, sizes, tensors = self.config, self.config.sizes, self.tensors
        inner, width, count = sizes.inner, sizes.width, config.experts
        shared = None
        if sizes.shared:
            shared = Gated(
                tensors.linear(f"{name}.shared_experts.w1", sizes.shared, width),
                tensors.linear(f"{name}.shared_experts.w3", sizes.shared, width),
                tensors.linear(f"{name}.shared_experts.w2", width, sizes.shared),
                config.limit,
            )
        experts = tensors.experts(
            [f"{name}.experts.{{e}}.{part}" for part in ("w1", "w3", "w2")],
            count,
            inner,
            width,
            top=router.top,
            guess=lambda x, tokens: router(x, tokens)[0],
            limit=config.limit,
        )
        return Mixture(router, experts, shared)
