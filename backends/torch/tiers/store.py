"""Knows no architecture and no disk: the experts of a model in places that a plan gives them.

Each layer keeps the last used of its own in as many places as any other. What it misses is read
past the page cache; while the disk would be idle, what the next layer will probably miss is read
ahead, into staging memory, so that a wrong guess costs no place.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from torch import Tensor

from localrun.backends.tiers.loads import Loads
from localrun.backends.tiers.staging import buffers, room_for
from localrun.backends.torch.matrices.slots import ExpertSlots
from localrun.backends.torch.model import uninterrupted
from localrun.backends.torch.tiers.experts import Guess, StreamedExperts
from localrun.backends.torch.tiers.use import CARD, RAM, StoreStats, Uses
from localrun.disk.reader import Reader
from localrun.disk.staged import Stage

_LAYER: Final = re.compile(r"\blayers\.(\d+)\.")
_KEPT_SHARE: Final = 0.75


def _plenty() -> str | None:
    """Memory is not short, or nobody looks."""
    return None


class ExpertStore:
    """``slots`` places for each layer, of which ``card_slots`` are counted as a device's; whoever
    makes ``ExpertSlots`` asks ``places``. ``interrupt`` is called while a step waits for the disk,
    ten times a second, and may raise to end it. ``pressure`` is asked before every step why memory
    is short; where it says so a quarter of the places is given back, once.

    One thread computes with it. Close it after the model's layers, and before ``reader``.
    """

    def __init__(
        self,
        reader: Reader,
        stage: Stage,
        *,
        slots: int,
        card_slots: int,
        staging_bytes: int,
        workers: int | None = None,
        interrupt: Callable[[], None] = uninterrupted,
        pressure: Callable[[], str | None] = _plenty,
    ) -> None:
        self.slots, self.card_slots = slots, min(card_slots, slots)
        self.interrupt = interrupt
        self.uses = Uses()
        self._reader, self._stage = reader, stage
        self._staging_bytes, self._workers = staging_bytes, workers
        self._pressure: Callable[[], str | None] = pressure
        self._layers: list[StreamedExperts] = []
        self._room = 0
        self._loads: Loads | None = None
        self._notes: list[str] = []
        self._running = False

    def places(self, count: int) -> int:
        """For a layer of so many experts: two at least. One is filled while another is computed,
        and libggml lays a stack of one matrix out otherwise than larger ones."""
        return min(max(self.slots, 2), count)

    def layer(self, slots: ExpertSlots, top: int, guess: Guess | None = None) -> StreamedExperts:
        """The next layer, in the order in which they are computed. ``top`` experts are picked a
        token; ``guess`` chooses them, of what enters a layer.

        Raises:
            UsageError: staging memory has no room for one of its experts.
        """
        found = _LAYER.search(slots.name)
        number = int(found[1]) if found else len(self._layers)
        made = StreamedExperts(self, len(self._layers), number, slots, top, guess, self.card_slots)
        every = (room_for(slots.extents(expert)) for expert in range(slots.count))
        self._room = max(self._room, *every)
        buffers(self._staging_bytes, self._room)
        self._layers.append(made)
        return made

    @property
    def loads(self) -> Loads:
        """Staging memory is taken when the first step begins: then all layers are known."""
        if self._loads is None:
            self._loads = Loads(
                self._reader,
                self._stage,
                staging_bytes=self._staging_bytes,
                room=self._room,
                workers=self._workers,
            )
        return self._loads

    def begun(self, layer: StreamedExperts) -> None:
        """A step comes to a layer. What one that failed left under way is dropped."""
        if self._running:
            self.abandon()
        if layer.at == 0:
            self._hold_to_memory()
        self._running = True

    def ended(self) -> None:
        """A layer has been computed."""
        self._running = False

    def abandon(self) -> None:
        """Nothing that has not come into its place counts as there, and nothing comes any more."""
        self._running = False
        if self._loads is not None:
            self._loads.drop()
        for layer in self._layers:
            layer.places.abandon()

    def forget(self, number: int) -> None:
        """Of every layer so many experts that were not used for the longest time are not there any
        more."""
        self.abandon()
        for layer in self._layers:
            for expert in layer.places.held[:number]:
                layer.places.drop(expert)

    def look_ahead(self, layer: StreamedExperts, x: Tensor, tokens: Tensor) -> None:
        """Of the layer behind this one, what it will probably miss."""
        if self.loads.buffers > 1 and layer.at + 1 < len(self._layers):
            following = self._layers[layer.at + 1]
            self.loads.guess(following.slots, following.likely(x, tokens))

    def _hold_to_memory(self) -> None:
        """A cache that the system cannot keep is worse than a smaller one: its hits are read from
        wherever they were paged to."""
        reason = self._pressure()
        if reason is None:
            return
        self._pressure = _plenty
        before, freed = sum(layer.places.count for layer in self._layers), 0
        for layer in self._layers:
            freed += layer.shrink(max(2, layer.least, int(layer.places.count * _KEPT_SHARE)))
        after = sum(layer.places.count for layer in self._layers)
        if after < before:
            self._notes.append(
                f"{reason}: the expert cache shrank from {before} to {after} experts, by {freed} "
                "bytes"
            )

    def stats(self) -> StoreStats:
        """Since the first step."""
        uses = self.uses.by_tier()
        memory = {CARD: 0, RAM: 0}
        for layer in self._layers:
            places = layer.places
            memory[CARD] += places.card * layer.expert_nbytes
            memory[RAM] += (places.count - places.card) * layer.expert_nbytes
        loads = self._loads
        return StoreStats(
            experts={tier: use.frozen() for tier, use in uses.items()},
            computed={tier: use.computed for tier, use in uses.items() if use.computed},
            picks={layer.number: tuple(layer.picks.tolist()) for layer in self._layers},
            guessed=loads.guessed if loads else 0,
            right=loads.right if loads else 0,
            memory={tier: nbytes for tier, nbytes in memory.items() if nbytes},
            filled=sum(len(layer.places.held) * layer.expert_nbytes for layer in self._layers),
            staging_bytes=loads.staging_bytes if loads else 0,
            notes=tuple(self._notes),
        )

    def close(self) -> None:
        """End the threads. Again does nothing."""
        if self._loads is not None:
            self._loads.close()
