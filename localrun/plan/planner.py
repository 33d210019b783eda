"""Does no I/O: ModelSpec + Machine + PlanRequest → Plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from localrun.errors import PlanRequestError
from localrun.hardware.machine import Machine, TierKind
from localrun.models.spec import ModelSpec
from localrun.plan.assemble import assemble
from localrun.plan.constants import FITTED, Constants
from localrun.plan.engines import Engine, engine
from localrun.plan.plan import Plan, PlanRequest, Workload
from localrun.plan.refusal import refusal
from localrun.plan.search import SMALLEST_N_CTX, Source, search

MOST_N_CTX = 1 << 31
MOST_PARALLEL = 256


def plan(
    spec: ModelSpec,
    machine: Machine,
    request: PlanRequest,
    source: Source,
    fit: Constants = FITTED,
    *,
    explore: bool = False,
) -> Plan:
    """Decide how ``spec`` runs on ``machine`` within ``request``, and how fast that will be.

    ``explore`` also asks what changes of the machine would bring.

    Raises:
        PlanRequestError: constraints that no plan can satisfy.
        DoesNotFitError: with the bytes each tier lacks and the nearest thing that would fit.
    """
    check(request, machine, spec)
    check_machine(request, machine, spec, source)
    if spec.encoder and request.workload == Workload():
        # Predictions are for one text, as long as one may be.
        text = Workload(prompt=request.n_ctx or spec.n_ctx_train or SMALLEST_N_CTX, output=1)
        request = replace(request, workload=text)
    best, nearest = search(spec, machine, request, source, fit)
    if best is not None:
        return assemble(best, spec, machine, source, explore=explore)
    if nearest is None:
        raise PlanRequestError("no backend can be planned for")
    raise refusal(nearest, spec, machine, request, source, fit)


def check(request: PlanRequest, machine: Machine, spec: ModelSpec) -> None:
    """Hold what needs no search.

    Raises:
        PlanRequestError: names the flag.
    """
    if spec.tensor_bytes <= 0:
        raise PlanRequestError(
            "the model's files hold no weights", hint="get the files again, all of them"
        )
    flow = request.workload
    bounds: tuple[tuple[str, int | None, int, int], ...] = (
        ("--ctx", request.n_ctx, 1, MOST_N_CTX),
        ("--parallel", request.parallel, 1, MOST_PARALLEL),
        ("--ubatch", request.ubatch, 1, 1 << 20),
        ("--threads", request.threads, 1, max(1, machine.cpu.logical)),
        ("--vram", request.vram_bytes, 0, 1 << 62),
        ("--ram", request.ram_bytes, 0, 1 << 62),
        ("--disk-speed", request.disk_read, 1, 1 << 62),
        ("--workload prompt", flow.prompt, 0, MOST_N_CTX),
        ("--workload output", flow.output, 1, MOST_N_CTX),
        ("depth", flow.depth, 0, MOST_N_CTX),
        ("gpu layers", request.gpu_layers, 0, 1 << 20),
        ("expert layers on the CPU", request.cpu_expert_layers, 0, 1 << 20),
        ("expert cache", request.expert_cache_bytes, 0, 1 << 62),
    )
    for flag, value, least, most in bounds:
        if value is not None and not least <= value <= most:
            raise PlanRequestError(f"{flag} {value}: from {least} to {most} is possible")
    total = flow.depth + flow.prompt + flow.output
    if total > MOST_N_CTX:
        raise PlanRequestError(f"--workload needs {total} tokens of context, {MOST_N_CTX} are most")
    if request.n_ctx is not None and flow != type(flow)() and total > request.n_ctx:
        raise PlanRequestError(
            f"--workload {flow.prompt}:{flow.output} needs {total} tokens of context, "
            f"--ctx {request.n_ctx} holds fewer"
        )
    if request.cpu_expert_layers and not spec.of("experts"):
        raise PlanRequestError("expert layers on the CPU: the model has no routed experts")
    if request.expert_cache_bytes is not None and not spec.of("experts"):
        raise PlanRequestError("expert cache: the model has no routed experts")
    if request.engram is not None and not spec.of("engram"):
        raise PlanRequestError("--engram: the model has no n-gram tables")
    if spec.encoder:
        _check_encoder(request, spec)
    cells = (request.n_ctx or MOST_N_CTX) * request.parallel
    if request.ubatch is not None and request.ubatch > cells:
        raise PlanRequestError(
            f"--ubatch {request.ubatch} is more than the {cells} tokens of --ctx"
        )


def _check_encoder(request: PlanRequest, spec: ModelSpec) -> None:
    """An encoder computes a text whole and has no positions beyond those it was trained with."""
    most = spec.n_ctx_train
    if request.n_ctx is not None and most and request.n_ctx > most:
        raise PlanRequestError(
            f"--ctx {request.n_ctx}: this encoder has positions for {most} tokens, and no more",
            hint=f"leave --ctx out, or cut texts to {most} tokens",
        )
    if request.ubatch is not None and request.ubatch < (request.n_ctx or most):
        raise PlanRequestError(
            f"--ubatch {request.ubatch}: an encoder computes a text whole, in one micro-batch",
            hint="leave it out",
        )


def check_machine(request: PlanRequest, machine: Machine, spec: ModelSpec, source: Source) -> None:
    """Hold what is asked against what the machine and the backends have.

    Raises:
        PlanRequestError: names the flag.
    """
    kinds = {tier.kind for tier in machine.tiers}
    engines = [engine(each.backend).on(device=each.device) for each in source.candidates]
    slots = any(each.experts == "slots" for each in engines)
    simulates = any(each.simulates for each in engines)
    simulated = bool(request.vram_bytes) and simulates and "ram" in kinds
    device = any(candidate.device for candidate in source.candidates)
    if request.vram_bytes and "vram" not in kinds and not simulated:
        raise PlanRequestError("--vram: the machine has no GPU with memory of its own")
    if request.disk_read is not None and "disk" not in kinds:
        raise PlanRequestError("--disk-speed: the machine has no disk")
    if request.gpu_layers and not (device and kinds & {"vram", "unified"}) and not simulated:
        raise PlanRequestError(f"gpu layers {request.gpu_layers}: no GPU can be used")
    if request.expert_cache_bytes is not None and engines and not slots:
        names = ", ".join(each.name for each in engines)
        raise PlanRequestError(f"expert cache: {names} keeps the experts of a layer together")
    if request.kv_type == "native" and engines and not any(each.native_kv for each in engines):
        names = ", ".join(each.name for each in engines)
        raise PlanRequestError(f"--kv-type native: {names} has no cache in a release's own format")
    if engines and not any(each.keeps(request.kv_type) for each in engines):
        names = ", ".join(
            f"{each.name} keeps {each.kv or ' or '.join(each.kv_types)}" for each in engines
        )
        raise PlanRequestError(f"--kv-type {request.kv_type}: {names}, and no other type")
    if "vram" in kinds and device:
        _check_division(request, engines, spec)
    _check_numerics(request, engines)
    _check_prefill(request, engines, spec)
    _check_tables(request, kinds, engines)
    if "unified" in kinds and device:
        if request.cpu_expert_layers:
            raise PlanRequestError("expert layers on the CPU: the machine's one memory holds all")
        if request.gpu_layers is not None and request.gpu_layers <= spec.layers:
            raise PlanRequestError(f"gpu layers {request.gpu_layers}: one memory takes all of them")


def _check_division(request: PlanRequest, engines: Sequence[Engine], spec: ModelSpec) -> None:
    """Beside a card of its own, some engines compute all layers in one place."""
    if not engines or any(each.divides for each in engines):
        return
    layers, name = request.gpu_layers, engines[0].name
    if layers and layers <= spec.layers:
        raise PlanRequestError(
            f"gpu layers {layers}: {name} computes all layers on the GPU or none",
            hint=f"0, or {spec.layers + 1} for all",
        )
    if request.cpu_expert_layers:
        raise PlanRequestError(
            f"expert layers on the CPU: {name} keeps experts singly beside a GPU",
            hint="leave it out; --vram says how much of the GPU may be used",
        )


def _check_numerics(request: PlanRequest, engines: Sequence[Engine]) -> None:
    if request.numerics is None or any(request.numerics in each.numerics for each in engines):
        return
    known = sorted({name for each in engines for name in each.numerics})
    if known:
        raise PlanRequestError(
            f"--numerics {request.numerics}: no mode is called that",
            hint=f"one of: {', '.join(known)}",
        )
    names = ", ".join(each.name for each in engines) or "no backend"
    raise PlanRequestError(
        f"--numerics {request.numerics}: {names} computes in one way only",
        hint="leave it out, or --backend torch where that runs the model",
    )


def _check_prefill(request: PlanRequest, engines: Sequence[Engine], spec: ModelSpec) -> None:
    if not request.approximate_prefill:
        return
    if not spec.prefill_layers:
        raise PlanRequestError(
            f"--approximate-prefill: every layer of {spec.architecture} keeps rows of a prompt",
            hint="leave it out: there is nothing to pass by",
        )
    if not any(each.numerics for each in engines):
        names = ", ".join(each.name for each in engines) or "no backend"
        raise PlanRequestError(
            f"--approximate-prefill: {names} computes prompts whole",
            hint="leave it out, or --backend torch where that runs the model",
        )


def _check_tables(request: PlanRequest, kinds: set[TierKind], engines: Sequence[Engine]) -> None:
    place = request.engram
    if place == "vram" and engines and not any(each.staged for each in engines):
        names = ", ".join(each.name for each in engines)
        raise PlanRequestError(f"--engram vram: {names} reads rows of tables from ram or disk")
    if place is not None and place not in kinds:
        raise PlanRequestError(f"--engram {place}: the machine has no such memory")
