"""Run as a process of its own: decodes given tokens by a plan and says what that took, as JSON.

    python bench/decode_child.py PLAN.json TOKENS.json PROMPT [--logits OUT.npy]

PLAN is a plan's JSON. TOKENS holds a list of ids: the first PROMPT are computed as a prompt is, the
others one at a time, whatever the model would have chosen. Before the first of these the files'
pages are dropped from the page cache, so that what is found there afterwards was put there by
decoding. The runner is called as the engine calls it, by its seam; llama.cpp computes from its
memory map.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import page_cache
from numpy.typing import NDArray

from localrun.disk import opening
from localrun.disk.reader import Pending, Reader, Requests
from localrun.engine.runner import BatchItem, ExpertUse, ModelRunner, RunnerStats
from localrun.plan.plan import Plan


@dataclass
class Reads:
    """What was asked of a reader, and from when to when each was under way."""

    begun: list[tuple[float, Pending, NDArray[np.int64]]] = field(default_factory=list)

    def forget(self) -> None:
        self.begun.clear()

    def document(self) -> dict[str, object]:
        """``busy_s`` is time in which anything was under way; reads whose times touch are one
        burst, and ``depth`` is how many a burst has, in the mean over bytes."""
        bursts = list(self._bursts())
        lengths = [length for _, _, each in self.begun for length in each.tolist()]
        total = sum(lengths)
        return {
            "count": len(lengths),
            "bytes": total,
            "busy_s": sum(stop - start for start, stop, _, _ in bursts),
            "bursts": len(bursts),
            "block": int(np.median(lengths)) if lengths else 0,
            "depth": sum(n * size for _, _, n, size in bursts) / total if total else 0.0,
        }

    def _bursts(self) -> Iterator[tuple[float, float, int, int]]:
        """(start, stop, reads, bytes)."""
        timed = sorted(
            (start, start + pending.seconds, len(each), int(each.sum()))
            for start, pending, each in self.begun
        )
        now: tuple[float, float, int, int] | None = None
        for start, stop, count, size in timed:
            if now is not None and start <= now[1]:
                now = (now[0], max(now[1], stop), now[2] + count, now[3] + size)
                continue
            if now is not None:
                yield now
            now = (start, stop, count, size)
        if now is not None:
            yield now


class Watched:
    """A reader whose reads are noted."""

    def __init__(self, reader: Reader, reads: Reads) -> None:
        self._reader, self._reads = reader, reads

    def begin(self, requests: Requests, into: NDArray[np.uint8], *, ahead: bool = False) -> Pending:
        start = time.perf_counter()
        pending = self._reader.begin(requests, into, ahead=ahead)
        self._reads.begun.append((start, pending, requests.lengths))
        return pending

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)


def watch(reads: Reads) -> None:
    """Readers that are opened from now on are noted."""
    real = opening.open_reader

    def open_reader(*given: Any, **how: Any) -> Watched:
        return Watched(real(*given, **how), reads)

    opening.open_reader = open_reader


def from_the_map() -> None:
    """Have llama.cpp compute from the pages that the file is mapped to: what it repacks for other
    kernels is a copy in memory of its own."""
    from llama_cpp import llama_cpp as llama

    real = llama.llama_model_default_params

    def defaults() -> Any:
        made = real()
        made.use_extra_bufts = False
        return made

    llama.llama_model_default_params = defaults


def difference(after: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    return {name: value - before.get(name, 0) for name, value in after.items()}


def between(after: RunnerStats, before: RunnerStats) -> dict[str, object]:
    """What counters went up by."""
    experts = {
        tier: difference(asdict(use), asdict(before.experts.get(tier, ExpertUse())))
        for tier, use in after.experts.items()
    }
    return {
        "tokens": after.tokens - before.tokens,
        "forward_s": after.forward_s - before.forward_s,
        "bytes_read": difference(after.bytes_read, before.bytes_read),
        "terms_s": difference(after.terms_s, before.terms_s),
        "terms_bytes": difference(after.terms_bytes, before.terms_bytes),
        "experts": experts,
        "memory_bytes": dict(after.memory_bytes),
        "memory_parts": dict(after.memory_parts),
        "notes": list(after.notes),
    }


def measured(
    runner: ModelRunner,
    tokens: Sequence[int],
    prompt: int,
    files: Sequence[Path],
    reads: Reads,
) -> tuple[dict[str, object], NDArray[np.float32]]:
    sequence = runner.new_sequence()
    start = time.perf_counter()
    most = runner.capabilities.max_tokens
    for at in range(0, prompt, most):
        part = tokens[at : min(prompt, at + most)]
        runner.forward([BatchItem(sequence, part, "last")]).numpy()
    prefilled = time.perf_counter() - start
    page_cache.drop(files)
    reads.forget()
    before, cached, disk = runner.stats(), page_cache.cached(files), page_cache.read_bytes()
    steps, rows = [], []
    for token in tokens[prompt:]:
        start = time.perf_counter()
        rows.append(runner.forward([BatchItem(sequence, [token], "last")]).numpy()[0].copy())
        steps.append(time.perf_counter() - start)
    disk = page_cache.read_bytes() - disk
    return {
        "prefill_s": prefilled,
        "decode_s": sum(steps),
        "steps_s": steps,
        "cached_before": cached,
        "cached_after": page_cache.cached(files),
        "kernel_read_bytes": disk,
        "reads": reads.document(),
        "stats": between(runner.stats(), before),
    }, np.stack(rows)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("plan", type=Path)
    parser.add_argument("tokens", type=Path)
    parser.add_argument("prompt", type=int)
    parser.add_argument("--logits", type=Path)
    chosen = parser.parse_args()
    plan = Plan.from_json(chosen.plan.read_text(encoding="utf-8"))
    tokens = json.loads(chosen.tokens.read_text(encoding="utf-8"))
    reads = Reads()
    watch(reads)
    if plan.backend == "llama.cpp":
        from_the_map()
    start = time.perf_counter()
    room = plan.backend.replace(".", "")
    runner: ModelRunner = import_module(f"localrun.backends.{room}.backend").load(plan)
    loaded = time.perf_counter() - start
    try:
        files = [Path(file) for file in plan.files]
        document, rows = measured(runner, tokens, chosen.prompt, files, reads)
    finally:
        runner.close()
    if chosen.logits is not None:
        np.save(chosen.logits, rows)
    digest = hashlib.sha256(rows.tobytes()).hexdigest()
    print(json.dumps({"load_s": loaded, "logits": digest, **document}))


if __name__ == "__main__":
    main()
