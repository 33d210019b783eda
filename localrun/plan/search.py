"""Does no I/O: finds the assignment with the least predicted time.

Few choices need weighing, because each is best at an end of what fits: for every micro-batch and
place of the cache, as many layers on cards as fit with the fewest experts left to the host, no
cards at all, or single experts in slots. A choice's time does not depend on the limits, so more
memory never makes a plan slower: exactly so on one card or several alike. Where the host reads many
times faster than the cards, a count between the ends may be the best and is not looked for; over
cards of different speeds, layers are whole, so a rest smaller than one may lie where it is slower.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from localrun.hardware.machine import Machine
from localrun.models.spec import ModelSpec
from localrun.plan import memory
from localrun.plan.choices import choices
from localrun.plan.constants import FITTED, Constants
from localrun.plan.engines import Engine, engine
from localrun.plan.learned import NOTHING_LEARNED, Learned
from localrun.plan.placement import Assignment
from localrun.plan.plan import PlannedFile, PlanRequest, Workload
from localrun.plan.rates import tuned
from localrun.plan.rooms import Rooms, rooms
from localrun.plan.task import Task, arrange

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
    """What is planned: the canonical reference, its files, and the backends in order. ``learned``
    is what earlier runs of it here say."""

    ref: str
    files: tuple[PlannedFile, ...]
    candidates: tuple[Candidate, ...]
    format: str = "gguf"
    header_bytes_read: int = 0
    learned: Learned = NOTHING_LEARNED


@dataclass(frozen=True, slots=True)
class Solution:
    """The best assignment of one candidate, and the task that it solves."""

    candidate: Candidate
    task: Task
    assignment: Assignment
    seconds: float

    @property
    def rank(self) -> tuple[bool, float]:
        """The least is taken: what can be executed first, then the fastest."""
        return bool(self.candidate.problem), self.seconds

    @property
    def rooms(self) -> Rooms:
        return self.task.rooms

    @property
    def engine(self) -> Engine:
        return self.task.engine


def search(
    spec: ModelSpec,
    machine: Machine,
    request: PlanRequest,
    source: Source,
    fit: Constants = FITTED,
) -> tuple[Solution | None, Solution | None]:
    """The fastest assignment that fits, over all candidates that can execute one, else over all;
    and otherwise the one that lacks least."""
    best: Solution | None = None
    nearest: Solution | None = None
    floats = memory.layer_floats(spec)
    for candidate in source.candidates:
        kind = engine(candidate.backend).on(device=candidate.device)
        if not kind.keeps(request.kv_type):
            continue
        if request.numerics is not None and request.numerics not in kind.numerics:
            continue
        if request.approximate_prefill and not kind.numerics:
            continue
        known = replace(machine, compute=tuned(machine.compute, spec, kind))
        there = rooms(known, request, kind, candidate.device)
        for n_ctx in contexts(spec, request):
            arranged = arrange(spec, request, kind, n_ctx)
            task = Task(arranged, there, request, kind, fit, floats, source.learned)
            found, lacking = _fastest(task, n_ctx)
            if found is not None:
                solution = Solution(candidate, task, *found)
                if best is None or solution.rank < best.rank:
                    best = solution
                break
            if lacking is not None and (
                nearest is None or _lack(lacking) < _lack(nearest.assignment)
            ):
                nearest = Solution(candidate, task, lacking, 0.0)
    return best, nearest


def _fastest(task: Task, n_ctx: int) -> tuple[tuple[Assignment, float] | None, Assignment | None]:
    """The fastest assignment at one context, or none and the one that lacks least."""
    fitting: list[tuple[Assignment, float, int]] = []
    nearest: Assignment | None = None
    wanted = task.request.ubatch
    ubatches = UBATCHES if wanted is None else (wanted,)
    if task.stack.spec.encoder:
        ubatches = (n_ctx,)  # a text is computed whole, alone
    sizes = list(dict.fromkeys(min(size, n_ctx * task.request.parallel) for size in ubatches))
    # What the smallest has no room for, none has: buffers grow with it.
    for ubatch in sorted(sizes):
        for choice in choices(task, n_ctx, ubatch):
            made = task.place(choice)
            if not made.missing:
                fitting.append((made, task.seconds(made), sizes.index(ubatch)))
            elif nearest is None or _lack(made) < _lack(nearest):
                nearest = made
        if not fitting:
            return None, nearest
    if task.rooms.simulated:
        # It is declared to be used: what fits without it counts where nothing fits with it.
        fitting = [each for each in fitting if each[0].cards] or fitting
    least = min(time for _, time, _ in fitting) * (1 + 1e-9)
    equal = [each for each in fitting if each[1] <= least]
    best, time, _ = min(equal, key=lambda each: each[2])
    return (best, time), nearest


def _lack(made: Assignment) -> int:
    return sum(made.missing.values())


def contexts(spec: ModelSpec, request: PlanRequest) -> Sequence[int]:
    """The contexts to try, the wanted one first; a context that was asked for is the only one."""
    if request.n_ctx is not None:
        return (request.n_ctx,)
    flow = request.workload
    if spec.encoder:  # it has no positions beyond those it was trained with
        return halved(spec.n_ctx_train or SMALLEST_N_CTX, SMALLEST_N_CTX)
    needed = flow.depth + flow.prompt + flow.output
    wanted = min(spec.n_ctx_train or FALLBACK_N_CTX, max(DEFAULT_N_CTX, needed))
    least = SMALLEST_N_CTX
    if flow != Workload():  # one that was asked for must have room
        wanted, least = max(wanted, needed), max(least, needed)
    return halved(wanted, least)


def halved(most: int, least: int) -> Sequence[int]:
    """``most``, and half of what came before as long as that is at least ``least``."""
    tried = [most]
    while tried[-1] // 2 >= least:
        tried.append(tried[-1] // 2)
    return tried
