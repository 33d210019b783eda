"""Knows no download: a progress bar with rate and ETA on a terminal."""

from __future__ import annotations

from typing import TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


class Bar:
    """Implements ``store.progress.Progress``. One bar at a time; safe from several threads."""

    def __init__(self, stream: TextIO) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(file=stream, markup=False, highlight=False),
        )
        self._task: TaskID | None = None

    def start(self, label: str, total_bytes: int, done_bytes: int = 0) -> None:
        from localrun.cli.output import clean_line

        self._progress.start()
        self._task = self._progress.add_task(clean_line(label), total=total_bytes)
        self._progress.update(self._task, completed=done_bytes)

    def advance(self, bytes: int) -> None:
        if self._task is not None:
            self._progress.advance(self._task, bytes)

    def finish(self) -> None:
        self._progress.stop()
        self._task = None
