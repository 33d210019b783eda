"""Knows no job: an output that is not finished, beside its place until all of it is there.

One file becomes OUT.part, a directory OUT.part/; OUT.part.journal tells what of it is done.
Files have their whole size from the beginning, so every byte can be written where it belongs.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from localrun.errors import LocalrunError, UsageError
from localrun.quantize.work import Output, PlannedFile
from localrun.store import disk
from localrun.store.atomic import AtomicFile
from localrun.store.disk import disk_errors, make_private, require_space
from localrun.store.layout import child


class Part:
    """The files of ``outputs`` on their way to ``out``. ``folders`` are the directories below
    ``out`` that each output lies in, empty for ``out`` itself; ``single`` says that ``out`` is to
    be a file.

    Raises:
        DiskFullError: with the bytes that are missing. LocalrunError: the disk.
    """

    def __init__(
        self, out: Path, outputs: Sequence[Output], folders: Sequence[str], *, single: bool
    ) -> None:
        self.out = out
        self.root = part_of(out)
        self._single = single
        self._outputs = tuple(zip(outputs, folders, strict=True))
        self._descriptors: dict[tuple[int, int], int] = {}
        self.paths: tuple[tuple[Path, ...], ...] = tuple(
            tuple(self._path(folder, file.name) for file in output.files)
            for output, folder in self._outputs
        )

    def _path(self, folder: str, name: str) -> Path:
        if self._single:
            return self.root
        place = child(self.root, folder) if folder else self.root
        return child(place, name)

    def open(self) -> None:
        """Make what is missing, each file with its head and its size."""
        missing = sum(output.bytes for output, _ in self._outputs) - self._there()
        require_space(self.out, max(missing, 0))
        for at, (output, folder) in enumerate(self._outputs):
            if not self._single:
                with disk_errors(self.root):
                    make_private(child(self.root, folder) if folder else self.root)
            for number, (file, path) in enumerate(zip(output.files, self.paths[at], strict=True)):
                self._descriptors[at, number] = self._opened(file, path)

    def _there(self) -> int:
        found = 0
        for path in (path for paths in self.paths for path in paths):
            with suppress(OSError):
                found += path.stat().st_blocks * 512
        return found

    def _opened(self, file: PlannedFile, path: Path) -> int:
        with disk_errors(path, file.bytes):
            there = path.is_file() and not path.is_symlink()
            descriptor = disk.DISK.open(path) if there else disk.DISK.create(path)
        try:
            with disk_errors(path, file.bytes):
                disk.DISK.truncate(descriptor, file.bytes)
                self._put(descriptor, memoryview(file.head), 0)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def write(self, output: int, file: int, data: memoryview, offset: int) -> None:
        """All of ``data`` at ``offset``. Any thread.

        Raises:
            DiskFullError, LocalrunError: the disk failed; what is there stays.
        """
        with disk_errors(self.paths[output][file], len(data)):
            self._put(self._descriptors[output, file], data, offset)

    @staticmethod
    def _put(descriptor: int, data: memoryview, offset: int) -> None:
        while data:
            count = disk.DISK.write_at(descriptor, data, offset)
            if count == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            data, offset = data[count:], offset + count

    def read(self, output: int, file: int, offset: int, length: int) -> bytes:
        """What lies there; shorter at the end of a file that was cut. Any thread."""
        with disk_errors(self.paths[output][file]):
            return os.pread(self._descriptors[output, file], length, offset)

    def sync(self) -> None:
        """What was written is on the disk, whatever happens to the machine."""
        for (output, file), descriptor in self._descriptors.items():
            with disk_errors(self.paths[output][file]):
                disk.DISK.sync(descriptor)

    def publish(self, *, replace: bool) -> None:
        """Write the small files, and give all of it its name.

        Raises:
            UsageError: something came to lie at ``out`` meanwhile.
        """
        for output, folder in self._outputs:
            for name, data in output.beside.items():
                with AtomicFile(self._path(folder, name), expected_bytes=len(data)) as file:
                    file.write(data)
                    file.commit()
        self.close()
        require_free(self.out, single=self._single, replace=replace)
        with disk_errors(self.out):
            disk.DISK.rename(self.root, self.out)
            disk.DISK.sync_directory(self.out.parent)

    def close(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def remove(self) -> None:
        """Leave nothing behind. Never fails."""
        self.close()
        remove_part(self.out)


def require_free(out: Path, *, single: bool, replace: bool) -> None:
    """Nothing lies at ``out`` but an empty directory, or a file that a ``single`` one is to
    replace.

    Raises:
        UsageError: something does. A directory that holds anything is never replaced, nor is a
            file by a directory.
    """
    if out.is_dir() and not out.is_symlink():
        with disk_errors(out):
            empty = not any(out.iterdir())
        if single or not empty:
            problem = "is a directory" if empty else "the directory is not empty"
            raise UsageError(f"{out}: {problem}", hint="name another OUT")
    elif os.path.lexists(out):
        if not single:
            problem = "is there already, and no directory that could be filled"
            raise UsageError(f"{out} {problem}", hint="remove it, or name another OUT")
        if not replace:
            raise UsageError(f"{out} is there already", hint="--force replaces it")


def require_kinds(out: Path, *, single: bool) -> bool:
    """Whether an unfinished run left something at ``out``. It is of the kinds that a run makes.

    Raises:
        UsageError: something else has its name.
    """
    part, journal = part_of(out), journal_of(out)
    for path, right in ((part, Path.is_file if single else Path.is_dir), (journal, Path.is_file)):
        if os.path.lexists(path) and (path.is_symlink() or not right(path)):
            raise UsageError(
                f"{path}: needed for what is unfinished, and no run of this kind left it there",
                hint="move it away, or name another OUT",
            )
    return part.exists() or journal.exists()


def part_of(out: Path) -> Path:
    return out.with_name(out.name + ".part")


def journal_of(out: Path) -> Path:
    return out.with_name(out.name + ".part.journal")


def remove_part(out: Path) -> None:
    """What an unfinished run left at ``out``."""
    root = part_of(out)
    if root.is_dir() and not root.is_symlink():
        shutil.rmtree(root, ignore_errors=True)
    with suppress(OSError):
        disk.DISK.unlink(root)
    with suppress(OSError):
        disk.DISK.unlink(journal_of(out))


def require_whole(path: Path, size: int) -> None:
    """
    Raises:
        LocalrunError: a file that was written is not as long as it was.
    """
    with disk_errors(path):
        found = path.stat().st_size
    if found != size:
        raise LocalrunError(
            f"{path}: {found} bytes, {size} were written",
            hint="check the disk, then run the same command with --resume",
        )
