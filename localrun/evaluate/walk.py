"""Knows no definition: what every evaluation does at each window, and how it is told of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from localrun.errors import EngineError

Told = Callable[[int, int, float], None]
"""Called after each window with windows done, windows in all and the mean so far, in nats."""


def silent(_done: int, _all: int, _mean: float) -> None:
    """Tells nobody."""


@contextmanager
def numbers_of_window(at: int) -> Iterator[None]:
    """Raises EngineError, naming the window from 1, where what is computed inside is no number."""
    try:
        yield
    except FloatingPointError as error:
        raise EngineError(
            f"window {at + 1}: {error}",
            hint="the weights are damaged, or the backend computes them wrongly: try another",
        ) from error
