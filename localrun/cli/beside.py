"""Knows no route: a model planned, and loaded, beside those that a server holds already."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from localrun.cli.guessing import Guessing, with_guesses
from localrun.cli.loading import Prepared, find, open_chat_as_planned, planned, promised
from localrun.cli.lookup import described
from localrun.cli.machines import this_machine
from localrun.cli.plan_view import tell_plan
from localrun.errors import DoesNotFitError
from localrun.server.room import Holding, Loaded, Opening, left, taken

if TYPE_CHECKING:
    from localrun.config import Settings
    from localrun.hardware.machine import Machine
    from localrun.plan.plan import PlanRequest


class Beside:
    """A ``room.Candidate``: a model on this disk, and this machine as it is now.

    A limit of the request (``--ram``, ``--vram``) is one for all loaded models together.
    """

    def __init__(
        self,
        ref: str,
        request: PlanRequest,
        here: Settings,
        guessing: Guessing | None = None,
        *,
        offer: bool = False,
        learn: bool = False,
    ) -> None:
        """Read headers and probe. ``offer``: ask on a terminal whether to download it. ``learn`` as
        for ``prepare``.

        Raises:
            ModelNotFoundError, HeaderError: it is not here, or not whole.
        """
        self._found = described(find(ref, here, offer=offer))
        self._machine = this_machine(here)[0]
        self._request = request
        self._here = here
        self._guessing = guessing or Guessing()
        self._learn = learn

    def planned(
        self, loaded: Sequence[Holding], staying: Sequence[Holding], *, squeezed: bool = False
    ) -> Prepared:
        """See ``Candidate.beside``.

        Raises:
            PlanError, BackendMissingError: as ``loading.planned``.
        """
        alone = self._planned(self._request, _machine(self._machine, loaded, ()))
        if not staying:
            return with_guesses(alone, self._guessing, self._here)
        request = _limited(self._request, staying)
        if not squeezed:
            request = replace(request, n_ctx=alone.plan.execution.n_ctx)
        prepared = self._planned(request, _machine(self._machine, loaded, staying))
        return with_guesses(prepared, self._guessing, self._here)

    def _planned(self, request: PlanRequest, machine: Machine) -> Prepared:
        return planned(self._found, request, machine, learn=self._learn)

    def beside(
        self, loaded: Sequence[Holding], staying: Sequence[Holding], *, squeezed: bool = False
    ) -> Opening:
        prepared = self.planned(loaded, staying, squeezed=squeezed)

        async def opening() -> Loaded:
            return await self._open(prepared)

        return opening

    async def _open(self, prepared: Prepared) -> Loaded:
        tell_plan(prepared.plan)
        before = _available(self._machine)
        model, made = await open_chat_as_planned(prepared)
        try:
            machine, _ = await asyncio.to_thread(this_machine, self._here)
        except BaseException:
            await model.close()
            raise
        held = promised(*replace(prepared, plan=made).plans)
        return Loaded(model, Holding(held, taken(before, _available(machine), held)))


def plan_together(
    refs: Sequence[str], request: PlanRequest, here: Settings, guessing: Guessing | None = None
) -> None:
    """See to it that models that are to be loaded at once fit beside each other.

    Raises:
        DoesNotFitError: the first that does not. PlanError, ModelNotFoundError, …: as ``Beside``.
    """
    held: list[Holding] = []
    for at, ref in enumerate(refs):
        candidate = Beside(ref, request, here, guessing, offer=True)
        try:
            made = candidate.planned(held, held)
        except DoesNotFitError as error:
            if not held:
                raise
            raise DoesNotFitError(
                f"{error.message}; {', '.join(refs[:at])} would be loaded too",
                hint="lower --ctx, or leave one out: a model is loaded when it is first asked for",
                shortfall=error.shortfall,
            ) from error
        held.append(Holding(promised(*made.plans), {}))


def _available(machine: Machine) -> dict[str, int]:
    return {tier.name: tier.usable_bytes for tier in machine.tiers if tier.kind != "disk"}


def _machine(machine: Machine, loaded: Sequence[Holding], staying: Sequence[Holding]) -> Machine:
    room = left(_available(machine), loaded, staying)
    tiers = tuple(
        replace(tier, usable_bytes=room.get(tier.name, tier.usable_bytes)) for tier in machine.tiers
    )
    return replace(machine, tiers=tiers)


def _limited(request: PlanRequest, staying: Sequence[Holding]) -> PlanRequest:
    """The limits a user set, less what is promised within them. ``--vram`` is one for each card:
    that which is fullest counts."""
    sums: dict[str, int] = {}
    for each in staying:
        for tier, size in each.promised.items():
            sums[tier] = sums.get(tier, 0) + size
    cards = [size for tier, size in sums.items() if tier.startswith("vram")]
    host = sums.get("ram", 0) + sums.get("unified", 0)
    return replace(
        request,
        ram_bytes=_less(request.ram_bytes, host),
        vram_bytes=_less(request.vram_bytes, max(cards, default=0)),
    )


def _less(limit: int | None, held: int) -> int | None:
    return None if limit is None else max(0, limit - held)
