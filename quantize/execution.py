"""Knows no format: one run of a plan, from nothing or from where another one ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from localrun.errors import BackendMissingError, LocalrunError, SourceError, UsageError
from localrun.quantize.carry_out import carry_out, kept, read_back, relative_errors
from localrun.quantize.jobs import Job, Work
from localrun.quantize.journal import Begun, Journal
from localrun.quantize.part import (
    Part,
    journal_of,
    part_of,
    remove_part,
    require_free,
    require_kinds,
    require_whole,
)
from localrun.store.progress import NoProgress, Progress


class Unchanging(Protocol):
    """A source that can tell whether it is still what it was."""

    @property
    def identity(self) -> str:
        """The files of weights, each with its size and when it was written."""
        ...

    def require_unchanged(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Options:
    """``resume`` goes on with what is there, ``force`` starts again and replaces a file at OUT."""

    workers: int
    resume: bool = False
    force: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """``digests`` are sha256 by output and file, ``errors`` the relative error by (output, task),
    ``kept`` how many of the ``jobs`` an earlier run had done; ``notes`` are for the user."""

    digests: tuple[tuple[str, ...], ...]
    errors: dict[tuple[int, int], float]
    jobs: int
    kept: int
    seconds: float
    notes: tuple[str, ...]


def execute(
    work: Work,
    folders: Sequence[str],
    out: Path,
    source: Unchanging,
    options: Options,
    *,
    single: bool,
    share: Callable[[Job], int] | None = None,
    progress: Progress | None = None,
    before_publishing: Callable[[tuple[tuple[Path, ...], ...]], None] = lambda _: None,
) -> Result:
    """Write ``work`` to ``out``: a file where ``single``, else a directory.

    Raises:
        UsageError: OUT or its unfinished part is there and neither ``resume`` nor ``force`` is
            given, or what is there was begun with other settings.
        SourceError: the weights hold a number that no output can; nothing of the output is left.
        LocalrunError: as ``carry_out``; what is done is kept for ``resume``.
    """
    began = time.monotonic()
    share = work.bytes if share is None else share
    bar = progress or NoProgress()
    with ExitStack() as stack:
        require_startable(out, options, single=single)
        journal, notes = _journal(work, out, source, options, single=single)
        stack.callback(journal.close)
        part = Part(out, work.outputs, folders, single=single)
        stack.callback(part.close)
        try:
            part.open()
        except LocalrunError:
            if not part.root.exists():  # nothing was begun
                journal.remove()
            raise
        done = kept(work, part, journal, options.workers)
        left = [number for number in range(len(work.jobs)) if number not in done]
        before = sum(share(work.jobs[number]) for number in done)
        bar.start(out.name, sum(map(share, work.jobs)), before)
        stack.callback(bar.finish)
        try:
            carry_out(
                work, part, journal, left=left, workers=options.workers, progress=bar, share=share
            )
        except SourceError as error:
            if type(error) is SourceError:  # no later run could go on from weights like these
                part.remove()
                journal.remove()
            raise
        part.sync()
        source.require_unchanged()
        digests = read_back(work, part, journal)
        for output, paths in zip(work.outputs, part.paths, strict=True):
            for file, path in zip(output.files, paths, strict=True):
                require_whole(path, file.bytes)
            output.check(paths)
        before_publishing(part.paths)
        errors = relative_errors(work, journal)
        part.publish(replace=options.force)
        journal.remove()
    seconds = time.monotonic() - began
    return Result(digests, errors, len(work.jobs), len(done), seconds, notes)


def require_startable(out: Path, options: Options, *, single: bool) -> None:
    """Hold that a run may write to ``out``: it can be asked before any work is done.

    Raises:
        UsageError: OUT or its unfinished part is there and neither ``resume`` nor ``force`` is
            given, or something is there that is not to be touched.
    """
    require_free(out, single=single, replace=options.force)
    if require_kinds(out, single=single) and not (options.resume or options.force):
        raise UsageError(
            f"{part_of(out)}: a run that did not end left this",
            hint="--resume goes on with it, --force starts again",
        )


def _journal(
    work: Work, out: Path, source: Unchanging, options: Options, *, single: bool
) -> tuple[Journal, tuple[str, ...]]:
    """The record of this output, made new or gone on with."""
    if not options.resume and require_kinds(out, single=single):
        Journal(journal_of(out), _begun(work, source)).remove()  # or another process has it
        remove_part(out)
    begun = _begun(work, source)
    journal = Journal(journal_of(out), begun)
    if journal.begun in (None, begun):
        return journal, ()
    assert journal.begun is not None
    if (journal.begun.work, journal.begun.kernels) != (begun.work, begun.kernels):
        journal.close()
        other = journal.begun.work != begun.work
        what = "other settings" if other else "another build of libggml"
        raise UsageError(
            f"{part_of(out)} was begun with {what}",
            hint="give what it was begun with, or --force to start again",
        )
    journal.restart(begun)
    return journal, ("the weights are not those that it was begun with: all is done again",)


def _begun(work: Work, source: Unchanging) -> Begun:
    from localrun.ggml.library import build

    try:
        kernels = build()
    except BackendMissingError:
        kernels = "none"
    return Begun(work.fingerprint, source.identity, kernels)
