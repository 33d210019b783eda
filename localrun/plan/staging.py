"""Knows no tier: memory that bytes of a disk pass through, or stay in for a while."""

from __future__ import annotations

from collections.abc import Sequence

from localrun.plan.constants import (
    HOT_ROWS,
    PAGE,
    ROWS_READ,
    STAGED_EXPERTS,
    STAGED_LAYERS,
    STAGED_SHARE,
    STAGED_STRETCHES,
    STAGING,
)
from localrun.plan.stack import Layer, Stack


def staging(layers: Sequence[Layer], free: int, stored: float, *, measured: bool) -> int:
    """Bytes for experts on their way from disk, of a host with so much ``free``; an expert there
    takes ``stored`` of what it takes in a slot. ``measured`` is false where an engine takes the
    same whatever there is."""
    if not measured:
        return STAGING
    routed = [layer.experts for layer in layers if layer.experts is not None]
    # A stretch that begins and ends inside a page is read with the rest of both.
    buffers = [_pages(int(each.bytes * stored)) + 2 * STAGED_STRETCHES * PAGE for each in routed]
    if not buffers:
        return 0
    used = max(each.used for each in routed)
    enough = min(STAGING, STAGED_LAYERS * used * max(buffers))
    most = max(STAGED_EXPERTS * max(buffers), min(enough, free // STAGED_SHARE))
    return most


def hot_rows(stack: Stack) -> int:
    """Bytes that are kept of rows of n-gram tables on disk."""
    return min(HOT_ROWS, stack.table_bytes)


def rows_read(stack: Stack) -> int:
    """Bytes that rows of n-gram tables on disk come into."""
    return min(ROWS_READ, stack.table_bytes)


def _pages(size: int) -> int:
    return -(-size // PAGE) * PAGE
