"""Knows no screen: what of a plan is likely to disappoint, from the facts it was made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from localrun.hardware.machine import Machine
from localrun.models.spec import ModelSpec
from localrun.plan import terms
from localrun.plan.constants import GIB
from localrun.plan.plan import Prediction
from localrun.plan.rooms import SIMULATED
from localrun.plan.search import Solution

# A card that makes a run faster by less than this is not worth its memory.
_WORTH = 1.15
# A disk that takes this share of a token's time sets its pace.
_PACE = 0.4
# A host that takes this share of a token's time is what the user waits for.
_MOST = 0.5


def warnings(
    found: Solution, spec: ModelSpec, machine: Machine, prediction: Prediction
) -> tuple[str, ...]:
    """One line each, the weightiest first."""
    return (
        *_backend(found, machine),
        *_memory(found),
        *_model(spec, found),
        *_split(found, prediction),
        *_mapped(found, spec),
        *_disk(found, prediction),
        *_idle_card(found),
        *_assumed(found, prediction),
    )


def _backend(found: Solution, machine: Machine) -> Iterator[str]:
    if found.candidate.problem:
        yield found.candidate.problem
    if found.task.request.vram_bytes and not found.rooms.cards:
        yield "--vram is not used: there is no GPU here that this backend computes on"
    discrete = [tier for tier in machine.tiers if tier.kind == "vram"]
    if found.engine.one_card and found.candidate.device and len(discrete) > 1:
        yield f"{found.candidate.backend} computes on one card: {discrete[0].name} is used alone"
    if discrete and not found.candidate.device:
        yield (
            f"{discrete[0].device or 'the GPU'} is not used: {found.candidate.backend} is built "
            "for the CPU only (`localrun doctor` prints the command that fixes it)"
        )


def _memory(found: Solution) -> Iterator[str]:
    """What was asked for and is not there, or was given and is not taken."""
    made, rooms = found.assignment, found.rooms
    if rooms.simulated and not made.cards:
        asked = rooms.cards[0].limit / GIB
        yield f"--vram {asked:.1f} GiB is not used: less than all layers without their experts take"
    apart = [load for load in made.loads if load.room.tier.device != SIMULATED]
    for load in apart:
        held, room = load.total, load.room
        if load is made.host:
            held = sum(each.total for each in made.loads if each is load or each not in apart)
        there = room.tier.capacity_bytes
        if held > there:
            yield (
                f"this plan takes {held / GIB:.1f} GiB of {room.name}, the machine has "
                f"{there / GIB:.1f} GiB: it was told to"
            )


def _model(spec: ModelSpec, found: Solution) -> Iterator[str]:
    n_ctx = found.assignment.choice.n_ctx
    if spec.n_ctx_train and n_ctx > spec.n_ctx_train:
        yield f"context {n_ctx} is longer than the {spec.n_ctx_train} the model was trained for"
    flow = found.task.request.workload
    if found.task.request.approximate_prefill:
        yield (
            f"prompts pass {spec.prefill_layers} of {spec.layers} layers, only their last tokens "
            "all of them: an approximation that was asked for, whose answers differ"
        )
    if spec.encoder:
        yield from spec.notes
        return
    if flow.depth + flow.prompt + flow.output > n_ctx:
        yield (
            f"the speeds are for {flow.prompt} tokens in and {flow.output} out, more than a "
            f"context of {n_ctx} holds: --workload P:N asks for others"
        )
    if spec.guessed:
        yield (
            f"architecture {spec.architecture!r} is not known: its tensors were grouped by name, "
            "its cache is a guess from its heads"
        )
    elif not spec.caches and not spec.state_bytes:
        yield f"KV of architecture {spec.architecture!r} is not known and not counted"
    yield from spec.notes


def _split(found: Solution, prediction: Prediction) -> Iterator[str]:
    made = found.assignment
    if not made.cards or made.host is None or found.rooms.simulated:
        return
    spent = prediction.terms_ms
    total = sum(time for time in spent.values() if time > 0)
    host = sum(time for name, time in spent.items() if name.startswith("ram") or name == terms.SYNC)
    if total and host / total > _MOST:
        apart = len(made.host.layers) or len(made.host.experts) or len(made.slotted)
        what = "layers" if made.host.layers else "layers' experts"
        stays = f"{apart} of {len(made.stack.layers)} {what} stay" if apart else "the cache stays"
        yield (
            f"{stays} with the CPU and take{'' if apart else 's'} "
            f"{host / total:.0%} of a token's time: the model is larger than the GPU's memory"
        )


def _mapped(found: Solution, spec: ModelSpec) -> Iterator[str]:
    made = found.assignment
    host = made.host
    if host is None or found.engine.experts == "slots":
        return
    if spec.tensor_bytes > host.room.limit and made.cards:
        yield (
            f"the files ({spec.tensor_bytes / 1e9:.1f} GB) are larger than usable RAM "
            f"({host.room.limit / 1e9:.1f} GB): mapped, they page; this plan reads them instead"
        )


def _disk(found: Solution, prediction: Prediction) -> Iterator[str]:
    spent = prediction.terms_ms
    total = sum(time for time in spent.values() if time > 0)
    share = spent.get(terms.DISK, 0.0) / total if total else 0.0
    if found.assignment.streams and share > _PACE and not found.rooms.unified:
        yield (
            f"reads of experts from disk take {share:.0%} of a token's time: memory or a faster "
            "disk would help, a faster GPU would not"
        )


def _idle_card(found: Solution) -> Iterator[str]:
    """A card beside a disk that sets the pace may change nothing."""
    made = found.assignment
    if not made.cards or made.host is None or not made.streams or found.rooms.simulated:
        return
    without = found.task.place(replace(made.choice, card_layers=0))
    if without.missing:
        return
    slower = found.task.seconds(without)
    if slower < found.seconds * _WORTH:
        gain = max(0.0, slower / found.seconds - 1)
        yield f"the GPU makes this run {gain:.0%} faster: reads from disk set its pace"


def _assumed(found: Solution, prediction: Prediction) -> Iterator[str]:
    tiers = [room.tier for room in found.rooms.cards]
    tiers += [room.tier for room in (found.rooms.host, found.rooms.disk) if room is not None]
    for tier in tiers:
        if tier.name == prediction.bound_by and tier.read.basis == "assumed":
            yield (
                f"the speed of {tier.name} ({tier.read.value:.1f} GB/s) is assumed"
                + (f": {tier.read.source}" if tier.read.source else "")
            )
