"""Knows no sequence: the caches of one as bytes, and back into fresh caches of the same model.

A mark, the length of a JSON header, the header (tokens, and the tree of each cache's attributes),
then the arrays one behind the other. Nothing in it names code: classes are those of the fresh
caches, and must be the same.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

import mlx.core as mx
import numpy as np

from localrun.backends.mlx.caches import arrays, cuts_anywhere
from localrun.errors import EngineError

_MARK: Final = b"localrun mlx 1\n"
_LENGTH: Final = 8
_TYPES: Final = {
    name: getattr(mx, name)
    for name in ("float32", "float16", "bfloat16", "uint8", "uint32", "int32", "int64", "bool_")
}
_NAMES: Final = {kind: name for name, kind in _TYPES.items()}


def packed(caches: Sequence[Any], tokens: int) -> bytes:
    """The state of ``tokens`` tokens.

    Raises:
        EngineError: the model keeps what is no array of numbers.
    """
    parts: list[mx.array] = []
    header = {"tokens": tokens, "caches": [_tree(cache, parts) for cache in caches]}
    mx.eval(parts)
    text = json.dumps(header).encode()
    data = [np.array(part.reshape(-1).view(mx.uint8)).tobytes() for part in parts if part.size]
    return b"".join((_MARK, len(text).to_bytes(_LENGTH, "little"), text, *data))


def unpack(state: bytes, caches: Sequence[Any]) -> int:
    """Fill fresh ``caches`` and return how many tokens they hold.

    Raises:
        EngineError: ``state`` is not one of this model's, or not whole.
    """
    start = len(_MARK) + _LENGTH
    if not state.startswith(_MARK) or len(state) < start:
        raise _not_one("it does not begin as one")
    end = start + int.from_bytes(state[len(_MARK) : start], "little")
    try:
        header = json.loads(state[start:end])
        tokens, trees = int(header["tokens"]), list(header["caches"])
        reader = _Reader(state, end)
        if tokens < 0 or len(trees) != len(caches):
            raise ValueError(f"{tokens} tokens in {len(trees)} caches")
        for cache, tree in zip(caches, trees, strict=True):
            reader.fill(cache, tree)
        reader.finish()
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _not_one(str(error)) from error
    mx.eval([*arrays(list(caches))])
    return tokens


def _not_one(problem: str) -> EngineError:
    return EngineError(f"a saved sequence could not be restored: {problem}")


def _tree(value: Any, parts: list[mx.array]) -> Any:
    """``value`` as JSON; its arrays are appended to ``parts``."""
    if isinstance(value, mx.array):
        if value.dtype not in _NAMES:
            raise EngineError(f"the state of a sequence holds {value.dtype}, which is not saved")
        parts.append(value)
        return {"array": _NAMES[value.dtype], "shape": value.shape}
    if isinstance(value, list | tuple):
        return {"list": [_tree(item, parts) for item in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    if not hasattr(value, "__dict__"):
        raise EngineError(f"the state of a sequence holds a {type(value).__name__}: not saved")
    return {"object": {key: _tree(item, parts) for key, item in _attributes(value).items()}}


def _attributes(cache: Any) -> dict[str, Any]:
    """Without the room that a growing cache keeps ahead of its tokens."""
    held = dict(vars(cache))
    if isinstance(held.get("keys"), mx.array) and cuts_anywhere([cache]):
        for name in ("keys", "values"):
            held[name] = held[name][..., : held["offset"], :]
    return held


class _Reader:
    """Arrays from a state's bytes, in the order they were written."""

    def __init__(self, state: bytes, at: int) -> None:
        self._state = state
        self._at = at

    def fill(self, target: Any, tree: Any) -> None:
        """Set the attributes of ``target``. Raises ValueError where it has others."""
        told = tree["object"]
        if told.keys() != vars(target).keys():
            raise ValueError(f"its {type(target).__name__} holds other things")
        for name, item in told.items():
            setattr(target, name, self._value(item, getattr(target, name)))

    def finish(self) -> None:
        if self._at != len(self._state):
            raise ValueError(f"{len(self._state)} bytes, {self._at} are told of")

    def _value(self, tree: Any, before: Any) -> Any:
        if "array" in tree:
            return self._array(_TYPES[tree["array"]], [int(size) for size in tree["shape"]])
        if "list" in tree:
            same = isinstance(before, list | tuple) and len(before) == len(tree["list"])
            olds = before if same else [None] * len(tree["list"])
            items = [self._value(item, old) for item, old in zip(tree["list"], olds, strict=True)]
            return tuple(items) if isinstance(before, tuple) else items
        if "value" in tree:
            return tree["value"]
        self.fill(before, tree)
        return before

    def _array(self, kind: mx.Dtype, shape: list[int]) -> mx.array:
        count = 1
        for size in shape:
            if size < 0:
                raise ValueError(f"an array of {shape}")
            count *= size
        size = count * kind.size
        data = np.frombuffer(self._state, np.uint8, size, self._at) if size else None
        self._at += size
        return mx.zeros(shape, kind) if data is None else mx.array(data).view(kind).reshape(shape)
