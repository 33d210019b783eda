"""Knows no format: a file of the user's, changed only with a diff, a yes and a backup."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import typer

from localrun.cli.output import clean_line, note
from localrun.errors import LocalrunError, UsageError
from localrun.store.atomic import AtomicFile

MAX_FILE_BYTES = 4 * 1024 * 1024


def read(file: Path) -> str | None:
    """The text of a file, line ends as they are; None where there is none.

    Raises:
        UsageError: it is no file, too large, or not UTF-8 text.
    """
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}", hint="check who owns it") from error
    if len(data) > MAX_FILE_BYTES:
        raise UsageError(f"{file}: larger than {MAX_FILE_BYTES} bytes", hint="is it that file?")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"{file}: not UTF-8 text", hint="convert or move it first") from error


def changed(file: Path, text: str, *, yes: bool) -> bool:
    """See to it that ``file`` holds ``text``; False where the user said no.

    What changes is shown on stderr. An old file is kept beside the new one, and a link stays one.

    Raises:
        UsageError: neither ``yes`` nor anybody to ask. LocalrunError: the disk refuses.
    """
    file = file.resolve()
    old = read(file)
    if old == text:
        note(f"{file} says so already")
        return True
    for line in _diff(file, old or "", text):
        sys.stderr.write(clean_line(line) + "\n")
    sys.stderr.flush()
    if not yes and not _agreed(file):
        note(f"{file} is as it was")
        return False
    if read(file) != old:
        raise LocalrunError(
            f"{file} was changed meanwhile", hint="nothing was written: run the same command again"
        )
    if old is not None:
        backup = file.with_name(f"{file.name}.localrun-backup-{datetime.now():%Y%m%d-%H%M%S-%f}")
        _write(backup, old, file)
        note(f"the old one is kept as {backup}")
    file.parent.mkdir(parents=True, exist_ok=True)
    _write(file, text, file)
    note(f"wrote {file}")
    return True


def write(file: Path, text: str) -> None:
    """Write a file of ours, which nobody needs to be asked for: 0600."""
    file.parent.mkdir(parents=True, exist_ok=True)
    _write(file, text, None)


def _write(file: Path, text: str, like: Path | None) -> None:
    mode = like.stat().st_mode & 0o777 if like is not None and like.exists() else 0o600
    with AtomicFile(file) as target:
        target.write(text.encode())
        target.commit()
    os.chmod(file, mode)


def _agreed(file: Path) -> bool:
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError(
            f"{file} was not written: nobody is here to be asked",
            hint="--yes writes it, or paste the settings yourself",
        )
    return typer.confirm(f"Write {file}?", default=False, err=True)


def _diff(file: Path, old: str, new: str) -> Iterator[str]:
    names = (str(file), f"{file} (new)")
    return difflib.unified_diff(old.splitlines(), new.splitlines(), *names, lineterm="")
