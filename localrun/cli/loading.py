"""Knows no screen: from a reference as typed to a plan, and from a plan to something to talk to.

This is the way of the data (DESIGN section 2) as every command takes it:
parse → find → read headers → describe → choose a backend → plan → load.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from localrun.config import Settings, settings
from localrun.errors import ModelNotFoundError, UsageError
from localrun.plan.plan import Plan, PlanRequest
from localrun.ref import CatalogueRef, HubRef, LocalRef, ModelRef, PathRef, PipRef, parse

if TYPE_CHECKING:
    from localrun.chat.messages import ChatModel
    from localrun.engine.client import EngineClient
    from localrun.models.spec import ModelSpec
    from localrun.store.files import ModelFiles
    from localrun.store.library import Library


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model that is on disk, described and planned. ``loader`` is the runner's import string."""

    files: ModelFiles
    spec: ModelSpec
    plan: Plan
    loader: str


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
            raise unknown(ref, Library(here).names())
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


def describe_files(files: ModelFiles) -> ModelSpec:
    """What the headers of a model on disk say of it, with its config.json where it has one.

    Raises:
        ModelNotFoundError: a file went away behind our back. HeaderError: one is malformed.
    """
    from localrun.formats.read import read_header
    from localrun.formats.reader import FileSource
    from localrun.formats.strict_json import read_config
    from localrun.models.describe import describe

    for file in files.weights:
        if file.path is None or not file.path.exists():
            raise ModelNotFoundError(
                f"{files.ref}: {file.name} is no longer on this disk",
                hint=f"localrun pull {files.ref}",
            )
    header = read_header([file.path for file in files.weights if file.path is not None])
    for file in files.files:
        if file.name.rpartition("/")[2] == "config.json" and file.path is not None:
            with FileSource(file.path) as source:
                return describe(header, read_config(source, file.name))
    return describe(header)


def prepare(text: str, request: PlanRequest, here: Settings | None = None) -> Prepared:
    """Find, describe and plan one model. Reads headers only; no weight is loaded.

    Raises:
        ModelNotFoundError, HeaderError, BackendMissingError, DoesNotFitError: each of its step.
    """
    from localrun.backends.registry import choose, device_ready, loader
    from localrun.hardware.probe import probe
    from localrun.plan.planner import Source, plan

    here = here or settings()
    files = find(text, here)
    spec = describe_files(files)
    backend, _reason = choose(spec, files.format, request.backend)
    machine = probe([here.data])
    source = Source(
        ref=str(files.ref),
        files=tuple(str(file.path.absolute()) for file in files.weights if file.path),
        backend=backend,
        device=device_ready(backend, machine),
    )
    return Prepared(files, spec, plan(spec, machine, request, source), loader(backend))


async def open_process(prepared: Prepared) -> EngineClient:
    """Start the engine's child process on this plan."""
    from localrun.engine.process import EngineProcess

    return await EngineProcess.start(
        prepared.plan,
        loader=prepared.loader,
        chat_template=prepared.spec.chat_template,
        log=settings().state / "engine.log",
    )


async def open_chat(prepared: Prepared) -> ChatModel:
    """A model to talk to, its engine in a child process."""
    from localrun.chat.local import LocalChatModel
    from localrun.chat.templates import Renderer

    return LocalChatModel(await open_process(prepared), Renderer())
