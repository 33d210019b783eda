"""Does no I/O: finds the assignment with the least predicted time.

Few choices need weighing, because each is best at an end of what fits: for every micro-batch and
place of the cache, as many layers on cards as fit with the fewest experts left to the host, no
cards at all, or single experts in slots. A choice's time does not depend on the limits, so more
memory never makes a plan slower.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from localrun.hardware.machine import Machine
from localrun.models.spec import ModelSpec
from localrun.plan import predict, work
from localrun.plan.constants import FITTED, Constants
from localrun.plan.engines import Engine, engine
from localrun.plan.hits import TYPICAL_SKEW
from localrun.plan.placement import Assignment, Choice, place
from localrun.plan.plan import KvType, PlannedFile, PlanRequest
from localrun.plan.rooms import Rooms, rooms
from localrun.plan.stack import Stack, stack

# KV is allocated whole at load. A longer context is one flag away, and costs memory at once.
DEFAULT_N_CTX = 32_768
FALLBACK_N_CTX = 4096
SMALLEST_N_CTX = 512
# The first of equals is taken: what a batch costs a cancel and a screen speaks for 512.
UBATCHES = (512, 256, 128, 1024, 2048, 4096)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A backend that could run the model. ``device`` is true where it can use the machine's GPUs;
    ``problem`` says why this installation cannot execute the plan, where it cannot."""

    backend: str
    reason: str
    device: bool
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Source:
    """What is planned: the canonical reference, its files, and the backends in order."""

    ref: str
    files: tuple[PlannedFile, ...]
    candidates: tuple[Candidate, ...]
    format: str = "gguf"
    header_bytes_read: int = 0


@dataclass(frozen=True, slots=True)
class Solution:
    """The best assignment of one candidate, with what was weighed to find it."""

    candidate: Candidate
    engine: Engine
    rooms: Rooms
    assignment: Assignment
    seconds: float


def search(
    spec: ModelSpec,
    machine: Machine,
    request: PlanRequest,
    source: Source,
    fit: Constants = FITTED,
) -> tuple[Solution | None, Solution | None]:
    """The fastest assignment that fits, over all candidates, or the one that lacks least."""
    best: Solution | None = None
    nearest: Solution | None = None
    for candidate in source.candidates:
        kind = engine(candidate.backend)
        there = rooms(machine, request, kind, candidate.device)
        for n_ctx in contexts(spec, request):
            found, lacking = _fastest(spec, there, request, kind, n_ctx, fit)
            if found is not None:
                solution = Solution(candidate, kind, there, *found)
                if best is None or solution.seconds < best.seconds:
                    best = solution
                break
            if lacking is not None and (nearest is None or _lack(lacking) < _least(nearest)):
                nearest = Solution(candidate, kind, there, lacking, 0.0)
    return best, nearest


def _least(solution: Solution) -> int:
    return _lack(solution.assignment)


def _lack(made: Assignment) -> int:
    return sum(made.missing.values())


def _fastest(
    spec: ModelSpec,
    there: Rooms,
    request: PlanRequest,
    kind: Engine,
    n_ctx: int,
    fit: Constants,
) -> tuple[tuple[Assignment, float] | None, Assignment | None]:
    """The fastest assignment at one context, or none and the one that lacks least."""
    kv_type = kv_type_of(request, kind, spec)
    flow = request.workload
    arranged = stack(spec, n_ctx * request.parallel, kv_type, flow.depth + flow.prompt)
    best: tuple[Assignment, float] | None = None
    nearest: Assignment | None = None
    for choice in _choices(arranged, there, request, kind, n_ctx, kv_type):
        made = place(choice, arranged, there)
        if made.missing:
            if nearest is None or _lack(made) < _lack(nearest):
                nearest = made
            continue
        time = seconds(made, there, kind, request, fit)
        if best is None or time < best[1] * (1 - 1e-9):
            best = made, time
    return best, nearest


def seconds(
    made: Assignment, there: Rooms, kind: Engine, request: PlanRequest, fit: Constants
) -> float:
    """Predicted time of the request's workload."""
    decode = predict.token_terms(
        work.token(made, TYPICAL_SKEW), there, kind, fit, request.threads
    ).total
    flow = request.workload
    return (prefill_ms(made, there, kind, request, fit) + flow.output * decode) / 1e3


def prefill_ms(
    made: Assignment, there: Rooms, kind: Engine, request: PlanRequest, fit: Constants
) -> float:
    """Predicted time of the workload's prompt."""
    flow = request.workload
    if flow.prompt == 0:
        return 0.0
    tokens = min(made.choice.ubatch, flow.prompt)
    return prompt_terms(made, there, kind, request, fit).total * flow.prompt / tokens


def prompt_terms(
    made: Assignment, there: Rooms, kind: Engine, request: PlanRequest, fit: Constants
) -> predict.Terms:
    """One chunk of the prompt, in the middle of it."""
    flow = request.workload
    spec = made.stack.spec
    layers = spec.prefill_layers if kind.prefill_layers and spec.prefill_layers else 1 << 30
    tokens = max(1, min(made.choice.ubatch, flow.prompt))
    depth = flow.depth + flow.prompt // 2
    chunk = work.chunk(made, tokens, layers, depth, TYPICAL_SKEW)
    return predict.chunk_terms(chunk, there, kind, fit)


def _choices(
    arranged: Stack,
    there: Rooms,
    request: PlanRequest,
    kind: Engine,
    n_ctx: int,
    kv_type: KvType,
) -> Iterator[Choice]:
    """What is worth weighing."""
    ubatches = UBATCHES if request.ubatch is None else (request.ubatch,)
    for ubatch in ubatches:
        if ubatch > n_ctx and ubatch != ubatches[0]:
            continue
        for tables in _table_places(arranged, there, request):
            base = Choice(
                n_ctx,
                kv_type,
                min(ubatch, n_ctx),
                0,
                tables=tables,
                cache_bytes=request.expert_cache_bytes,
            )
            if kind.experts == "slots" and arranged.routed and request.cpu_expert_layers is None:
                yield from _slotted(base, arranged, there, request, kind)
            yield from _layered(base, arranged, there, request)


def _table_places(arranged: Stack, there: Rooms, request: PlanRequest) -> tuple[str, ...]:
    """N-gram tables are as good on disk for decoding; RAM is worth it only where it lies idle."""
    if not arranged.tables:
        return ("",)
    if request.engram is not None:
        return (request.engram,)
    return ("disk", "ram") if there.disk is not None else ("ram",)


def _slotted(
    base: Choice, arranged: Stack, there: Rooms, request: PlanRequest, kind: Engine
) -> Iterator[Choice]:
    whole = len(arranged.layers) + 1
    wanted = request.gpu_layers
    for layers in dict.fromkeys((whole if there.cards else 0, 0)):
        if wanted is not None and layers != min(wanted, whole):
            continue
        if layers == 0 and there.host is None:
            continue
        for kv_on_cards in (True, False) if layers and there.host is not None else (True,):
            choice = replace(base, card_layers=layers, slots=True, kv_on_cards=kv_on_cards)
            made = place(choice, arranged, there)
            if not made.streams or (kind.streams != "no" and there.disk is not None):
                yield choice


def _layered(base: Choice, arranged: Stack, there: Rooms, request: PlanRequest) -> Iterator[Choice]:
    """Ends of the range of whole layers that fit."""
    whole = len(arranged.layers) + 1
    if not there.cards:
        yield base
        return
    if there.host is None:
        yield replace(base, card_layers=whole)
        return
    routed = len(arranged.routed)
    for kv_on_cards in (True, False):
        start = replace(base, kv_on_cards=kv_on_cards)
        if request.gpu_layers is not None or request.cpu_expert_layers is not None:
            layers = whole if request.gpu_layers is None else min(request.gpu_layers, whole)
            yield from _pinned(replace(start, card_layers=layers), arranged, there, request)
            continue
        full = replace(start, card_layers=whole)
        apart = _least_fitting(
            routed,
            lambda n, at=full: not place(replace(at, host_experts=n), arranged, there).missing,
        )
        if apart is not None:
            yield replace(full, host_experts=apart)
            if apart < routed:
                yield replace(full, host_experts=routed)
        else:
            yield replace(full, host_experts=routed)
        fewer = _least_fitting(
            whole,
            lambda n, at=start: (
                not place(
                    replace(at, card_layers=whole - n, host_experts=routed), arranged, there
                ).missing
            ),
        )
        if fewer:
            yield replace(start, card_layers=whole - fewer, host_experts=routed)
    if request.gpu_layers is None and request.cpu_expert_layers is None:
        yield replace(base, card_layers=0)


def _pinned(start: Choice, arranged: Stack, there: Rooms, request: PlanRequest) -> Iterator[Choice]:
    """The user's layers; what is left open is solved around them."""
    routed = len(arranged.routed)
    if request.cpu_expert_layers is not None:
        yield replace(start, host_experts=min(request.cpu_expert_layers, routed))
        return
    apart = _least_fitting(
        routed, lambda n: not place(replace(start, host_experts=n), arranged, there).missing
    )
    yield replace(start, host_experts=routed if apart is None else apart)


def _least_fitting(most: int, fits: Callable[[int], bool]) -> int | None:
    """The least of 0 to ``most`` that fits, where more always fits better; None if none does."""
    if not fits(most):
        return None
    low, high = -1, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def contexts(spec: ModelSpec, request: PlanRequest) -> Sequence[int]:
    """The contexts to try, the wanted one first; a context that was asked for is the only one."""
    if request.n_ctx is not None:
        return (request.n_ctx,)
    flow = request.workload
    needed = flow.depth + flow.prompt + flow.output
    wanted = min(spec.n_ctx_train or FALLBACK_N_CTX, max(DEFAULT_N_CTX, needed))
    tried = [wanted]
    while tried[-1] // 2 >= SMALLEST_N_CTX:
        tried.append(tried[-1] // 2)
    return tried


def kv_type_of(request: PlanRequest, kind: Engine, spec: ModelSpec) -> KvType:
    """The type asked for, else the release's own where the engine has it, else 16 bits."""
    native = any(rows.native_bytes for rows in spec.caches)
    if request.kv_type is not None:
        return request.kv_type
    return "native" if kind.native_kv and native else "f16"
