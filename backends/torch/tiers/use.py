"""Knows no expert: what was found where, counted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from localrun.engine.runner import ExpertUse

CARD: Final = "vram:0"
RAM: Final = "ram"
DISK: Final = "disk"


@dataclass(slots=True)
class Use:
    """Of one tier, see ``ExpertUse``. ``computed`` are bytes that products read there, of experts
    that had to come from disk first too."""

    picks: int = 0
    bytes: int = 0
    seconds: float = 0.0
    computed: int = 0

    def found(self, picks: int, nbytes: int) -> None:
        self.picks += picks
        self.bytes += nbytes

    def frozen(self) -> ExpertUse:
        return ExpertUse(self.picks, self.bytes, self.seconds)


@dataclass(frozen=True, slots=True)
class StoreStats:
    """``experts`` by tier, ``picks[layer]`` of each expert. Of ``guessed`` experts, read ahead of
    need, ``right`` were needed. ``memory`` are slots by tier, whether anything lies in them yet or
    not, ``filled`` those bytes of them all that have been; staging memory lies beside them, in the
    host's."""

    experts: dict[str, ExpertUse]
    computed: dict[str, int]
    picks: dict[int, tuple[int, ...]]
    guessed: int
    right: int
    memory: dict[str, int]
    filled: int
    staging_bytes: int
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Uses:
    card: Use = field(default_factory=Use)
    ram: Use = field(default_factory=Use)
    disk: Use = field(default_factory=Use)

    def by_tier(self) -> dict[str, Use]:
        """Tiers that anything was found on."""
        every = {CARD: self.card, RAM: self.ram, DISK: self.disk}
        return {tier: use for tier, use in every.items() if use.picks or use.seconds}
