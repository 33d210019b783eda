"""Knows no model: how much memory Metal lets a process work with, and what mlx is told of it.

Metal recommends a working set, two thirds of a small Mac's memory and three quarters of a large
one's; ``sysctl iogpu.wired_limit_mb`` raises it
(https://developer.apple.com/documentation/metal/mtldevice/recommendedmaxworkingsetsize). What lies
beyond may be paged out between two tokens. Weights that are wired are not:
https://ml-explore.github.io/mlx/build/html/python/_autosummary/mlx.core.set_wired_limit.html.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from localrun.errors import OutOfMemoryError

MIB: Final = 1 << 20
# Buffers that mlx keeps for the next step: without a bound they grow to all that is free.
_LEAST_KEPT: Final = 64 * MIB


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes: ``wired`` stays in memory, ``memory`` is where mlx waits for buffers to come back,
    ``kept`` is what it may hold of freed ones."""

    wired: int
    memory: int
    kept: int


def limits(facts: Mapping[str, Any], planned: int, compute: int) -> Limits | None:
    """What Metal allows of a plan that takes ``planned`` bytes, ``compute`` of them for steps.

    ``facts`` are ``mx.device_info()``; None where they name no working set, as on a CPU.

    Raises:
        OutOfMemoryError: the plan takes more than the recommended working set.
    """
    recommended = int(facts.get("max_recommended_working_set_size", 0))
    if recommended <= 0:
        return None
    if planned > recommended:
        wanted = -(-planned // MIB)
        raise OutOfMemoryError(
            f"{planned / 2**30:.2f} GiB are planned, and Metal recommends a working set of "
            f"{recommended / 2**30:.2f} GiB",
            tier="unified",
            needed_bytes=planned,
            hint=f"lower --ctx, choose a smaller quantization, or raise the limit until the next "
            f"restart: sudo sysctl iogpu.wired_limit_mb={wanted}",
        )
    return Limits(wired=planned, memory=recommended, kept=max(_LEAST_KEPT, compute))
