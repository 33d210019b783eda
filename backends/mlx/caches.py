"""Knows no model: the caches of mlx-lm as trees of attributes, whatever their class.

A cache is a Python object whose attributes are arrays, numbers, lists of these, or caches again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from typing import Any

import mlx.core as mx

_LEAVES = (int, float, bool, str, type(None), mx.Dtype)


def arrays(value: Any) -> Iterator[mx.array]:
    """Every array that a cache holds."""
    if isinstance(value, mx.array):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from arrays(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from arrays(item)
    elif not isinstance(value, _LEAVES) and hasattr(value, "__dict__"):
        yield from arrays(vars(value))


def copied(caches: Sequence[Any]) -> list[Any]:
    """Caches that go their own way."""
    made: list[Any] = [mapped(cache, mx.array) for cache in caches]
    mx.eval([*arrays(made)])
    return made


def mapped(value: Any, change: Callable[[mx.array], Any]) -> Any:
    """The same tree with other arrays; its lists and objects are new ones."""
    if isinstance(value, mx.array):
        return change(value)
    if isinstance(value, list):
        return [mapped(item, change) for item in value]
    if isinstance(value, tuple):
        return tuple(mapped(item, change) for item in value)
    if isinstance(value, dict):
        return {key: mapped(item, change) for key, item in value.items()}
    if isinstance(value, _LEAVES) or not hasattr(value, "__dict__"):
        return value
    made = copy(value)
    made.__dict__.update(mapped(vars(value), change))
    return made


def cut(caches: Sequence[Any], count: int) -> bool:
    """Take back the last ``count`` tokens of every cache; False, and nothing is changed, where one
    of them cannot be cut there (a window that has turned over, a recurrent state)."""
    if not all(_cuts(cache) for cache in caches):
        return False
    for cache in caches:
        cache.trim(count)
    return True


def evened(caches: Sequence[Any], length: int) -> bool:
    """Take back what each cache holds behind ``length`` tokens, however much that is; False where
    one does not say how many it has, or cannot be cut."""
    if not all(
        _cuts(cache) and isinstance(getattr(cache, "offset", None), int) for cache in caches
    ):
        return False
    for cache in caches:
        cache.trim(max(0, cache.offset - length))
    return True


def cuts_anywhere(caches: Sequence[Any]) -> bool:
    """Whether no cache of the kind ever forgets: then any number of tokens can be taken back."""
    return all(_grows_only(cache) for cache in caches)


def _cuts(cache: Any) -> bool:
    return hasattr(cache, "trim") and bool(cache.is_trimmable())


def _grows_only(cache: Any) -> bool:
    inner = getattr(cache, "caches", None)
    if inner is not None:
        return all(_grows_only(each) for each in inner)
    # A window has a size, a chunk of one too; both let go of what lies before it.
    bounded = any(hasattr(cache, name) for name in ("max_size", "chunk_size"))
    return _cuts(cache) and not bounded
