"""Knows no scheduling: from hidden states to one vector a text, in slices an engine can interleave.

Pooling and normalising as sentence-transformers and llama.cpp do them.
https://sbert.net/docs/package_reference/sentence_transformer/models.html#sentence_transformers.models.Pooling
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from localrun.engine.limits import check_embedding
from localrun.engine.request import EmbeddingRequest
from localrun.engine.runner import Capabilities, ModelRunner, Pooling
from localrun.errors import EngineError, RequestError

DEFAULT_POOLING: Final[Pooling] = "mean"


class EmbeddingJob:
    """One ``EmbeddingRequest`` under way, a slice of texts at a time.

    Each ``step`` is one ``ModelRunner.embed``: as many of the next texts as fit the limit, at least
    one. Everything that can be refused without the runner is refused here, before it waits.

    Raises:
        RequestError: the runner makes no embeddings.
        RequestError, ContextLengthError: as ``limits.check_embedding``; a text may be as long as a
            sequence and a forward of the runner.
    """

    def __init__(
        self, request: EmbeddingRequest, limits: Capabilities, *, vocabulary_size: int
    ) -> None:
        if not limits.embeddings:
            raise RequestError(
                "this model's runner makes no embeddings",
                hint="choose an embedding model",
                field="model",
            )
        check_embedding(request, longest=limits.longest_text, vocabulary_size=vocabulary_size)
        self._request = request
        self._pooling: Pooling = request.pooling or limits.pooling or DEFAULT_POOLING
        self._max_tokens = limits.max_tokens
        self._vectors: list[NDArray[np.float32]] = []

    @property
    def done(self) -> bool:
        return len(self._vectors) == len(self._request.texts)

    @property
    def tokens(self) -> int:
        """How many tokens the texts have together."""
        return sum(len(text) for text in self._request.texts)

    @property
    def cells(self) -> int:
        """How many tokens a sequence of the runner's has to hold at most."""
        return max(len(text) for text in self._request.texts)

    @property
    def vectors(self) -> NDArray[np.float32]:
        """``[texts, dimensions]``, in the order of the texts, once ``done``."""
        assert self.done
        return np.stack(self._vectors)

    def step(self, runner: ModelRunner, most_tokens: int | None = None) -> bool:
        """Compute the next slice, of at most ``most_tokens`` where more than one text is in it.

        Returns whether that was the last. A slice that raised may be tried again.

        Raises:
            ForwardAborted: ``runner.abort`` was called.
            EngineError: the runner failed, or a vector is not finite.
            RequestError: more ``dimensions`` than the model has.
        """
        texts = self._slice(most_tokens or self._max_tokens)
        states = runner.embed(texts)
        self._vectors += [self._vector(hidden) for hidden in states]
        return self.done

    def _slice(self, most_tokens: int) -> list[tuple[int, ...]]:
        room = min(most_tokens, self._max_tokens)
        taken: list[tuple[int, ...]] = []
        for text in self._request.texts[len(self._vectors) :]:
            if taken and len(text) > room:
                break
            taken.append(text)
            room -= len(text)
        return taken

    def _vector(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        # A copy: a view of one token's state would keep those of the whole text.
        vector = np.array(shortened(pooled(hidden, self._pooling), self._request.dimensions))
        if not np.isfinite(vector).all():
            raise EngineError("the model computed an embedding that is not finite")
        return normalized(vector) if self._request.normalize else vector


def pooled(hidden: NDArray[np.float32], pooling: Pooling) -> NDArray[np.float32]:
    """One vector ``[width]`` of a text's ``hidden`` states ``[tokens, width]``: of the first token
    (``cls``), of the last, or the mean of all."""
    vector: NDArray[np.float32]
    match pooling:
        case "cls":
            vector = hidden[0]
        case "last":
            vector = hidden[-1]
        case "mean":
            # Thousands of float32 would lose digits.
            vector = hidden.mean(axis=0, dtype=np.float64).astype(np.float32)
    return vector


def shortened(vector: NDArray[np.float32], dimensions: int | None) -> NDArray[np.float32]:
    """The first ``dimensions`` places of ``vector`` ``[width]``; None keeps them all.

    Raises:
        RequestError: it has fewer.
    """
    if dimensions is not None and dimensions > vector.size:
        raise RequestError(
            f"dimensions {dimensions}: this model's embeddings have {vector.size}",
            field="dimensions",
        )
    return vector[:dimensions]


def normalized(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    """``vector`` with the length 1; nothing but zeros stays that."""
    # Squares of large float32 overflow.
    length = np.linalg.norm(vector.astype(np.float64))
    return (vector / length).astype(np.float32) if length > 0 else vector
