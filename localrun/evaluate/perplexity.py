"""Knows no file format of models: how well a runner predicts a text, window by window."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from localrun.engine.runner import ModelRunner
from localrun.evaluate.forward import counted_logits, cuts, require_room
from localrun.evaluate.logits_file import LogitsWriter
from localrun.evaluate.scores import compare_rows, encode, surprise
from localrun.evaluate.statistics import Perplexity, perplexity_of
from localrun.evaluate.walk import Told, numbers_of_window, silent
from localrun.evaluate.windows import Windows, targets

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def perplexity(
    runner: ModelRunner,
    windows: Windows,
    *,
    writer: LogitsWriter | None = None,
    told: Told = silent,
) -> Perplexity:
    """As llama-perplexity does; ``writer`` is given the log-probabilities of every window.

    Raises:
        UsageError: the model generates no text, or a window is longer than its context.
        EngineError: the library failed, or computed what is no number.
        DiskFullError, LocalrunError: ``writer`` could not write.
    """
    require_room(runner, windows.n_ctx)
    parts = cuts(windows.n_ctx, runner)
    nll: list[NDArray[np.float64]] = []
    floor: list[NDArray[np.float64]] = []
    for at in range(windows.count):
        window = windows.tokens(at)
        wanted = targets(window)
        with numbers_of_window(at), closing(counted_logits(runner, window, parts)) as rows:
            for part, logits in zip(parts, rows, strict=True):
                nll.append(surprise(logits, wanted[part]))
                if writer is not None:
                    records = encode(logits)
                    writer.add(records, logits.shape[1])
                    floor.append(compare_rows(records, logits, wanted[part]).kld)
        told(at + 1, windows.count, _mean(nll))
    return perplexity_of(nll, floor, n_ctx=windows.n_ctx, windows=windows.count)


def _mean(parts: list[NDArray[np.float64]]) -> float:
    return float(sum(part.sum() for part in parts) / sum(map(len, parts)))
