"""Knows no logits: a text's tokens cut into windows, and which positions of a window count.

As llama-perplexity does: windows follow each other without overlap, and a rest shorter than one is
left out. Only the second half of a window counts, so that every prediction has some context
(https://huggingface.co/docs/transformers/perplexity); the last token predicts nothing that is
known. A vocabulary that begins texts with a control token has it in place of each window's first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from localrun.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from localrun.engine.runner import Vocabulary

N_CTX: Final = 512
SHORTEST: Final = 8


class Windows(Protocol):
    """``count`` windows of ``n_ctx`` tokens each."""

    @property
    def n_ctx(self) -> int: ...

    @property
    def count(self) -> int: ...

    def tokens(self, at: int) -> NDArray[np.int32]:
        """Window ``at`` from 0, ``[n_ctx]``, as the text has it."""
        ...


@dataclass(frozen=True, slots=True)
class TextWindows:
    """Windows of one text."""

    ids: NDArray[np.int32]
    n_ctx: int
    count: int

    def tokens(self, at: int) -> NDArray[np.int32]:
        return self.ids[at * self.n_ctx : (at + 1) * self.n_ctx]


def cut(tokens: Sequence[int], n_ctx: int = N_CTX, limit: int | None = None) -> TextWindows:
    """The windows of a text's tokens, at most ``limit`` of them.

    Raises:
        UsageError: ``n_ctx`` or ``limit`` is too small, or the text shorter than one window.
    """
    if n_ctx < SHORTEST:
        raise UsageError(f"--ctx {n_ctx}: a window has at least {SHORTEST} tokens")
    if limit is not None and limit < 1:
        raise UsageError(f"--chunks {limit}: at least one window is evaluated")
    whole = len(tokens) // n_ctx
    if whole == 0:
        raise UsageError(
            f"the text has {len(tokens)} tokens, one window takes {n_ctx}",
            hint="give a longer text with --text, or shorter windows with --ctx",
        )
    count = whole if limit is None else min(whole, limit)
    return TextWindows(np.asarray(tokens[: count * n_ctx], np.int32), n_ctx, count)


def first_counted(n_ctx: int) -> int:
    """The first position of a window whose prediction counts."""
    return n_ctx // 2


def counted(n_ctx: int) -> int:
    """Predictions that count in one window: of all tokens but the first of the second half."""
    return n_ctx - 1 - first_counted(n_ctx)


def targets(window: NDArray[np.int32]) -> NDArray[np.int32]:
    """The tokens that the counted positions of a window are to predict, ``[counted]``."""
    return window[first_counted(len(window)) + 1 :]


def as_begun(window: NDArray[np.int32], vocabulary: Vocabulary) -> list[int]:
    """The tokens that a model is given for a window."""
    given: list[int] = window.tolist()
    if vocabulary.add_bos and vocabulary.bos is not None:
        given[0] = vocabulary.bos
    return given


@dataclass(frozen=True, slots=True)
class First:
    """The first ``count`` of other windows."""

    windows: Windows
    count: int

    @property
    def n_ctx(self) -> int:
        return self.windows.n_ctx

    def tokens(self, at: int) -> NDArray[np.int32]:
        return self.windows.tokens(at)


def require_same_tokens(reference: Windows, mine: Sequence[int], what: str) -> None:
    """Hold that a text gives this model the tokens that its reference had.

    Raises:
        UsageError: it does not, saying where first; ``what`` names the reference.
    """
    n_ctx = reference.n_ctx
    for at in range(reference.count):
        window = np.asarray(mine[at * n_ctx : (at + 1) * n_ctx], np.int32)
        theirs = reference.tokens(at)
        if not np.array_equal(window, theirs):
            shared = min(len(window), n_ctx)
            differing = np.flatnonzero(window[:shared] != theirs[:shared])
            place = at * n_ctx + int(differing[0] if len(differing) else shared)
            raise UsageError(
                f"{what}: token {place} of the text is another one for this model",
                hint="give the text that the reference was made of; the two models must share "
                "their tokenizer",
            )
