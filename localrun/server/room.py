"""Knows no event loop and no probe: which loaded models make room for one more.

What memory is left is counted with two figures of every loaded model. *Promised* are the bytes
that its plan budgets; *taken* is how far what the system calls available shrank by its load. They
differ, since weights that are mapped from a file stay available, and buffers are taken when they
are first written. So beside those that stay there is left

    available now + taken by all that are loaded - promised to those that stay

which is what a machine without models would have, less every promise. Other programs count as they
are now. What a model takes only after its load is missing from both sums: that much is counted
twice, and too little is given away rather than too much.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from localrun.chat.messages import ServedModel
from localrun.errors import DoesNotFitError, MemoryInUseError

GIB = 1 << 30
Bytes = Mapping[str, int]
"""Bytes by tier."""


@dataclass(frozen=True, slots=True)
class Holding:
    """What a loaded model holds of the memory."""

    promised: Bytes
    taken: Bytes


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model, ready, and what it holds."""

    model: ServedModel
    holding: Holding


Opening = Callable[[], Awaitable[Loaded]]
"""Loads a model as it was planned; may raise any LocalrunError."""


class Candidate(Protocol):
    """A model that is to be loaded, and the machine as it is just now."""

    def beside(
        self, loaded: Sequence[Holding], staying: Sequence[Holding], *, squeezed: bool = False
    ) -> Opening:
        """Plan it for what is left beside ``staying``, once all others of ``loaded`` are gone.

        It has the context that it would have alone; ``squeezed`` also a smaller one, where the user
        left that open. Blocks.

        Raises:
            DoesNotFitError: with the bill.
        """
        ...


@dataclass(frozen=True, slots=True)
class Tenant:
    """A loaded model as the choice sees it. ``used``: the larger, the later it was."""

    name: str
    holding: Holding
    requests: int
    used: int


def left(available: Bytes, loaded: Sequence[Holding], staying: Sequence[Holding]) -> dict[str, int]:
    """Bytes by tier that may be promised to one more; see above. Never below 0."""
    return {
        tier: max(
            0,
            now
            + sum(each.taken.get(tier, 0) for each in loaded)
            - sum(each.promised.get(tier, 0) for each in staying),
        )
        for tier, now in available.items()
    }


def taken(before: Bytes, after: Bytes, promised: Bytes) -> dict[str, int]:
    """What a load took of what was available before, at most what it was promised: the rest is
    other programs'."""
    return {
        tier: min(max(0, before.get(tier, 0) - after.get(tier, 0)), most)
        for tier, most in promised.items()
    }


def make_room(
    candidate: Candidate, name: str, tenants: Sequence[Tenant]
) -> tuple[Opening, tuple[str, ...]]:
    """How to load it, and the names that must be unloaded first, the longest unused before others.

    As few as possible; those with requests under way never. Blocks.

    Raises:
        MemoryInUseError: it would fit, but for models with requests under way.
        DoesNotFitError: it does not fit even alone.
    """
    loaded = [tenant.holding for tenant in tenants]
    candidate.beside(loaded, ())
    idle = sorted((each for each in tenants if not each.requests), key=lambda each: each.used)
    for count in range(len(idle) + 1):
        gone = tuple(each.name for each in idle[:count])
        staying = [each.holding for each in tenants if each.name not in gone]
        # Who idles gives way to a model as it is meant; who is busy makes it smaller.
        for squeezed in (False, True) if count == len(idle) else (False,):
            try:
                return candidate.beside(loaded, staying, squeezed=squeezed), gone
            except DoesNotFitError as error:
                lacking = error
    raise _bill(name, lacking, [each for each in tenants if each.requests])


def _bill(name: str, lacking: DoesNotFitError, busy: Sequence[Tenant]) -> MemoryInUseError:
    holders = "; ".join(
        f"{each.name} holds {_sizes(each.holding.promised)} for {each.requests} under way"
        for each in busy
    )
    return MemoryInUseError(
        f"{name} has to wait for memory: {lacking.message}; {holders}", shortfall=lacking.shortfall
    )


def _sizes(held: Bytes) -> str:
    return ", ".join(f"{size / GIB:.2f} GiB of {tier}" for tier, size in held.items() if size)
