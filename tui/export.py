"""Knows no widget: where an exported conversation goes."""

from __future__ import annotations

import re
from pathlib import Path

from localrun.errors import UsageError
from localrun.store.atomic import AtomicFile


def file_name(title: str, kind: str) -> str:
    """A name for the file: the title's letters and digits."""
    slug = re.sub(r"[^a-z0-9]+", "-", title.casefold())[:50].strip("-")
    return f"{slug or 'chat'}.{kind}"


def write(path: Path, content: str) -> None:
    """Write a new file whole or not at all.

    Raises:
        UsageError: there is such a file already, or no such directory.
        LocalrunError: the disk refused.
    """
    if path.exists() or path.is_symlink():
        raise UsageError(f"{path} exists already", hint="choose another name")
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent} is not a directory", hint="choose another place")
    data = content.encode()
    with AtomicFile(path, expected_bytes=len(data)) as file:
        file.write(data)
        file.commit()
