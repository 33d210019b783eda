"""Knows no arithmetic: what a plan leaves on disk, and the files that it is read from meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import mlx.core as mx

from localrun.backends.files import files_of
from localrun.backends.mlx.experts import Bank, Cache, Streamed, Use
from localrun.backends.mlx.stored_experts import Matrix, layer_of, matrices_of, names_of
from localrun.backends.mlx.tables import DiskTable, MemoryTable
from localrun.backends.tiers.loads import Loads
from localrun.backends.tiers.row_reads import RowReads
from localrun.backends.tiers.staging import room_for
from localrun.disk.opening import open_reader
from localrun.disk.reader import Reader
from localrun.disk.staged import Stage
from localrun.engine.runner import ExpertUse, RunnerStats
from localrun.errors import EngineError, HeaderError
from localrun.formats.reader import Lookable
from localrun.formats.text import shown
from localrun.plan.plan import Execution
from localrun.plan.terms import DISK, ENGRAM
from localrun.releases.checkpoint import Checkpoint
from localrun.releases.engram import Engram
from localrun.releases.read import release_of_checkpoint
from localrun.releases.release import Release
from localrun.releases.stored.release import weights_of

_DISK: Final = "disk"
# Where a plan says nothing: one is read while the one before it is put into its place.
_BUFFERS: Final = 4


class OnDisk:
    """``check`` is called while somebody waits for a disk, and may raise.

    Raises:
        HeaderError, ModelNotFoundError, SourceError: a file is gone, malformed or torn.
        DiskReadError: one cannot be opened for direct reads.
    """

    def __init__(
        self, files: Sequence[str], execution: Execution, check: Callable[[], None]
    ) -> None:
        self._execution, self._check = execution, check
        self._stack = ExitStack()
        self._stage = Stage()
        self.reader: Reader | None = None
        self.cache: Cache | None = None
        self._loads: Loads | None = None
        self._before = 0
        self.tables: dict[int, MemoryTable | DiskTable] = {}
        self._banks: list[Bank] = []
        self._by_file: dict[int, Lookable] = {}
        self._streams: dict[str, list[Matrix]] = {}
        try:
            self._source = self._stack.enter_context(Checkpoint(files_of(files), self._stage))
            if execution.streams or execution.engram == _DISK:
                mirrors = [Path(each) for each in execution.mirrors]
                self.reader = open_reader(self._source.paths, mirrors=mirrors)
                self._stack.callback(self.reader.close)
        except BaseException:
            self._stack.close()
            raise

    def engram(self) -> Engram:
        """Opens the tables where the plan has them, and gives what they are looked up by.

        Raises:
            HeaderError, UsageError, SourceError: the tables, the tokenizer and the configuration
                are not those of one release.
        """
        release = release_of_checkpoint(self._source, weights_of(self._source))
        engram = release.engram
        assert engram is not None  # Of a configuration that names layers.
        reads = None
        if self.reader is not None and self._execution.engram == _DISK:
            reads = RowReads(self.reader, self._check)
        for at, layer in enumerate(engram.layers):
            weight = _table(release, layer, (engram.rows[at], engram.width))
            self.tables[layer] = (
                MemoryTable.read(weight) if reads is None else DiskTable.over(weight, reads)
            )
        return engram

    def stacks(self, model: Any, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """Makes a model with no weights yet one whose experts have as few places as the plan says.
        Gives the arrays of these; the experts themselves leave ``weights``, unread.

        Raises:
            EngineError: the model has no experts that can be kept singly, or in no form that is
                read.
        """
        slots = self._execution.slots_per_layer
        modules = dict(_switches(model))
        found = matrices_of(modules, self._source.header.tensors)
        if not found or slots < 1:
            raise EngineError(
                "this plan streams experts, and mlx-lm's model has none that are kept singly",
                hint="plan again, or choose another backend",
            )
        made: dict[str, mx.array] = {}
        for path, matrices in found.items():
            places = min(slots, matrices[0].count)
            for matrix in matrices:
                linear = modules[path][matrix.projection]
                _, *shape = linear.weight.shape
                linear.weight = mx.zeros((places, *shape), linear.weight.dtype)
                own = f"{path}.{matrix.projection}"
                made |= {f"{own}.{part}": each for part, each in matrix.stacks(places).items()}
            for name in names_of(matrices):
                weights.pop(name, None)
        self._streams = found
        return made

    def stream(self, model: Any) -> None:
        """From here on chosen experts are read into their places. All weights are there."""
        assert self.reader is not None
        modules = dict(_switches(model))
        self._banks = [
            Bank(layer_of(path), matrices, modules[path], self._sources)
            for path, matrices in self._streams.items()
        ]
        room = max(room_for(bank.extents(e)) for bank in self._banks for e in range(bank.count))
        staging = max(self._execution.staging_bytes, _BUFFERS * room)
        self._loads = Loads(self.reader, self._stage, staging_bytes=staging, room=room)
        self.cache = Cache(self._loads, self._check)
        self._stack.callback(self.cache.close)
        for path, bank in zip(self._streams, self._banks, strict=True):
            _replace(model, path, Streamed(modules[path], bank, self.cache))

    def _sources(self, file: int) -> Lookable:
        # A release has tens of thousands of tensors, and this is asked for each part of an expert.
        if file not in self._by_file:
            info = next(each for each in self._source.header.tensors if each.file == file)
            self._by_file[file] = self._source.source(info)
        return self._by_file[file]

    @property
    def table_bytes(self) -> int:
        """In memory, beside mlx's own."""
        return sum(table.nbytes for table in self.tables.values())

    @property
    def staging_bytes(self) -> int:
        return self._loads.staging_bytes if self._loads else 0

    def forget(self) -> None:
        """What was counted until now was nobody's request."""
        for bank in self._banks:
            bank.picks[:] = 0
        for table in self.tables.values():
            table.use.nbytes, table.use.seconds = 0, 0.0
        if self.cache is not None:
            self.cache.use = Use()
        if self.reader is not None:
            self._before = self.reader.bytes_read

    def measured(self, told: RunnerStats, tier: str, steps: int) -> RunnerStats:
        """With what was read from disk, by the terms that it is known of. How long experts in
        memory are computed nobody can say: mlx computes whole graphs."""
        uses = [table.use for table in self.tables.values()]
        seconds = {ENGRAM: sum(use.seconds for use in uses)} if uses else {}
        nbytes = {ENGRAM: sum(use.nbytes for use in uses)} if uses else {}
        read = dict(told.bytes_read)
        read[tier] -= self.table_bytes * steps
        experts: dict[str, ExpertUse] = {}
        picks: dict[int, tuple[int, ...]] = {}
        if self.cache is not None:
            use = self.cache.use
            read[tier] += use.hit_bytes - self._slot_bytes * steps
            seconds[DISK], nbytes[DISK] = use.seconds, use.read_bytes
            experts = {
                tier: ExpertUse(use.hits, use.hit_bytes),
                _DISK: ExpertUse(use.misses, use.read_bytes, use.seconds),
            }
            picks = {bank.layer: tuple(bank.picks.tolist()) for bank in self._banks}
        if self.reader is not None:
            read[_DISK] = self.reader.bytes_read - self._before
        return replace(
            told,
            bytes_read=read,
            terms_s=seconds,
            terms_bytes=nbytes,
            experts=experts,
            picks=picks,
        )

    @property
    def _slot_bytes(self) -> int:
        return sum(bank.slots * bank.slot_bytes for bank in self._banks)

    def close(self) -> None:
        """Again does nothing."""
        self._stack.close()
        # They hold memory of mlx's arrays.
        self._banks, self.tables = [], {}


def _table(release: Release, layer: int, shape: tuple[int, int]) -> Any:
    name = f"layers.{layer}.engram.embed.weight"
    weight = release.weights.get(name)
    if weight is None:
        raise HeaderError(shown(name), 0, "is not in the checkpoint")
    if weight.shape != shape:
        problem = f"has the shape {weight.shape}, the configuration says {shape}"
        raise HeaderError(shown(name), weight.place[1], problem)
    return weight


def _switches(model: Any) -> Iterable[tuple[str, Any]]:
    """Experts of a model as mlx-lm has them in most of its classes, by their paths."""
    for path, module in model.named_modules():
        if type(module).__name__ == "SwitchGLU":
            yield path, module


def _replace(model: Any, path: str, module: Any) -> None:
    *above, name = path.split(".")
    for each in above:
        model = model[int(each)] if each.isdigit() else model[each]
    model[name] = module
