"""Knows no file: n-gram tables around mlx-lm's DeepSeek-V4.1, whose class has none.

Which rows tokens find is told by the classes of the last few of them (``releases.engram``), kept as
one more cache of a sequence: so forks, saved states and what is taken back need nothing of their
own. The rows of all tables are asked for before the first layer is built and waited for where they
join the streams; what was built until then is computed meanwhile. How they join is DeepSeek's
https://huggingface.co/deepseek-ai/DeepSeek-V4.1-Flash, inference/engram.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module
from mlx.nn.layers.linear import Linear
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from localrun.releases.engram import Engram
from localrun.releases.weights import Floats

Ids = NDArray[np.int64]
_SMALLEST: Final = 1e-6


class Asked(Protocol):
    """Rows on their way."""

    def advance(self) -> None:
        """Begin what has waited for memory; waits for nothing."""
        ...

    def numbers(self) -> Floats:
        """Waits; ``[rows asked for, width]``, in their order."""
        ...


class Table(Protocol):
    """Rows of one layer's table, in memory or on disk."""

    @property
    def nbytes(self) -> int:
        """In memory."""
        ...

    def ask(self, ids: Ids) -> Asked:
        """Begins to read rows, int64 ``[n]``."""
        ...


class Lookback:
    """The classes of a sequence's last tokens, oldest first, as a cache among caches."""

    def __init__(self, classes: Sequence[int]) -> None:
        self.classes = list(classes)


class Hashes:
    """Rows of every table that tokens find."""

    def __init__(self, constants: Engram) -> None:
        self.layers = constants.layers
        self._before = constants.ngram - 1
        self._heads = constants.heads
        self._pad = constants.pad_class
        self._classes = np.array(constants.classes, np.int64)
        self._multipliers = np.array(constants.multipliers, np.int64)
        self._primes = np.array(constants.primes, np.int64)
        self._offsets = np.array(constants.offsets, np.int64)

    def begin(self) -> Lookback:
        return Lookback([self._pad] * self._before)

    def near(self, tokens: Sequence[int], before: Sequence[int]) -> tuple[Ids, list[int]]:
        """``[T, n]``, the class of each token and then of those before it, of which ``before`` are
        the first one's; and what is ``before`` the next token."""
        own = self._classes[np.array(tokens, np.int64)]
        line = np.concatenate((np.array(before, np.int64), own))
        near = sliding_window_view(line, self._before + 1)[:, ::-1]
        return near, line[line.size - self._before :].tolist()

    def rows(self, layer: int, near: Ids) -> Ids:
        """``[T, (n - 1) * heads]``, the 2-grams' heads first."""
        number = self.layers.index(layer)
        mixed = near * self._multipliers[number]  # below 2^63, so no sign
        hashed = np.bitwise_xor.accumulate(mixed, axis=1)[:, 1:]
        found: Ids = np.repeat(hashed, self._heads, axis=1) % self._primes[number]
        found += self._offsets[number]
        return found


@dataclass(frozen=True, slots=True)
class _Step:
    """What a step asked for, by layer; the classes that it began and that it ended with."""

    before: list[int]
    tokens: list[int]
    after: list[int]
    asked: dict[int, Asked]


class Rows:
    """What the tables were asked for, from when a step's tokens are known to where it joins the
    streams."""

    def __init__(self, hashes: Hashes, tables: Mapping[int, Table]) -> None:
        self._hashes = hashes
        self._tables = tables
        self._asked: dict[int, Asked] = {}
        self._ahead: _Step | None = None

    def begin(self) -> Lookback:
        return self._hashes.begin()

    def ask(self, tokens: Sequence[int], lookback: Lookback, following: Sequence[int]) -> None:
        """For ``tokens``, which ``lookback`` then has passed, and already for those ``following``
        them, if there are any."""
        step, self._ahead = self._ahead, None
        if step is None or step.before != lookback.classes or step.tokens != list(tokens):
            step = self._step(tokens, lookback.classes)
        lookback.classes = step.after
        self._asked = step.asked
        if following:
            self._ahead = self._step(following, step.after)

    def _step(self, tokens: Sequence[int], before: list[int]) -> _Step:
        near, after = self._hashes.near(tokens, before)
        asked = {
            layer: table.ask(self._hashes.rows(layer, near).reshape(-1))
            for layer, table in self._tables.items()
        }
        return _Step(before, list(tokens), after, asked)

    def take(self, layer: int, streams: mx.array) -> mx.array:
        """Float32 ``[T, numbers of a token]``; ``streams`` are computed while rows are read."""
        mx.async_eval(streams)  # type: ignore[no-untyped-call]
        found = self._asked.pop(layer).numbers()
        ahead = self._ahead.asked.values() if self._ahead else ()
        for later in (*self._asked.values(), *ahead):
            later.advance()
        return mx.array(found.reshape(streams.shape[1], -1))


class Memory(Module):
    """What weighs the rows of a layer: keys for each stream and one value for all."""

    def __init__(self, streams: int, width: int, columns: int, eps: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.wkv = Linear(columns, (streams + 1) * width, bias=False)
        self.q_weight = mx.zeros((streams, width))
        self.k_weight = mx.zeros((streams, width))
        self._eps = eps

    def __call__(self, streams: mx.array, rows: mx.array) -> mx.array:
        """Streams ``[1, T, m, D]`` with what rows float32 ``[T, columns]`` add."""
        *_, m, width = streams.shape
        keyed = self.wkv(rows.astype(streams.dtype)).astype(mx.float32)
        keyed = keyed.reshape(1, -1, m + 1, width)
        x, keys, value = streams.astype(mx.float32), keyed[..., :-1, :], keyed[..., -1:, :]
        joined = x + self._gate(x, keys) * value
        return joined.astype(streams.dtype)

    def _gate(self, x: mx.array, keys: mx.array) -> mx.array:
        def factor(of: mx.array) -> mx.array:
            return mx.rsqrt(of.square().mean(-1, keepdims=True) + self._eps)

        weight = self.q_weight.astype(mx.float32) * self.k_weight.astype(mx.float32)
        agreed = (x * weight * keys).sum(-1, keepdims=True)
        agreed = agreed * factor(x) * factor(keys) * x.shape[-1] ** -0.5
        root = mx.sqrt(mx.maximum(mx.abs(agreed), _SMALLEST))
        return mx.sigmoid(mx.where(agreed < 0, -root, root))


class Layer(Module):
    """A layer of mlx-lm's with the memory before it."""

    def __init__(self, layer: Any, memory: Memory, number: int, rows: Rows) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layer = layer
        self.memory = memory
        self._number = number
        self._rows = rows

    def __call__(self, streams: mx.array, *beside: Any, **told: Any) -> Any:
        joined = self.memory(streams, self._rows.take(self._number, streams))
        return self.layer(joined, *beside, **told)


class Model(Module):
    """mlx-lm's model; of a sequence's caches the last is its ``Lookback``."""

    def __init__(self, model: Any, memories: Mapping[int, Memory], rows: Rows) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        layers = model.model.layers
        for number, memory in memories.items():
            layers[number] = Layer(layers[number], memory, number, rows)
        self.inner = model
        self._rows = rows
        self._following: Sequence[int] = ()

    @property
    def layers(self) -> Sequence[Any]:
        found: Sequence[Any] = self.inner.layers
        return found

    def make_cache(self) -> list[Any]:
        return [*self.inner.make_cache(), self._rows.begin()]

    def expect(self, tokens: Sequence[int]) -> None:
        """They will be the next call's, of the same sequence."""
        self._following = tokens

    def __call__(self, inputs: mx.array, cache: Sequence[Any]) -> mx.array:
        *caches, lookback = cache
        self._rows.ask(np.array(inputs[0]).tolist(), lookback, self._following)
        self._following = ()
        found: mx.array = self.inner(inputs, caches)
        return found
