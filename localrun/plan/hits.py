"""Knows no machine: how often a routed expert is found in a cache of so many.

Routers pick experts unevenly: the i-th most picked of a layer with a probability near i^-s. An LRU
cache of n of them then holds expert i with probability 1 - (1 - p_i)^T, where T is the time that
makes those sum to n (Che's approximation, https://doi.org/10.1109/JSAC.2002.801752). Fits of s to
published traces: shared figures of 0.75 to 1.5, 0.9 for mixed work and 1.3 for one long session.
Where it was counted how often each is picked, that is the curve, and a session that is more or less
alike makes it steeper or flatter by as much as it would i^-s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

COLD_SKEW = 0.9
STEADY_SKEW = 1.3
# Between the two, where nothing says what the session is like.
TYPICAL_SKEW = 1.15


@dataclass(frozen=True, slots=True)
class Picking:
    """How unevenly a session picks; ``learned`` is what was counted (``Learned.picks``), empty
    where nothing was."""

    skew: float = TYPICAL_SKEW
    learned: tuple[float, ...] = ()

    def hits(self, slots: float, count: int, used: int) -> float:
        """As ``hit_rate``."""
        return hit_rate(slots, count, used, self.skew, self.learned)

    def touched(self, tokens: int, count: int, used: int) -> float:
        """As ``touched``."""
        return touched(tokens, count, used, self.skew, self.learned)


def hit_rate(
    slots: float, count: int, used: int, skew: float, learned: tuple[float, ...] = ()
) -> float:
    """The share of picks found in a cache that keeps ``slots`` of ``count`` experts of each layer.

    ``used`` experts are picked a token. With as many as are picked, a layer's slots hold the last
    token's: 36 % of the picks of a Kimi-K3 were found in 1.02 times one token's experts
    (sqliteai/warp). A cache of fewer loses some of a token's own before the next one.
    """
    if count <= 0 or used <= 0 or slots >= count:
        return 1.0
    learned = learned if len(learned) == count else ()
    low = math.floor(slots)
    rate = _curve(low, count, used, skew, learned)
    if slots > low:
        rate += (slots - low) * (_curve(low + 1, count, used, skew, learned) - rate)
    return rate * min(1.0, slots / used)


@lru_cache(maxsize=65_536)
def _curve(slots: int, count: int, used: int, skew: float, learned: tuple[float, ...]) -> float:
    if slots >= count:
        return 1.0
    if slots <= 0:
        return 0.0
    picks = picked(count, used, skew, learned)
    rates = [-math.log1p(-pick) if pick < 1 else math.inf for pick in picks]
    time, exp = _time_to_hold(rates, slots), math.exp
    found = sum(pick * (1 - exp(-rate * time)) for pick, rate in zip(picks, rates, strict=True))
    return min(1.0, found / used)


def _time_to_hold(rates: list[float], slots: int) -> float:
    """The T at which a cache holds ``slots``, by Newton's method.

    What is held grows with T ever more slowly, so each step from the left stays left of it.
    """
    time, exp = 1e-3, math.exp
    for _ in range(40):
        out = [exp(-rate * time) for rate in rates]
        held = len(rates) - sum(out)
        slope = sum(rate * left for rate, left in zip(rates, out, strict=True) if left)
        if slots - held < 1e-6 * slots or slope <= 0:
            break
        time += (slots - held) / slope
    return time


@lru_cache(maxsize=256)
def picked(
    count: int, used: int, skew: float, learned: tuple[float, ...] = ()
) -> tuple[float, ...]:
    """The probability that a token picks expert i of a layer, most picked first; sums to used.

    None is picked twice by one token: drawn as often as i^-s says, again and again until ``used``
    are, an expert is among them with 1 - e^(-c i^-s), for the c that makes those sum to ``used``.
    """
    if used >= count:
        return (1.0,) * count
    weights = _counted(learned, skew) or [(i + 1) ** -skew for i in range(count)]
    draws, exp = used / sum(weights), math.exp
    # Newton's method: the sum grows with c ever more slowly, so each step stays left of it.
    for _ in range(100):
        left = [exp(-draws * weight) for weight in weights]
        short = used - (count - sum(left))
        if short < 1e-12 * used:
            break
        draws += short / sum(weight * rest for weight, rest in zip(weights, left, strict=True))
    chances = [1 - exp(-draws * weight) for weight in weights]
    scale = used / sum(chances)
    return tuple(min(1.0, chance * scale) for chance in chances)


def _counted(learned: tuple[float, ...], skew: float) -> list[float]:
    """How often each would be drawn to be picked as it was; never not at all, since a count only
    ends some time."""
    most = max(learned, default=0.0)
    if most <= 0:
        return []
    draws = [-math.log1p(-min(pick, 1 - 1e-6)) for pick in learned]
    least = 1e-6 * max(draws)
    return [max(draw, least) ** (skew / TYPICAL_SKEW) for draw in draws]


@lru_cache(maxsize=4096)
def touched(
    tokens: int, count: int, used: int, skew: float, learned: tuple[float, ...] = ()
) -> float:
    """Distinct experts of a layer that ``tokens`` tokens together pick."""
    if count <= 0:
        return 0.0
    learned = learned if len(learned) == count else ()
    return sum(1 - (1 - pick) ** tokens for pick in picked(count, used, skew, learned))
