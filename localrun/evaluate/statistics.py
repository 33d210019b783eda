"""Knows no model: means with their errors, and the figures that llama-perplexity prints of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from localrun.evaluate.scores import Comparison

if TYPE_CHECKING:
    from numpy.typing import NDArray

QUANTILES: Final = (0.999, 0.99, 0.95, 0.9, 0.75, 0.5, 0.25, 0.1, 0.05, 0.01, 0.001)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its standard error; ``value ± stderr`` holds two times in three."""

    value: float
    stderr: float


@dataclass(frozen=True, slots=True)
class Spread:
    """Where values lie: ``quantiles`` by their fraction of all."""

    minimum: float
    maximum: float
    quantiles: dict[float, float]

    @property
    def median(self) -> float:
        return self.quantiles[0.5]


@dataclass(frozen=True, slots=True)
class Perplexity:
    """How well a model predicts a text.

    perplexity: e to the power of ``nll``. nll: mean of ``-ln p`` over ``tokens`` predictions.
    floor: mean divergence of the model from its own log-probabilities in 16 bits; None where
        these were not made.
    """

    perplexity: Estimate
    nll: Estimate
    n_ctx: int
    windows: int
    tokens: int
    floor: Estimate | None


@dataclass(frozen=True, slots=True)
class Divergence:
    """How far a model is from a reference on a text.

    kld: mean Kullback-Leibler divergence in nats. kld_spread: of single tokens.
    same_top: share of tokens where both have the same likeliest one, 0 to 1.
    delta_p, delta_p_spread: probability of the token that came, less the reference's; rms_delta_p
        is the root of its mean square. All as fractions.
    log_ratio: logarithm of ``perplexity / reference_perplexity``; ``correlation`` of the two
        logarithms.
    floor: as in ``Perplexity``, of the reference; None where only its 16 bits are known.
    """

    kld: Estimate
    kld_spread: Spread
    same_top: Estimate
    delta_p: Estimate
    delta_p_spread: Spread
    rms_delta_p: Estimate
    log_ratio: Estimate
    correlation: float
    perplexity: Estimate
    reference_perplexity: Estimate
    n_ctx: int
    windows: int
    tokens: int
    floor: Estimate | None


def mean(values: NDArray[np.float64]) -> Estimate:
    """The mean of independent values; ``stderr`` is 0 of a single one."""
    count = len(values)
    error = math.sqrt(float(values.var()) / (count - 1)) if count > 1 else 0.0
    return Estimate(float(values.mean()), error)


def spread(values: NDArray[np.float64]) -> Spread:
    found = np.quantile(values, QUANTILES)
    return Spread(
        float(values.min()),
        float(values.max()),
        {at: float(value) for at, value in zip(QUANTILES, found, strict=True)},
    )


def perplexity_of(
    nll: Sequence[NDArray[np.float64]],
    floor: Sequence[NDArray[np.float64]],
    *,
    n_ctx: int,
    windows: int,
) -> Perplexity:
    """From ``-ln p`` of every token, in parts."""
    values = np.concatenate(nll)
    logarithm = mean(values)
    return Perplexity(
        _exponential(logarithm), logarithm, n_ctx, windows, len(values), _floor(floor)
    )


def divergence_of(
    parts: Iterable[Comparison],
    floor: Sequence[NDArray[np.float64]],
    *,
    n_ctx: int,
    windows: int,
) -> Divergence:
    """From what every token says, in parts."""
    whole = joined(parts)
    mine, theirs = mean(whole.nll), mean(whole.reference_nll)
    covariance, correlation = _together(whole.nll, whole.reference_nll)
    variance = mine.stderr**2 + theirs.stderr**2 - 2 * covariance
    return Divergence(
        kld=mean(whole.kld),
        kld_spread=spread(whole.kld),
        same_top=_share(whole.same_top),
        delta_p=mean(whole.delta_p),
        delta_p_spread=spread(whole.delta_p),
        rms_delta_p=_root(mean(whole.delta_p**2)),
        log_ratio=Estimate(mine.value - theirs.value, math.sqrt(max(0.0, variance))),
        correlation=correlation,
        perplexity=_exponential(mine),
        reference_perplexity=_exponential(theirs),
        n_ctx=n_ctx,
        windows=windows,
        tokens=len(whole.nll),
        floor=_floor(floor),
    )


def joined(parts: Iterable[Comparison]) -> Comparison:
    """One comparison of all tokens."""
    found = list(parts)
    return Comparison(
        nll=np.concatenate([each.nll for each in found]),
        reference_nll=np.concatenate([each.reference_nll for each in found]),
        kld=np.concatenate([each.kld for each in found]),
        delta_p=np.concatenate([each.delta_p for each in found]),
        same_top=np.concatenate([each.same_top for each in found]),
    )


def _floor(parts: Sequence[NDArray[np.float64]]) -> Estimate | None:
    return mean(np.concatenate(parts)) if parts else None


def _exponential(logarithm: Estimate) -> Estimate:
    value = math.exp(logarithm.value)
    return Estimate(value, value * logarithm.stderr)


def _root(square: Estimate) -> Estimate:
    value = math.sqrt(square.value)
    return Estimate(value, 0.5 / value * square.stderr if value else 0.0)


def _share(hits: NDArray[np.bool_]) -> Estimate:
    share, count = float(hits.mean()), len(hits)
    return Estimate(share, math.sqrt(share * (1 - share) / (count - 1)) if count > 1 else 0.0)


def _together(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[float, float]:
    """(covariance of the two means, correlation); values that do not vary have none."""
    if len(a) < 2:
        return 0.0, 0.0
    covariance = float(((a - a.mean()) * (b - b.mean())).mean()) / (len(a) - 1)
    scale = mean(a).stderr * mean(b).stderr
    return covariance, covariance / scale if scale else 0.0
