"""Knows no screen: from a reference as typed to a plan, and from a plan to something to talk to.

This is the way of the data (DESIGN section 2) as every command takes it:
parse → find → read headers → describe → choose a backend → plan → load.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from localrun.cli.lookup import Found, described
from localrun.cli.machines import AUTO, this_machine
from localrun.cli.output import note
from localrun.config import Settings, settings
from localrun.errors import ModelNotFoundError, OutOfMemoryError, PlanError, UsageError
from localrun.plan.plan import Plan, PlanRequest
from localrun.ref import CatalogueRef, HubRef, LocalRef, ModelRef, PathRef, PipRef, parse

if TYPE_CHECKING:
    from localrun.chat.local import LocalChatModel
    from localrun.engine.client import EngineClient
    from localrun.hardware.machine import Machine
    from localrun.models.spec import ModelSpec
    from localrun.plan.search import Candidate, Source
    from localrun.store.files import ModelFiles
    from localrun.store.library import Library


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model that is on disk, described and planned. ``loader`` is the runner's import string;
    ``request`` is None for a plan that was saved before; ``draft`` guesses ahead for it, and
    ``speculation`` False guesses nothing at all. ``learns``: what its run shows is remembered."""

    found: Found
    plan: Plan
    loader: str
    request: PlanRequest | None
    machine: Machine
    draft: Prepared | None = None
    speculation: bool = True
    learns: bool = False

    @property
    def spec(self) -> ModelSpec:
        return self.found.spec

    @property
    def plans(self) -> tuple[Plan, ...]:
        """Of the model, and of the one that guesses for it."""
        return (self.plan,) if self.draft is None else (self.plan, self.draft.plan)


def parse_from(text: str, source: str | None) -> ModelRef:
    """Parse a reference; ``source`` decides where the grammar leaves a choice."""
    match source:
        case None:
            return parse(text)
        case "hub":
            ref = parse(text if ":" in text or "://" in text else f"hf:{text}")
            wanted: type = HubRef
        case "pip":
            ref, wanted = parse(text if text.startswith("pip:") else f"pip:{text}"), PipRef
        case _:
            local = text.startswith(("/", "./", "../", "~"))
            ref, wanted = parse(text if local else f"./{text}"), PathRef
    if not isinstance(ref, wanted):
        raise UsageError(f"--source {source}: {text!r} is not one of its references")
    return ref


def find(text: str, here: Settings, *, offer: bool = True) -> ModelFiles:
    """The files of a model on disk; on a terminal, offers to download one of the catalogue.

    Raises:
        ModelNotFoundError: with the pull command, or the three nearest names.
    """
    from localrun.store.library import Library

    ref = parse(text)
    found = Library(here).find(ref)
    if found is not None:
        return found
    if isinstance(ref, CatalogueRef):
        from localrun.store.catalogue import entry, unknown

        if entry(ref.name) is None:
            missing = unknown(ref, Library(here).names())
            if Path(text).exists():  # a name goes before a path, which begins with a dot or slash
                missing.hint = f"the path of that name is ./{text}"
            raise missing
        if offer and _agrees_to_download(ref):
            from localrun.cli.progress import progress
            from localrun.store.pull import pull

            return pull(ref, here, progress=progress())
    if isinstance(ref, LocalRef):
        raise _local_not_found(ref, Library(here))
    raise ModelNotFoundError(f"{text} is not on this disk", hint=f"localrun pull {ref}")


def _local_not_found(ref: LocalRef, library: Library) -> ModelNotFoundError:
    """An import whose files went away cannot be pulled; the one who moved them knows where to."""
    stored = next((model for model in library.list() if model.ref == str(ref)), None)
    if stored is None:
        return ModelNotFoundError(f"{ref} is not on this disk")
    return ModelNotFoundError(
        f"{ref} is not whole: {stored.state} {stored.detail}".rstrip(),
        hint=f"put the files back, or `localrun import PATH --name {ref.publisher}/{ref.name}`",
    )


def _agrees_to_download(ref: CatalogueRef) -> bool:
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    import typer

    return typer.confirm(f"{ref} is not on this disk. Download it?", default=True, err=True)


def candidates(
    found: Found, machine: Machine, requested: str | None = None, *, runnable: bool = False
) -> tuple[Candidate, ...]:
    """The backends a model can be planned for, in the order they are tried.

    What this version cannot execute is planned for all the same, with ``problem`` saying so, where
    the user names it or nothing else runs the model; not so where the plan must be ``runnable``. A
    machine by name is taken to have whatever a backend needs for its GPUs.

    Raises:
        UsageError: ``requested`` is no backend or cannot run the model.
    """
    from localrun.backends import registry
    from localrun.plan.search import Candidate

    names = registry.names() if requested is None else (requested,)
    fitting: list[Candidate] = []
    refusals = []
    for name in names:
        refusal = registry.backend(name).supports(found.spec, found.format)
        if refusal is None and requested is None and not _meant_for(name, machine, found, fitting):
            refusal = "computes on Macs, elsewhere on the CPU only"
        if refusal is not None:
            refusals.append(f"{name}: {refusal}")
            continue
        reason = f"the first backend that runs {found.spec.architecture} from {found.format}"
        reason = reason if requested is None else "asked for by --backend"
        fitting.append(Candidate(name, reason, _device(name, machine)))
    if not runnable and found.format == _PLANNED_FORMAT and _PLANNED in names:
        fitting.extend(_to_come(found, machine, requested, "; ".join(refusals)))
    if not fitting and requested is not None:
        registry.choose(found.spec, found.format, requested)  # says why not
    if fitting:
        return tuple(fitting)
    return (Candidate(_PLANNED, "; ".join(refusals), True, _absent(found)),)


# What plans are made for where no backend executes them yet, and the files that it reads.
_PLANNED = "torch"
_PLANNED_FORMAT = "safetensors"
_MAC = "Darwin"


def _meant_for(name: str, machine: Machine, found: Found, before: Sequence[Candidate]) -> bool:
    """mlx is what Macs compute with; torch, which has their CPU only, runs there what mlx does not.
    Elsewhere mlx is taken here and now, where nothing else runs the model, and no machine by name
    is planned for it. GGUF is torch's where llama.cpp does not run it."""
    if name == "mlx":
        return machine.system == _MAC or (machine.name == AUTO and not before)
    if name == _PLANNED and machine.system == _MAC and _by_mlx(found):
        return False
    return name != _PLANNED or found.format == _PLANNED_FORMAT or not before


def _by_mlx(found: Found) -> bool:
    from localrun.backends import registry

    return registry.backend("mlx").supports(found.spec, found.format) is None


def _to_come(
    found: Found, machine: Machine, requested: str | None, refusals: str
) -> Iterator[Candidate]:
    """What torch does not run yet: a model of another architecture, or any on a Mac's GPU."""
    from localrun.backends import registry
    from localrun.plan.search import Candidate

    reason = refusals if requested is None else "asked for by --backend"
    if registry.backend(_PLANNED).supports(found.spec, found.format) is not None:
        yield Candidate(_PLANNED, reason, True, _absent(found))
    elif machine.system == _MAC:
        problem = (
            "this version of the torch backend computes on the CPU of a Mac: the plan is for its "
            "GPU, to come"
        )
        yield Candidate(_PLANNED, reason, True, problem)


def _absent(found: Found) -> str:
    return (
        f"this version cannot run {found.spec.architecture} from {found.format} yet: the plan is "
        f"for the {_PLANNED} backend to come"
    )


def _device(name: str, machine: Machine) -> bool:
    from localrun.backends.registry import device_ready

    if name == _PLANNED and machine.system == _MAC:
        return False
    return machine.name != AUTO or device_ready(name, machine)


def plan_found(
    found: Found,
    machine: Machine,
    request: PlanRequest,
    *,
    explore: bool = False,
    runnable: bool = False,
    learn: bool = False,
) -> Plan:
    """Plan a model that was looked up; ``runnable`` for a backend that is here, ``learn`` with what
    earlier runs on this machine showed.

    Raises:
        PlanRequestError, DoesNotFitError: see ``plan``. UsageError: no such backend.
    """
    from localrun.plan.planner import plan

    chosen = candidates(found, machine, request.backend, runnable=runnable)
    source = source_of(found, chosen)
    if learn and machine.name == AUTO:
        from localrun.cli.learning import plan_with_learned

        made = plan_with_learned(found.spec, machine, request, source, explore=explore)
    else:
        made = plan(found.spec, machine, request, source, explore=explore)
    notes = tuple(_on_one_disk(found, request.mirrors))
    return replace(made, warnings=(*made.warnings, *notes)) if notes else made


def _on_one_disk(found: Found, mirrors: Sequence[str]) -> Iterator[str]:
    """Copies that lie where the model does: a plan takes each of them for a disk of its own."""
    weights = found.files.weights if found.files else ()
    own = {file.path.stat().st_dev for file in weights if file.path and file.path.exists()}
    for folder in mirrors:
        if Path(folder).is_dir() and Path(folder).stat().st_dev in own:
            yield (
                f"--mirror {folder} is on the disk of the model itself: both share its speed, and "
                "reads from disk take longer than is said here"
            )


def source_of(found: Found, chosen: tuple[Candidate, ...]) -> Source:
    """What the planner is told of a model beside its spec."""
    from localrun.plan.plan import PlannedFile
    from localrun.plan.search import Source

    files = found.files.weights if found.files else ()
    return Source(
        ref=found.ref,
        files=tuple(
            PlannedFile(str(file.path.absolute()) if file.path else file.name, file.bytes)
            for file in files
        ),
        candidates=chosen,
        format=found.format,
        header_bytes_read=found.bytes_read,
    )


def prepare(
    text: str, request: PlanRequest, here: Settings | None = None, *, learn: bool = False
) -> Prepared:
    """Find, describe and plan one model. Reads headers only; no weight is loaded. ``learn``: from
    what earlier runs showed, and let the next ones learn from this.

    Raises:
        ModelNotFoundError, HeaderError, BackendMissingError, PlanError: each of its step.
    """
    here = here or settings()
    found = described(find(text, here))
    return planned(found, request, this_machine(here)[0], learn=learn)


def planned(
    found: Found, request: PlanRequest, machine: Machine, *, learn: bool = False
) -> Prepared:
    """Plan a model that was described, for a backend that is here; ``learn`` as for ``prepare``.

    Raises:
        BackendMissingError, PlanError, UsageError: as ``prepare``.
    """
    from localrun.backends.registry import choose, loader

    choose(found.spec, found.format, request.backend)  # says so where no backend runs it
    made = plan_found(found, machine, request, runnable=True, learn=learn)
    return Prepared(found, made, loader(made.backend), request, machine, learns=learn)


async def open_process(
    prepared: Prepared, tell: Callable[[str], None] = note
) -> tuple[EngineClient, Plan]:
    """Start the engine's child process on this plan; returns the plan that it executes. When it is
    closed, ``tell`` is given what the runner noted.

    Where the load fails for want of memory, the plan is made again with what there really was and
    tried once more, and ``tell`` is given one line; a saved plan is executed as it stands or not at
    all.
    """
    try:
        return await _start(prepared, tell), prepared.plan
    except OutOfMemoryError as error:
        if prepared.request is None:
            raise
        smaller = replan(prepared, error)
        tell(f"{error.message}; planned again: {changes(prepared.plan, smaller.plan)}")
        return await _start(smaller, tell), smaller.plan


def replan(prepared: Prepared, error: OutOfMemoryError) -> Prepared:
    """The same model and request with the memory that a failed load found.

    Raises:
        OutOfMemoryError: ``error`` itself, where nothing smaller fits or the plan stays the same.
    """
    assert prepared.request is not None
    budgets = {each.tier: each for each in prepared.plan.budgets}
    budget = budgets.get(error.tier) or budgets.get("unified")
    if budget is None:
        raise error
    limit = budget.total * 7 // 8
    if error.needed_bytes and budget.tier == error.tier:
        # What was held, and half of what was refused: how much of it there was nobody knows.
        limit = min(limit, error.held_bytes + error.needed_bytes // 2)
    vram = budget.tier.startswith("vram")
    request = (
        replace(prepared.request, vram_bytes=limit)
        if vram
        else replace(prepared.request, ram_bytes=limit)
    )
    try:
        made = planned(prepared.found, request, prepared.machine, learn=prepared.learns)
    except PlanError:
        raise error from None
    if made.plan.execution == prepared.plan.execution:
        raise error
    return replace(prepared, plan=made.plan, loader=made.loader, request=made.request)


def promised(*plans: Plan) -> dict[str, int]:
    """The bytes of memory that plans budget together, by tier."""
    sums: dict[str, int] = {}
    for budget in (each for plan in plans for each in plan.budgets if each.tier != "disk"):
        sums[budget.tier] = sums.get(budget.tier, 0) + budget.total
    return sums


def changes(before: Plan, after: Plan) -> str:
    """What differs in two plans' executions, for one line."""
    old, new = asdict(before.execution), asdict(after.execution)
    names = ("n_ctx", "ubatch", "kv_type", "gpu_layers", "kv_on_device", "slots_per_layer", "mmap")
    said = [f"{name} {old[name]} → {new[name]}" for name in names if old[name] != new[name]]
    return ", ".join(said) or "weights moved"


async def _start(prepared: Prepared, tell: Callable[[str], None]) -> EngineClient:
    from localrun.cli.learning import at_the_end
    from localrun.engine.options import DraftModel, EngineOptions
    from localrun.engine.process.engine_process import EngineProcess

    draft = prepared.draft
    return await EngineProcess.start(
        prepared.plan,
        loader=prepared.loader,
        chat_template=prepared.spec.chat_template,
        log=settings().state / "engine.log",
        options=EngineOptions(
            state_folder=settings().cache / "prefixes",
            speculation=prepared.speculation,
            draft=None if draft is None else DraftModel(draft.plan, draft.loader),
        ),
        closing=at_the_end(prepared.plan, tell, remember=prepared.learns),
    )


async def open_chat(prepared: Prepared, tell: Callable[[str], None] = note) -> LocalChatModel:
    """A model to talk to, its engine in a child process; ``tell`` as for ``open_process``."""
    return (await open_chat_as_planned(prepared, tell))[0]


async def open_chat_as_planned(
    prepared: Prepared, tell: Callable[[str], None] = note
) -> tuple[LocalChatModel, Plan]:
    """The same, with the plan that it executes."""
    from localrun.chat.local import LocalChatModel
    from localrun.chat.templates import Renderer

    client, made = await open_process(prepared, tell)
    return LocalChatModel(client, Renderer()), made
