"""A small DeepSeek-V4.1 whose experts stream from disk, and a disk that does as a test says."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from localrun.cli.loading import prepare
from localrun.disk import threads
from localrun.disk.opening import open_reader
from localrun.disk.threads import ThreadCalls
from localrun.engine.runner import BatchItem, ModelRunner
from localrun.plan.plan import Plan, PlanRequest
from tests import deepseek

SLOTS = 6
STAGING = 4 << 20
STALL_S = 0.5
Rows = NDArray[np.float32]
Fate = Callable[[int, int], str]
"""Of a read by its offset and length: ``read``, ``error``, ``short`` or ``stall``."""


def config() -> dict[str, Any]:
    """Twenty-four experts a layer, of which a token picks four."""
    made = deepseek.base("deepseek_v41")
    made["text_config"]["n_routed_experts"] = 24
    return made


def streaming(model: Path, slots: int = SLOTS, **changes: Any) -> Plan:
    """A plan that keeps ``slots`` experts of each layer."""
    request = PlanRequest(n_ctx=512, ubatch=64, backend="torch", threads=1, kv_type=None)
    plan = prepare(str(model), request).plan
    told: dict[str, Any] = {
        "engram": "disk",
        "slots_per_layer": slots,
        "streams": True,
        "staging_bytes": STAGING,
    }
    return replace(plan, execution=replace(plan.execution, **(told | changes)))


def rows(runner: ModelRunner, tokens: Sequence[int], *chunks: int) -> Rows:
    """The logits behind every token of a new sequence, computed in ``chunks`` and the rest."""
    sequence, made, at = runner.new_sequence(), [], 0
    try:
        for count in (*chunks, len(tokens)):
            part = tokens[at : at + count]
            if part:
                made.append(runner.forward([BatchItem(sequence, part, "all")]).numpy().copy())
            at += len(part)
    finally:
        runner.free(sequence)
    return np.concatenate(made)


@dataclass
class Disk:
    """Reads of ``files`` have the fate that ``fate`` tells; those of others are read."""

    files: Sequence[Path] = ()
    fate: Fate = lambda offset, length: "read"
    offsets: list[int] = field(default_factory=list)
    stalled: threading.Event = field(default_factory=threading.Event)
    """Somebody waits for a read that does not end."""
    freed: threading.Event = field(default_factory=threading.Event)

    def read(self, descriptor: int, address: int, length: int, offset: int) -> int:
        there = os.fstat(descriptor)
        mine = any(os.path.samestat(there, file.stat()) for file in self.files)
        fate = self.fate(offset, length) if mine else "read"
        if fate == "error":
            self.offsets.append(offset)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if fate == "stall":
            self.offsets.append(offset)
            self.stalled.set()
            self.freed.wait()
        found = self._real(descriptor, address, length, offset)
        if fate == "short":
            self.offsets.append(offset)
            return found // 2
        return found

    def free(self) -> None:
        """All reads end, from now on as they should."""
        self.fate = lambda offset, length: "read"
        self.freed.set()

    _real: Callable[[int, int, int, int], int] = threads._read


def shards(model: Path, part: str) -> list[Path]:
    """Files with tensors that have ``part`` in their names."""
    index = json.loads((model / "model.safetensors.index.json").read_text())["weight_map"]
    return [model / name for name in sorted({index[key] for key in index if part in key})]


@contextmanager
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    """Every reader that is opened inside reads it."""
    from localrun.backends.torch import loading

    made = Disk()
    monkeypatch.setattr(threads, "_read", made.read)
    monkeypatch.setattr(
        loading,
        "open_reader",
        partial(open_reader, calls=lambda depth, direct: ThreadCalls(depth), stall_s=STALL_S),
    )
    try:
        yield made
    finally:
        made.free()
