"""Knows no file format of models: how far a runner is from a reference on the same windows.

Both ways go through the reference's log-probabilities in 16 bits, so that a saved file and a
loaded model give the same figures.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from localrun.engine.runner import ModelRunner
from localrun.errors import UsageError
from localrun.evaluate.forward import counted_logits, cuts, require_room
from localrun.evaluate.logits_file import LogitsFile
from localrun.evaluate.scores import Comparison, compare_rows, encode
from localrun.evaluate.statistics import Divergence, divergence_of
from localrun.evaluate.walk import Told, numbers_of_window, silent
from localrun.evaluate.windows import Windows, targets

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class _Known:
    """What is known of the reference for some rows; ``floor`` is its own divergence from it."""

    records: NDArray[Any]
    n_vocab: int
    floor: NDArray[np.float64] | None


# (number of the window, its tokens, its parts) → what is known of each part, in order
_Source = Callable[[int, "NDArray[np.int32]", Sequence[slice]], Generator[_Known]]


def compare(
    reference: ModelRunner, runner: ModelRunner, windows: Windows, *, told: Told = silent
) -> Divergence:
    """``runner`` against ``reference``, both loaded and stepped in turn.

    Raises:
        UsageError: a model generates no text, its context is shorter than a window, or the two
            have different vocabularies.
        EngineError: a library failed, or computed what is no number.
    """
    require_room(reference, windows.n_ctx)
    require_room(runner, windows.n_ctx)

    def known(_at: int, window: NDArray[np.int32], parts: Sequence[slice]) -> Generator[_Known]:
        wanted = targets(window)
        with closing(counted_logits(reference, window, parts)) as rows:
            for part, logits in zip(parts, rows, strict=True):
                records = encode(logits)
                floor = compare_rows(records, logits, wanted[part]).kld
                yield _Known(records, logits.shape[1], floor)

    return _compared(known, runner, windows, cuts(windows.n_ctx, reference, runner), told)


def compare_with_saved(
    reference: LogitsFile, runner: ModelRunner, windows: Windows, *, told: Told = silent
) -> Divergence:
    """``runner`` against saved log-probabilities of ``windows``: the file itself, or its first.

    Raises:
        SourceError: the file is damaged. Else as ``compare``.
    """
    require_room(runner, windows.n_ctx)

    def known(at: int, _window: NDArray[np.int32], parts: Sequence[slice]) -> Generator[_Known]:
        for part in parts:
            yield _Known(reference.records(at, part), reference.n_vocab, None)

    return _compared(known, runner, windows, cuts(windows.n_ctx, runner), told)


def _compared(
    source: _Source, runner: ModelRunner, windows: Windows, parts: Sequence[slice], told: Told
) -> Divergence:
    found: list[Comparison] = []
    floor: list[NDArray[np.float64]] = []
    for at in range(windows.count):
        window = windows.tokens(at)
        wanted = targets(window)
        with (
            numbers_of_window(at),
            closing(counted_logits(runner, window, parts)) as rows,
            closing(source(at, window, parts)) as reference,
        ):
            for part, known, logits in zip(parts, reference, rows, strict=True):
                _require_same_vocabulary(known.n_vocab, logits.shape[1])
                found.append(compare_rows(known.records, logits, wanted[part]))
                if known.floor is not None:
                    floor.append(known.floor)
        told(at + 1, windows.count, _mean(found))
    return divergence_of(found, floor, n_ctx=windows.n_ctx, windows=windows.count)


def _require_same_vocabulary(reference: int, mine: int) -> None:
    if reference != mine:
        raise UsageError(
            f"the model predicts {mine} tokens, the reference {reference}: they have different "
            "vocabularies",
            hint="compare a model with its own original",
        )


def _mean(found: Sequence[Comparison]) -> float:
    return float(sum(each.kld.sum() for each in found) / sum(len(each.kld) for each in found))
