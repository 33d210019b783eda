"""Knows no arithmetic: the terms that a token's time is predicted and measured by.

Memory tiers stand before their terms (``ram experts``, ``vram:0 dense``); the others belong to no
tier. A runner that cannot tell terms apart measures none of them.
"""

from __future__ import annotations

from typing import Final

DENSE: Final = "dense"
"""Weights that every token reads: attention, shared experts, routers, head."""
EXPERTS: Final = "experts"
"""Routed experts, computed from this tier."""
KV: Final = "kv"
"""Rows of the cache, looked at."""
LAUNCHES: Final = "launches"
"""What a layer costs whatever it reads."""
MISSES: Final = "misses"
"""What the host does for each expert from disk, beside computing with it."""
DISK: Final = "disk"
"""Waiting for experts from disk."""
ENGRAM: Final = "n-gram rows"
"""Waiting for rows of n-gram tables, and joining them."""
SYNC: Final = "handover"
"""Between devices."""
STEP: Final = "step"
"""The loop around a step: drawing, sending."""
HIDDEN: Final = "hidden behind computing"
"""Of the disk's time, negative."""


def term(tier: str, kind: str) -> str:
    return f"{tier} {kind}"
