"""Knows no layer between: tokens on their way into a model and logits on their way out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from localrun.backends.torch.layers.norm import rms_norm
from localrun.backends.torch.matrices.dense import Dense
from localrun.backends.torch.matrices.packed import FEW, Brain
from localrun.backends.torch.tensors import Linear, Tensors
from localrun.errors import HeaderError
from localrun.formats.text import shown

# Numbers of a head that are widened at once.
_NUMBERS = 2**20


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """``embedding`` ``[V, D]``, the last norm's ``weight`` ``[D]`` and the output ``head``, which
    may lie in the embedding (``tied``)."""

    embedding: Tensor
    weight: Tensor
    head: Linear
    eps: float
    tied: bool

    @property
    def size(self) -> int:
        return self.embedding.shape[0]

    @property
    def nbytes(self) -> int:
        embedding = 0 if self.tied else self.embedding.nbytes
        return embedding + self.weight.nbytes + self.head.nbytes

    @property
    def read_bytes(self) -> int:
        """Of one row in and all rows out."""
        row = self.embedding.nbytes // self.size
        return row * (not self.tied) + self.weight.nbytes + self.head.nbytes

    @property
    def head_bytes(self) -> int:
        """Of a head that is no part of the embedding."""
        return 0 if self.tied else self.head.nbytes

    def embed(self, tokens: Tensor) -> Tensor:
        """int64 ``[T]`` → ``[T, D]``."""
        return functional.embedding(tokens, self.embedding)

    def logits(self, x: Tensor) -> Tensor:
        """``[R, D]`` → float32 ``[R, V]``."""
        return logits(self.head, rms_norm(x, self.weight, self.eps).to(self.embedding.dtype))

    def close(self) -> None:
        self.head.close()


def logits(head: Linear, normed: Tensor) -> Tensor:
    """``[R, D]`` → float32 ``[R, V]``. Sums are float32 too, as releases have them: BF16 ones often
    tie where the likeliest token is chosen."""
    wide = normed.float()
    plain = isinstance(head, Dense) or (isinstance(head, Brain) and wide.shape[0] > FEW)
    return _widened(wide, head.weight()) if plain else head(wide)


def _widened(x: Tensor, weight: Tensor) -> Tensor:
    """``x @ W.T`` in float32, some rows of ``weight`` after the other."""
    if weight.dtype == x.dtype:
        return functional.linear(x, weight)
    made = x.new_empty(x.shape[0], weight.shape[0])
    step = max(1, _NUMBERS // weight.shape[1])
    for start in range(0, weight.shape[0], step):
        block = slice(start, start + step)
        made[:, block] = functional.linear(x, weight[block].float())
    return made


def vocabulary_of(
    tensors: Tensors, prefix: str, size: int, width: int, eps: float, *, tied: bool
) -> Vocabulary:
    """``prefix`` is what stands in front of ``model.``.

    Raises:
        HeaderError: as ``Tensors.plain``; a head that is tied and stored again with other numbers.
    """
    embedding = tensors.plain(f"{prefix}model.embed_tokens.weight", size, width)
    weight = tensors.plain(f"{prefix}model.norm.weight", width, dtype=torch.float32)
    if not tied:
        return Vocabulary(
            embedding, weight, tensors.linear(f"{prefix}lm_head", size, width), eps, False
        )
    name = f"{prefix}lm_head.weight"
    if tensors.has(name) and not torch.equal(tensors.plain(name, size, width), embedding):
        problem = "is not the embedding, which config.json says it is (tie_word_embeddings)"
        raise HeaderError(shown(name), 0, problem)
    return Vocabulary(embedding, weight, tensors.over(embedding), eps, True)
