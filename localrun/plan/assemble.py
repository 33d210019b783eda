"""Knows no search: from the solution found to the Plan that is printed and executed."""

from __future__ import annotations

from collections.abc import Sequence

from localrun.hardware.machine import Machine
from localrun.models.spec import Group, ModelSpec
from localrun.plan import work
from localrun.plan.estimate import estimate
from localrun.plan.load import Load
from localrun.plan.memory import Parts, llamacpp_memory, plain_attention
from localrun.plan.placement import Assignment
from localrun.plan.plan import (
    Budget,
    EngramUse,
    Execution,
    Parameters,
    Placement,
    Plan,
    PlannedMachine,
    PlannedModel,
    PlannedTier,
    PlanRequest,
    Shares,
)
from localrun.plan.rooms import Rooms
from localrun.plan.search import Solution, Source
from localrun.plan.stack import Layer
from localrun.plan.staging import hot_rows
from localrun.plan.verdict import verdict
from localrun.plan.warn import warnings
from localrun.plan.whatif import what_if

_ORDER = (
    "attention",
    "indexer",
    "hyper_connections",
    "router",
    "dense_ffn",
    "shared_experts",
    "experts",
    "other",
    "head",
)
# Of these the load says how much it holds.
_APART = frozenset(("embedding", "engram", "draft", "vision"))


def assemble(
    found: Solution, spec: ModelSpec, machine: Machine, source: Source, *, explore: bool
) -> Plan:
    """The document. ``explore`` is false where nobody asks what another machine would do."""
    made, request = found.assignment, found.task.request
    told = execution(found, spec, machine, request)
    prediction = estimate(found)
    token = found.task.token(made)
    return Plan(
        model=planned_model(spec, source),
        backend=found.candidate.backend,
        backend_reason=found.candidate.reason,
        execution=told,
        machine=planned_machine(machine, found.rooms),
        request=request,
        fits=True,
        verdict=verdict(found, prediction),
        placements=placements(made),
        budgets=(*_budgets(found, spec, told), *_disk_budget(made)),
        bytes_per_token={} if spec.encoder else _bytes_per_token(token, made),
        engram=_engram(token, made),
        prediction=prediction,
        warnings=warnings(found, spec, machine, prediction),
        what_if=what_if(found, spec, machine, source) if explore and not spec.encoder else (),
    )


def planned_model(spec: ModelSpec, source: Source) -> PlannedModel:
    tables = sum(group.parameters for group in spec.of("engram"))
    experts = sum(group.parameters for group in spec.of("experts"))
    total = max(1, spec.parameters)
    return PlannedModel(
        ref=source.ref,
        architecture=spec.architecture,
        format=source.format,
        total_bytes=spec.tensor_bytes,
        tensors=spec.tensors,
        layers=spec.layers,
        quantization=spec.quantization,
        parameters=Parameters(spec.parameters, spec.active_parameters, tables),
        shares=Shares(
            round(tables / total, 6),
            round(experts / total, 6),
            round((total - tables - experts) / total, 6),
        ),
        files=source.files,
        header_bytes_read=source.header_bytes_read,
        encoder=spec.encoder,
    )


def planned_machine(machine: Machine, rooms: Rooms) -> PlannedMachine:
    seen = {room.name: room.tier for room in rooms.cards}
    seen |= {tier.name: tier for tier in machine.tiers if tier.name not in seen}
    compute: dict[str, float | str] = {"cores": machine.cpu.cores, "cpu": machine.cpu.name}
    for tier in seen.values():
        if tier.flops is not None:
            compute[f"{tier.name} tflops"] = tier.flops.value
            compute[f"{tier.name} tflops basis"] = tier.flops.basis
        if tier.link is not None:
            compute[f"{tier.name} link gbps"] = round(tier.link.value, 2)
            compute[f"{tier.name} link basis"] = tier.link.basis
    return PlannedMachine(
        machine.name,
        tuple(
            PlannedTier(
                tier.name,
                tier.capacity_bytes,
                tier.usable_bytes,
                round(tier.read.value, 3),
                tier.read.basis,
                tier.device,
            )
            for tier in seen.values()
        ),
        compute,
    )


def execution(
    found: Solution, spec: ModelSpec, machine: Machine, request: PlanRequest
) -> Execution:
    """What a runner is told."""
    made, choice = found.assignment, found.assignment.choice
    threads = request.threads or max(1, min(machine.cpu.usable, machine.cpu.cores))
    # The head is one more layer of the card it is on.
    split = [float(len(load.layers) + load.output) for load in made.cards]
    return Execution(
        n_ctx=choice.n_ctx,
        ubatch=choice.ubatch,
        kv_type=choice.kv_type,
        threads=threads,
        threads_max=threads,
        # A count that was asked for is obeyed.
        threads_min=request.threads or 1,
        mmap=maps_files(found, spec),
        gpu_layers=choice.card_layers if made.cards else 0,
        flash_attention=bool(made.cards)
        or not found.engine.cells
        or not plain_attention(spec, choice.kv_type, request.parallel),
        parallel=request.parallel,
        kv_on_device=choice.kv_on_cards,
        tensor_split=tuple(split) if len(split) > 1 else (),
        tensor_overrides=_overrides(made),
        slots_per_layer=made.host_slots + made.card_slots if made.slotted else 0,
        card_slots_per_layer=made.card_slots if made.slotted else 0,
        streams=bool(made.slotted) and made.streams,
        staging_bytes=sum(load.staging for load in made.loads),
        mirrors=request.mirrors,
        engram=choice.tables,
        engram_scales=choice.scales,
        engram_cache_bytes=hot_rows(made.stack) if made.staged and made.disk_tables else 0,
        numerics=request.numerics or next(iter(found.engine.numerics), ""),
        approximate_prefill=request.approximate_prefill,
    )


def maps_files(found: Solution, spec: ModelSpec) -> bool:
    """Whether files are mapped: not where what goes to cards would push the rest out of memory."""
    made = found.assignment
    if made.host is None or not made.cards or made.choice.tables == "disk":
        return True
    return spec.tensor_bytes <= made.host.room.limit


def _overrides(made: Assignment) -> tuple[tuple[str, str], ...]:
    """Experts of layers on cards that stay with the host, in GGUF's tensor names."""
    if made.host is None or not made.cards:
        return ()
    computed = {layer.index for load in made.cards for layer in load.layers}
    apart = [str(layer.index) for layer in made.host.experts if layer.index in computed]
    if not apart:
        return ()
    return ((rf"blk\.({'|'.join(apart)})\.ffn_(gate|up|down|gate_up)_exps", "ram"),)


def placements(made: Assignment) -> tuple[Placement, ...]:
    """Every byte of the model, by group and tier."""
    found: list[Placement] = []
    for load in made.loads:
        found.extend(_dense(load, made))
        if load.routed:
            count = sum(layer.experts.count for layer in load.experts if layer.experts)
            found.append(Placement("experts", load.room.name, load.routed, count))
        if load.cache:
            slots, below = made.card_slots, 0
            mine: Sequence[Layer] = [layer for layer in load.layers if layer.experts]
            if load is made.host:
                slots, below, mine = slots + made.host_slots, slots, made.slotted
            count = _experts(mine, slots) - _experts(mine, below)
            found.append(Placement("experts", load.room.name, load.cache, count))
    found.extend(_on_disk(made))
    return tuple(item for item in found if item.bytes)


def _experts(layers: Sequence[Layer], slots: int) -> int:
    """How many are kept of layers with so many slots each."""
    return sum(min(slots, layer.experts.count) for layer in layers if layer.experts)


def _dense(load: Load, made: Assignment) -> list[Placement]:
    tier, mine = load.room.name, {layer.index for layer in load.layers}
    inside = range(len(made.stack.layers))
    groups: dict[str, list[Group]] = {}
    for group in made.stack.spec.groups:
        outside = group.kind == "head" or group.layer not in inside
        if outside and group.kind not in _APART:
            here = load.output
        else:
            here = group.layer in mine and group.kind not in _APART and group.experts is None
        if here:
            groups.setdefault(group.kind, []).append(group)
    found = [
        Placement(
            kind,
            tier,
            sum(group.bytes for group in groups[kind]),
            len({g.layer for g in groups[kind]}),
        )
        for kind in sorted(groups, key=_ORDER.index)
    ]
    found.append(Placement("embedding", tier, load.embedding, 1))
    if load.extras:
        for kind, held in (("draft", made.stack.draft), ("vision", made.stack.vision)):
            found.append(Placement(kind, tier, held.bytes, 1))
    found.append(Placement("engram", tier, load.tables, len(made.stack.tables)))
    return found


def _on_disk(made: Assignment) -> list[Placement]:
    if made.disk is None:
        return []
    tier, found = made.disk.name, []
    if made.text_only:
        for kind, left in (("draft", made.stack.draft), ("vision", made.stack.vision)):
            found.append(Placement(kind, tier, left.bytes, 1))
    if made.streams:
        kept = _experts(made.slotted, made.card_slots + made.host_slots)
        count = _experts(made.slotted, made.experts) - kept
        found.append(Placement("experts", tier, made.away, count))
    found.append(Placement("engram", tier, made.disk_tables, len(made.stack.tables)))
    return found


def _budgets(found: Solution, spec: ModelSpec, told: Execution) -> tuple[Budget, ...]:
    """What each tier is planned to hold; of llama.cpp, exactly what its allocator will ask for."""
    loads = {load.room.name: load for load in found.assignment.loads}
    if not found.engine.cells or found.rooms.unified:
        return tuple(load.budget() for load in loads.values())
    # All sequences share one cache.
    held = llamacpp_memory(spec, told)
    mapped = found.assignment.disk_tables
    return tuple(
        loads[name].budget()
        if loads[name].idle
        else Budget(
            tier=name,
            weights=parts.weights - (mapped if name == "ram" else 0),
            kv=parts.kv,
            compute=parts.compute + parts.output,
            limit=loads[name].room.limit,
            overhead=loads[name].overhead + parts.scratch,
        )
        for name, parts in ((name, held.get(name, Parts())) for name in loads)
    )


def _disk_budget(made: Assignment) -> tuple[Budget, ...]:
    held = sum(item.bytes for item in _on_disk(made))
    if made.disk is None or not held:
        return ()
    return (Budget(made.disk.name, held, 0, 0, made.disk.limit),)


def _bytes_per_token(token: work.Token, made: Assignment) -> dict[str, int]:
    read: dict[str, int] = {}
    shares: Sequence[work.Share] = (*token.cards, *((token.host,) if token.host else ()))
    for share in shares:
        read[share.tier] = round(share.weights.read + share.kv)
    disk = round(token.missed) + (token.row_fetched if token.on_disk else 0)
    if not token.on_disk and token.rows:
        tier = _tables_tier(made)
        read[tier] = read.get(tier, 0) + token.row_bytes
    if disk and made.disk is not None:
        read[made.disk.name] = disk
    return read


def _tables_tier(made: Assignment) -> str:
    return next((load.room.name for load in made.loads if load.tables), "")


def _engram(token: work.Token, made: Assignment) -> EngramUse:
    if not token.rows:
        return EngramUse()
    tier = made.disk.name if token.on_disk and made.disk else _tables_tier(made)
    return EngramUse(tier, token.rows, token.row_bytes, token.reads)
