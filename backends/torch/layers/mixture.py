"""Knows no scores: a token's routed experts, and those that every token has."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from localrun.backends.torch.layers.feed_forward import Experts, Gated
from localrun.backends.torch.layers.routing import Router
from localrun.backends.torch.tiers.experts import StreamedExperts


@dataclass(frozen=True, slots=True)
class Mixture:
    """``shared`` is None where a model has no such experts."""

    router: Router
    experts: Experts | StreamedExperts
    shared: Gated | None

    @property
    def nbytes(self) -> int:
        shared = self.shared.nbytes if self.shared else 0
        return self.router.nbytes + self.experts.nbytes + shared

    @property
    def read_bytes(self) -> int:
        """Of one token: of the experts those that it goes to."""
        routed = self.experts.expert_nbytes * self.router.top
        return self.nbytes - self.experts.nbytes + routed

    def __call__(self, x: Tensor, tokens: Tensor) -> Tensor:
        """``[T, D]`` and the ids int64 ``[T]`` → ``[T, D]``; everything is added in float32."""
        chosen, weights = self.router(x, tokens)
        routed = self.experts.begin(x, chosen, weights, tokens)
        # Experts that are missing are read meanwhile.
        shared = None if self.shared is None else self.shared(x)
        y = routed()
        if shared is not None:
            y = y + shared
        return y.to(x.dtype)

    def close(self) -> None:
        self.experts.close()
        if self.shared is not None:
            self.shared.close()
