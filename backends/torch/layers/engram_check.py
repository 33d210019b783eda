"""Knows no tensor but what it checks: rows that tokens find, in whole numbers, one after another.

As inference/engram.py of https://huggingface.co/deepseek-ai/DeepSeek-V4.1-Flash computes them, and
as slowly: what ``Hashes`` does for all tokens at once is held against it on request.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from torch import Tensor

from localrun.errors import EngineError
from localrun.releases.engram import Engram

_DEAD: Final = -1


def plain_rows(
    constants: Engram, layer: int, before: Sequence[int], tokens: Sequence[int]
) -> list[list[int]]:
    """Of each of ``tokens``, behind tokens of the classes ``before``, of which a negative one is
    part of no n-gram."""
    number, made = constants.layers.index(layer), []
    factors, primes = constants.multipliers[number], constants.primes[number]
    classes = [*before, *(constants.classes[token] for token in tokens)]
    for place in range(len(before), len(classes)):
        mixed, blocked, found = 0, False, []
        for back in range(constants.ngram):
            own = classes[place - back] if back <= place else _DEAD
            blocked = blocked or own < 0
            mixed ^= (constants.pad_class if blocked else own) * factors[back]
            for head in range(constants.heads if back else 0):
                bucket = (back - 1) * constants.heads + head
                found.append(mixed % primes[bucket] + sum(primes[:bucket]))
        made.append(found)
    return made


def hold_rows(
    constants: Engram, layer: int, before: Sequence[int], tokens: Sequence[int], rows: Tensor
) -> None:
    """Raises EngineError where ``rows``, ``[T, K]``, are not those of ``plain_rows``."""
    expected = plain_rows(constants, layer, before, tokens)
    for place, (own, wanted) in enumerate(zip(rows.tolist(), expected, strict=True)):
        if own != wanted:
            at = next(n for n, (a, b) in enumerate(zip(own, wanted, strict=True)) if a != b)
            raise EngineError(
                f"layers.{layer}.engram: token {tokens[place]} looks row {own[at]} up in bucket "
                f"{at}, its n-gram finds row {wanted[at]}",
                hint="what computes rows is at fault; please report it",
            )
