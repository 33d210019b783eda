"""Knows no sampling: which tokens a runner already holds, and what of a new prompt they spare."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

from localrun.engine.cache.checkpoints import Checkpoint, Checkpoints, borders
from localrun.engine.cache.common import SHORT, common
from localrun.engine.cache.states import StateStore
from localrun.engine.cache.timeline import CacheCounters, Timeline
from localrun.engine.runner import ModelRunner
from localrun.errors import EngineError

CHECKPOINT_BYTES: Final = 256 << 20
# Moving the state of a token costs this part of computing one; see `states.py` for the disk.
_HOST_SHARE: Final = 64
_WORTH_SAVING: Final = 2 * SHORT
# What is read again sooner gives way unwritten: many short prompts would wear the disk.
_WORTH_WRITING_S: Final = 2.0
_CLOSE_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class _Offer:
    """``length`` tokens of a prompt for the price of computing ``cost``."""

    length: int
    cost: int
    take: Callable[[], Timeline | None]

    @property
    def worth(self) -> int:
        return self.length - self.cost


class PrefixCache:
    """Makes and frees every timeline of a runner, and keeps those that ended for later prompts.

    A timeline is live from ``take`` to ``park`` or ``drop``. Nothing of one owner's ever serves
    another: not its tokens, not their states, and not the count of what is held.

    A runner may keep fewer tokens than it is asked to (``ModelRunner.truncate``); what a taken
    timeline's ``tokens`` say is what the runner holds. All is called on the runner's thread.
    """

    def __init__(
        self,
        runner: ModelRunner,
        *,
        turn_ends: frozenset[int] = frozenset(),
        store: StateStore | None = None,
        budget_bytes: int | None = None,
        per_token: Callable[[], float | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``turn_ends`` are the tokens after which a conversation may go on differently;
        ``budget_bytes`` bounds the states in host memory (``checkpoint``); ``per_token`` tells the
        seconds that reading one takes, None where nobody knows."""
        self._runner = runner
        self._can = runner.capabilities
        self._cuts_anywhere = self._can.rollback_depth is None
        self._turn_ends = turn_ends
        self._store = store
        self._checkpoints = Checkpoints(
            CHECKPOINT_BYTES if budget_bytes is None else budget_bytes,
            whole=not self._cuts_anywhere,
        )
        self._per_token = per_token
        self._clock = clock
        self._live: list[Timeline] = []
        self._parked: list[Timeline] = []  # the one to evict next comes first
        self.counters = CacheCounters()

    def take(self, prompt: Sequence[int], owner: str) -> Timeline | None:
        """A timeline of the caller's own that holds a prefix of ``prompt``, at least one token
        (the runner's ``least_chunk``) short of all of it: the logits of the last position are
        needed, and only a forward gives them. None where others hold every sequence the runner has.

        Raises:
            EngineError: the runner has a sequence left and gives none.
        """
        taken = None
        for offer in self._offers(prompt, owner):
            if taken is not None:
                if offer.worth <= len(taken.tokens):
                    break
                self.drop(taken)
            taken = offer.take()
        if taken is None:
            return self._fresh(owner)
        self.counters.hits += bool(taken.tokens)
        self.counters.spared += len(taken.tokens)
        return taken

    def peek(self, prompt: Sequence[int], owner: str) -> int:
        """How many tokens of ``prompt`` a ``take`` would spare now. Changes nothing."""
        return next((offer.length for offer in self._offers(prompt, owner)), 0)

    def cut(self, timeline: Timeline, length: int) -> None:
        """Cut to ``length`` tokens, or to what the runner could keep of them.

        Raises:
            EngineError: the runner failed; nobody knows what it holds.
        """
        kept = self._runner.truncate(timeline.id, length)
        del timeline.tokens[kept:]

    def park(self, timeline: Timeline) -> None:
        """Keep a timeline that is whole for prompts to come."""
        if not timeline.tokens:
            self.drop(timeline)
            return
        self._live.remove(timeline)
        self._parked.append(timeline)

    def drop(self, timeline: Timeline) -> None:
        """Give back a timeline, also one whose state is in doubt."""
        (self._live if timeline in self._live else self._parked).remove(timeline)
        # A runner that cannot free it either has nothing better to be told.
        with suppress(EngineError):
            self._runner.free(timeline.id)

    def reserve(self, tokens: int) -> bool:
        """Make sure that ``tokens`` more fit the runner; parked timelines give way, those unused
        for longest first. False, and nothing is lost, where the live ones hold too much."""
        return self._make_room(seats=0, cells=tokens)

    def seat(self, tokens: int = 0) -> bool:
        """Make sure that one more sequence of so many fits the runner; as ``reserve``."""
        return self._make_room(seats=1, cells=tokens)

    def border(self, timeline: Timeline, prompt: Sequence[int]) -> int | None:
        """Where the prefill of ``prompt`` must stop next for a ``checkpoint``; None for nowhere.

        Only a runner that cannot cut anywhere needs them: what is held at a border serves the next
        turn, another answer to the same prompt, and an edited last message.
        """
        if self._cuts_anywhere or not self._checkpoints.budget_bytes:
            return None
        held = len(timeline.tokens)
        return next((at for at in borders(prompt, self._turn_ends) if at > held), None)

    def checkpoint(self, timeline: Timeline) -> bool:
        """Copy what ``timeline`` holds into host memory, where it outlives the timeline; False
        where that has no room for it."""
        owner, tokens = timeline.owner, timeline.tokens
        size = len(tokens) * self._can.state_bytes_per_token
        if self._checkpoints.holds(owner, tokens):
            return True
        if not tokens or not self._checkpoints.takes(size):
            return False
        try:
            state = self._runner.save(timeline.id)
        except EngineError:  # the request goes on without
            return False
        for lost in self._checkpoints.put(owner, tokens, state):
            self._write(lost)
        return self._checkpoints.takes(len(state))

    def close(self) -> None:
        """Save what later runs may want, latest first and for some seconds at most, and free what
        is parked. Call it while the runner still answers."""
        until = self._clock() + _CLOSE_S
        while self._parked:
            timeline = self._parked[-1]
            self._shrink(timeline)
            self._save(timeline, until)
            self.drop(timeline)
        if self._store is not None:
            for kept in self._checkpoints.latest_first():
                self._write(kept, until)
            self._store.close(max(0.0, until - self._clock()))
        self._checkpoints.clear()

    # What a prompt could begin with.

    def _offers(self, prompt: Sequence[int], owner: str) -> list[_Offer]:
        wanted = list(prompt[: max(0, len(prompt) - self._can.least_chunk)])
        found = [
            *self._parked_offers(wanted, owner),
            *self._live_offers(wanted, owner),
            *self._host_offers(wanted, owner),
            *self._disk_offers(wanted, owner),
        ]
        # The sort is stable: of equal worth the one that costs less comes first.
        return sorted((o for o in found if o.worth > 0), key=lambda offer: -offer.worth)

    def _parked_offers(self, wanted: list[int], owner: str) -> Iterator[_Offer]:
        seat = len(self._live) + len(self._parked) < self._can.max_sequences
        for parked in reversed(self._parked):
            length = self._usable(parked, wanted, owner)
            lost = len(parked.tokens) - length
            # Little that is shared is not worth what another prompt may find in the rest.
            if not (seat and length < SHORT and lost > length):
                yield _Offer(length, 0, partial(self._from_parked, parked, length))

    def _live_offers(self, wanted: list[int], owner: str) -> Iterator[_Offer]:
        if not self._can.can_fork:
            return
        for live in self._live:
            length = self._usable(live, wanted, owner)
            cost = SHORT + len(live.tokens) // _HOST_SHARE
            yield _Offer(length, cost, partial(self._forked, live, length))

    def _host_offers(self, wanted: list[int], owner: str) -> Iterator[_Offer]:
        found = self._checkpoints.find(wanted, owner)
        if found is not None:
            checkpoint, length = found
            cost = SHORT + len(checkpoint.tokens) // _HOST_SHARE
            yield _Offer(length, cost, partial(self._from_host, checkpoint, length))

    def _disk_offers(self, wanted: list[int], owner: str) -> Iterator[_Offer]:
        if self._store is None:
            return
        found = self._store.find(wanted, owner, whole=not self._cuts_anywhere)
        if found is not None:
            name, length = found
            yield _Offer(
                length, self._store.cost(name), partial(self._from_disk, name, length, owner)
            )

    def _usable(self, timeline: Timeline, wanted: list[int], owner: str) -> int:
        """How much of ``wanted`` can be had from ``timeline``."""
        if timeline.owner != owner:
            return 0
        length = common(timeline.tokens, wanted)
        depth = self._can.rollback_depth
        return length if depth is None or len(timeline.tokens) - length <= depth else 0

    # How it is had. Each of these answers None where that did not work out.

    def _from_parked(self, parked: Timeline, length: int) -> Timeline | None:
        if parked not in self._parked:  # it made room for an offer that came to nothing
            return None
        lost = len(parked.tokens) - length
        if self._fork_pays(parked, length, lost):
            copy = self._forked(parked, length)
            if copy is not None:
                self._parked.remove(parked)
                self._parked.append(parked)
                return copy
        if lost > length:
            self._save(parked)
        self._parked.remove(parked)
        self._live.append(parked)
        self._set_aside()
        return self._shortened(parked, length) if lost else parked

    def _fork_pays(self, parked: Timeline, length: int, lost: int) -> bool:
        """Whether the rest of ``parked`` is worth a copy: always where there is room, and else
        where it is more than what is shared and there are others that nobody used since."""
        if not self._can.can_fork or lost < SHORT or length < SHORT:
            return False
        room = len(self._live) + len(self._parked) < self._can.max_sequences
        if room and self._held() + len(parked.tokens) <= self._can.n_cells:
            return True
        return lost > length and self._make_room(1, len(parked.tokens), keep=parked)

    def _forked(self, source: Timeline, length: int) -> Timeline | None:
        if not self._make_room(1, len(source.tokens), keep=source):
            return None
        try:
            copy = Timeline(self._runner.fork(source.id), source.owner, list(source.tokens))
        except EngineError:
            return None
        self._live.append(copy)
        return self._shortened(copy, length)

    def _from_host(self, checkpoint: Checkpoint, length: int) -> Timeline | None:
        self._checkpoints.used(checkpoint)
        tokens = checkpoint.tokens.tolist()
        restored = self._restored(checkpoint.state, tokens, checkpoint.owner, length)
        if restored is None:
            self._checkpoints.discard(checkpoint)
        return restored

    def _from_disk(self, name: str, length: int, owner: str) -> Timeline | None:
        assert self._store is not None
        loaded = self._store.load(name)
        if loaded is None:
            return None
        tokens, state = loaded
        restored = self._restored(state, tokens, owner, length)
        if restored is None:
            self._store.discard(name)
        return restored

    def _restored(
        self, state: bytes, tokens: list[int], owner: str, length: int
    ) -> Timeline | None:
        self._set_aside()
        if not self._make_room(1, len(tokens)):
            return None
        try:
            restored = Timeline(self._runner.restore(state), owner, tokens)
        except EngineError:
            return None
        self._live.append(restored)
        self.counters.restores += 1
        return self._shortened(restored, length)

    def _shortened(self, timeline: Timeline, length: int) -> Timeline | None:
        try:
            self.cut(timeline, length)
        except EngineError:
            self.drop(timeline)
            return None
        return timeline

    def _fresh(self, owner: str) -> Timeline | None:
        self._set_aside()
        if not self._make_room(1, 0):
            return None
        while True:
            try:
                fresh = Timeline(self._runner.new_sequence(), owner)
            except EngineError:
                if not self._parked:
                    raise
                self._evict(self._parked[0])
            else:
                self._live.append(fresh)
                return fresh

    # Room.

    def _held(self) -> int:
        return sum(len(timeline.tokens) for timeline in (*self._live, *self._parked))

    def _make_room(self, seats: int, cells: int, keep: Timeline | None = None) -> bool:
        """Evict no more than it takes, nothing that was used since ``keep``, and nothing at all
        where it does not help."""
        at = self._parked.index(keep) if keep in self._parked else len(self._parked)
        victims = self._parked[:at]
        seats_free = self._can.max_sequences - len(self._live) - len(self._parked)
        cells_free = self._can.n_cells - self._held()
        most = cells_free + sum(len(victim.tokens) for victim in victims)
        if seats_free + len(victims) < seats or most < cells:
            return False
        for victim in victims:
            if seats_free >= seats and cells_free >= cells:
                break
            seats_free += 1
            cells_free += len(victim.tokens)
            self._evict(victim)
        return True

    def _set_aside(self) -> None:
        """Move into host memory what every step of the runner would pass over."""
        if self._can.idle_costs:
            for parked in tuple(self._parked):
                if self.checkpoint(parked):
                    self.drop(parked)

    def _evict(self, timeline: Timeline) -> None:
        self._shrink(timeline)
        self._save(timeline)
        self.drop(timeline)
        self.counters.evictions += 1

    def _shrink(self, timeline: Timeline) -> None:
        """Cut what goes anyway to what the store takes of it."""
        each = self._can.state_bytes_per_token
        if self._store is not None and self._cuts_anywhere and each:
            most = self._store.most_bytes // each
            if len(timeline.tokens) > most:
                with suppress(EngineError):
                    self.cut(timeline, most)

    def _save(self, timeline: Timeline, until: float | None = None) -> None:
        """Write what is about to be lost to the disk; ``until`` is how long the end may take."""
        size = len(timeline.tokens) * self._can.state_bytes_per_token
        if self._wants(timeline.owner, timeline.tokens, size, until):
            with suppress(EngineError):
                self._put(timeline.owner, timeline.tokens, self._runner.save(timeline.id))

    def _write(self, kept: Checkpoint, until: float | None = None) -> None:
        tokens = kept.tokens.tolist()
        if self._wants(kept.owner, tokens, len(kept.state), until):
            self._put(kept.owner, tokens, kept.state)

    def _wants(self, owner: str, tokens: list[int], size: int, until: float | None) -> bool:
        wait = 0.0 if until is None else until - self._clock()
        if self._store is None or wait < 0 or len(tokens) < _WORTH_SAVING:
            return False
        each = self._per_token()
        if until is None and each is not None and len(tokens) * each < _WORTH_WRITING_S:
            return False
        return self._store.wants(owner, tokens, size, whole=not self._cuts_anywhere, wait_s=wait)

    def _put(self, owner: str, tokens: list[int], state: bytes) -> None:
        whole = not self._cuts_anywhere
        if self._store is not None and self._store.put(owner, tokens, state, whole=whole):
            self.counters.saves += 1
            self.counters.saved_bytes += len(state)
