"""Knows no speed: the few choices that are worth weighing, each the best at an end of what fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain

from localrun.plan import encoder, memory, torch_memory
from localrun.plan.load import Buffers, Choice
from localrun.plan.task import Task, exact, kv_type_of


def choices(task: Task, n_ctx: int, ubatch: int) -> Iterator[Choice]:
    """What is worth weighing of one micro-batch."""
    request, spec = task.request, task.stack.spec
    for tables, scales in _table_places(task):
        base = Choice(
            n_ctx,
            kv_type_of(request, task.engine, spec),
            ubatch,
            0,
            buffers=_buffers(task, ubatch, n_ctx),
            tables=tables,
            scales=scales,
            cache_bytes=request.expert_cache_bytes,
        )
        found = _layered(base, task)
        if request.cpu_expert_layers is None and task.engine.experts == "slots":
            found = chain(_slotted(base, task), found)
        yield from (each for each in found if each.card_layers or tables != "vram")


def _buffers(task: Task, ubatch: int, n_ctx: int) -> Buffers:
    """At most what the engine will ask for, whichever layers are where."""
    spec, request, engine = task.stack.spec, task.request, task.engine
    if spec.encoder:
        made = encoder.compute_bytes(spec, ubatch)
        kept = encoder.output_bytes(spec) + encoder.scratch_bytes(spec, ubatch)
        return Buffers(made, made, made, made, kept)
    floats = task.floats
    parallel = request.parallel
    if engine.library:
        kept = engine.library + torch_memory.library_bytes(spec, exact=exact(request))
        made = torch_memory.compute_bytes(
            spec, min(ubatch, n_ctx * parallel), n_ctx, parallel, floats
        )
        return Buffers(made, made, 0, made, library=kept)
    if engine.cells:
        sequences, tokens = memory.sequences(parallel), memory.step_tokens(ubatch, n_ctx, parallel)
    else:
        sequences, tokens = 1, min(ubatch, n_ctx * parallel)
        n_ctx *= parallel
    card = memory.device_compute_bytes(spec, tokens, n_ctx, head=False, floats=floats)
    head = memory.device_compute_bytes(spec, tokens, n_ctx, floats=floats)
    host = memory.host_compute_bytes(spec, tokens, n_ctx)
    layers, process = head, 0
    if engine.cells:
        kv_type = kv_type_of(request, engine, spec)
        layers += sequences * max((size for _, size in spec.state_bytes), default=0)
        if kv_type == "f32":
            widest = max((rows.elements for rows in spec.caches), default=0)
            layers += memory.cells(n_ctx) * parallel * widest * 2
        if kv_type in ("q8_0", "q4_0"):
            layers += tokens * spec.width * 4
        if memory.plain_attention(spec, kv_type, parallel):
            layers += tokens * ((spec.heads + 2) * memory.cells(n_ctx) + 2 * spec.width) * 4
        process = sequences * memory.vocabulary(spec) * 4 + memory.scratch_bytes(
            spec, ubatch, parallel
        )
    return Buffers(card, head, host, layers, process)


def _table_places(task: Task) -> Iterator[tuple[str, bool]]:
    """Where n-gram tables may lie, and whether their scales are kept apart from them. They are as
    good on disk for decoding; RAM is worth it only where it lies idle. VRAM reads rows no faster
    than RAM."""
    if not task.stack.tables:
        yield "", False
        return
    asked = task.request.engram
    if asked == "disk" or (asked is None and task.rooms.disk is not None):
        yield "disk", False
        if task.engine.staged and task.stack.scale_bytes:
            yield "disk", True
    if asked != "disk":
        yield asked or "ram", False


def _slotted(base: Choice, task: Task) -> Iterator[Choice]:
    """All layers on cards or none, experts singly wherever there is room."""
    if not task.stack.routed:
        return
    whole = len(task.stack.layers) + 1
    wanted = task.request.gpu_layers
    may_stream = task.engine.streams != "no" and task.rooms.disk is not None
    for layers in dict.fromkeys((whole if task.rooms.cards else 0, 0)):
        if wanted is not None and layers != min(wanted, whole):
            continue
        if layers == 0 and task.rooms.host is None:
            continue
        apart = layers and task.rooms.host is not None
        for kv_on_cards in (True, False) if apart else (True,):
            choice = replace(base, card_layers=layers, slots=True, kv_on_cards=kv_on_cards)
            if _all_held(choice, task):
                continue
            if may_stream or not task.place(choice).streams:
                yield choice
                if apart and not task.engine.divides and not task.rooms.simulated:
                    # A card that is slower than its host holds what that has no room for.
                    yield replace(choice, host_first=True)


def _all_held(choice: Choice, task: Task) -> bool:
    """Whether one memory holds all experts: whole layers of them need no reading ahead."""
    alone = not choice.card_layers and task.request.expert_cache_bytes is None
    return alone and not task.place(choice).streams


def _layered(base: Choice, task: Task) -> Iterator[Choice]:
    """Ends of the range of whole layers that fit."""
    whole = len(task.stack.layers) + 1
    if not task.rooms.cards:
        yield base
        return
    if task.rooms.host is None:
        yield replace(base, card_layers=whole)
        return
    if not task.engine.divides and not task.rooms.simulated:
        wanted = task.request.gpu_layers
        if wanted is None or wanted >= whole:
            full = replace(base, card_layers=whole)
            yield from (full, replace(full, kv_on_cards=False))
        if not wanted:
            yield base
        return
    pinned = task.request.gpu_layers is not None or task.request.cpu_expert_layers is not None
    for kv_on_cards in (True, False):
        start = replace(base, kv_on_cards=kv_on_cards)
        yield from _pinned(start, task) if pinned else _ends(start, task)
    if not pinned:
        yield base


def _ends(start: Choice, task: Task) -> Iterator[Choice]:
    """All layers on cards with the fewest and the most experts left to the host; else the most
    layers. And none but the output layer, which no handover follows."""
    whole, routed = len(task.stack.layers) + 1, len(task.stack.routed)
    full = replace(start, card_layers=whole)
    if start.kv_on_cards:
        yield replace(start, card_layers=1)
    apart = _least(routed, lambda n: task.cards_fit(replace(full, host_experts=n)))
    if apart is None:
        bare = replace(start, host_experts=routed)
        fewer = _least(whole, lambda n: task.cards_fit(replace(bare, card_layers=whole - n)))
        most = whole - (whole if fewer is None else fewer)
        yield replace(bare, card_layers=most)
        # Where a handover costs more than a layer gains: as few as the host has no room for.
        least = _least(most, lambda n: task.fits(replace(bare, card_layers=n)))
        if least is not None and 0 < least < most:
            yield replace(bare, card_layers=least)
        return
    yield replace(full, host_experts=apart)
    if apart < routed:
        short = _least(routed - apart, lambda n: task.fits(replace(full, host_experts=routed - n)))
        yield replace(full, host_experts=routed - (short or 0))


def _pinned(start: Choice, task: Task) -> Iterator[Choice]:
    """The user's layers; what is left open is solved around them."""
    request, routed = task.request, len(task.stack.routed)
    whole = len(task.stack.layers) + 1
    layers = whole if request.gpu_layers is None else min(request.gpu_layers, whole)
    chosen = replace(start, card_layers=layers)
    if request.cpu_expert_layers is not None:
        yield replace(chosen, host_experts=min(request.cpu_expert_layers, routed))
        return
    apart = _least(routed, lambda n: task.cards_fit(replace(chosen, host_experts=n)))
    yield replace(chosen, host_experts=routed if apart is None else apart)


def _least(most: int, fits: Callable[[int], bool]) -> int | None:
    """The least of 0 to ``most`` that fits, where more fits better; None if none does.

    None at all is asked first: the first expert that stays with a host costs a buffer.
    """
    if fits(0):
        return 0
    if not fits(most):
        return None
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high
