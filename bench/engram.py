"""Decoding with n-gram tables on disk beside the same tables in memory, and how fast a prompt's
rows come.

    python bench/engram.py --folder DIR [--table-bytes 4GB] [--keep] [--threads N] [--rounds N]
        [--decode N] [--json]

Two tables of --table-bytes each are written to DIR, on the disk that is measured, and removed at
the end (--keep leaves them for the next run). The model's matrices lie in memory, wide enough that
a token takes at least 50 ms. How the figures are taken is in METHODOLOGY.md. Exit code 1 when a
bound is missed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import engram_model
import numpy as np
import torch
from ending import ended

from localrun.backends.tiers.row_reads import RowReads
from localrun.backends.torch.architectures.deepseek_v41 import DeepseekV41
from localrun.backends.torch.layers.engram import Hashes
from localrun.backends.torch.matrices.disk_table import DiskTable, PrefetchedTable, prefetched
from localrun.backends.torch.matrices.table import Table, table_in_memory
from localrun.backends.torch.model import Span, Step, uninterrupted
from localrun.backends.torch.numerics import FAST
from localrun.backends.torch.threads import share_threads
from localrun.cli.options import parse_size
from localrun.disk.opening import open_reader
from localrun.disk.reader import Reader
from localrun.errors import LocalrunError, UsageError
from localrun.hardware.direct_reads import Reads, direct_reads
from localrun.hardware.disk_classes import DEPTHS
from localrun.hardware.disks import disk
from localrun.releases.engram_rows import NativeRows

SLOWER, IOPS_SHARE = 1.03, 0.60
TOKEN_S = 0.050
CHUNK, PROMPT = 2048, 8
BLOCK = 4096
HOT_BYTES = 64_000_000
# Tokens of text: the i-th most frequent of them is met about as often as i^-1.
ZIPF = 1.0
_POINT_S = 1.0
_SPARE = 1 << 30
_WIDEST = 1 << 15


@contextmanager
def tables(folder: Path, rows: Sequence[int], keep: bool) -> Iterator[list[Path]]:
    """The files, written where they are not there yet.

    Raises:
        UsageError: no such directory, or too little room: with the bytes needed.
    """
    if not folder.is_dir():
        raise UsageError(f"--folder {folder}: no such directory")
    paths = [folder / f"localrun-engram-{n}-{count}.rows" for n, count in enumerate(rows)]
    sizes = [count * engram_model.ROW for count in rows]
    absent = [
        (path, size)
        for path, size in zip(paths, sizes, strict=True)
        if not path.is_file() or path.stat().st_size != size
    ]
    needed, free = sum(size for _, size in absent) + _SPARE, shutil.disk_usage(folder).free
    if absent and free < needed:
        raise UsageError(
            f"--folder {folder}: {needed} bytes are needed, {free} are free",
            hint="name a directory on another disk, or a smaller --table-bytes",
        )
    try:
        for path, _ in absent:
            engram_model.write_table(path, rows[paths.index(path)], paths.index(path))
        yield paths
    finally:
        if not keep:
            for path in paths:
                path.unlink(missing_ok=True)


def forget(paths: Sequence[Path]) -> None:
    """Nothing of the files is in the page cache behind this."""
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def ids(count: int, seed: int, skew: float = 0.0) -> list[int]:
    source = np.random.default_rng(seed)
    shares = np.arange(1, engram_model.VOCABULARY + 1) ** -skew
    return [int(at) for at in source.choice(shares.size, count, p=shares / shares.sum())]


def decode(model: DeepseekV41, tokens: Sequence[int], threads: int) -> tuple[float, list[int]]:
    """Seconds a token behind a short prompt, and what was the likeliest each time."""
    cache, picked = model.new_cache(), []

    def step(own: Sequence[int]) -> None:
        cache.begin()
        share_threads(len(own), FAST, threads)
        first = cache.tokens
        asked = Step(
            torch.tensor(own),
            torch.arange(first, first + len(own)),
            (Span(cache, 0, len(own), first),),
            torch.tensor([len(own) - 1]),
        )
        picked.append(int(model.forward(asked)[0].argmax()))
        cache.tokens += len(own)

    with torch.inference_mode():
        step(tokens[:PROMPT])
        began = time.perf_counter()
        for token in tokens[PROMPT:]:
            step([token])
        seconds = time.perf_counter() - began
    return seconds / (len(tokens) - PROMPT), picked


def wide_enough(held: Any, memory: Sequence[Table], chosen: argparse.Namespace) -> DeepseekV41:
    """The narrowest model, by doublings, whose token takes long enough with tables in memory.

    Raises:
        LocalrunError: none does.
    """
    wide = 1024
    while wide <= _WIDEST:
        bare = engram_model.dense_model(held, wide, chosen.threads, PROMPT + chosen.decode + 64)
        model = engram_model.with_tables(bare, memory)
        decode(model, ids(PROMPT + 4, 0), chosen.threads)
        seconds = min(decode(model, ids(PROMPT + 8, n), chosen.threads)[0] for n in range(2))
        if seconds >= TOKEN_S:
            return model
        bare.close()
        # A little more than it takes: the least of many runs is what counts.
        wide = 64 * round(wide * max(1.2, 1.3 * TOKEN_S / seconds) / 64)
    raise LocalrunError(f"no model here takes {TOKEN_S} s a token")


def decoding(
    models: Mapping[str, DeepseekV41], paths: Sequence[Path], chosen: argparse.Namespace
) -> dict[str, Any]:
    """Seconds a token of each in rounds whose order turns round, all given the same tokens."""
    samples: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(chosen.rounds + 1):
        said = []
        tokens = ids(PROMPT + chosen.decode, 100 + turn)
        for name in sorted(models, reverse=turn % 2 == 0):
            forget(paths)
            seconds, picked = decode(models[name], tokens, chosen.threads)
            said.append(picked)
            if turn:  # the first warms
                samples[name].append(seconds)
        if any(each != said[0] for each in said):
            raise LocalrunError("tables in different places do not say the same")
    ratios = {
        name: [a / b for a, b in zip(samples[name], samples["ram"], strict=True)]
        for name in samples
        if name != "ram"
    }
    use = models["prefetched"].table_use
    return {
        "ms": {name: 1e3 * statistics.median(values) for name, values in samples.items()},
        "least_ms": 1e3 * min(samples["ram"]),
        "samples_ms": {name: [1e3 * each for each in own] for name, own in samples.items()},
        "ratios": {name: statistics.median(values) for name, values in ratios.items()},
        "waited_share": use.seconds / max(1e-9, sum(samples["prefetched"]) * chosen.decode),
        "rows_per_read": use.distinct / max(1, use.reads),
    }


def prompt_rows(found: Sequence[Table], hashes: Hashes, tokens: Sequence[int]) -> tuple[float, int]:
    """Seconds until all rows of a chunk are there, and how many distinct ones they are."""
    near = hashes.lookback(torch.tensor([0, 0, 0, *tokens]))
    wanted = [hashes.rows(layer, near) for layer in engram_model.LAYERS]
    before = sum(table.use.distinct for table in found)
    began = time.perf_counter()
    lookups = [table.begin(own) for table, own in zip(found, wanted, strict=True)]
    for lookup in lookups:
        lookup.rows()
    seconds = time.perf_counter() - began
    return seconds, sum(table.use.distinct for table in found) - before


def prefill(found: Sequence[Table], hashes: Hashes, reads: Reads, rounds: int) -> dict[str, Any]:
    """Distinct rows a second of whole chunks, each between two measurements of the disk."""
    at = {depth: reads(BLOCK, depth, _POINT_S).rate for depth in DEPTHS}
    best = max(at, key=lambda depth: at[depth])
    iops = [reads(BLOCK, best, _POINT_S).rate]
    rates, shares = [], []
    for turn in range(rounds + 1):
        seconds, distinct = prompt_rows(found, hashes, ids(CHUNK, 1000 + turn))
        iops.append(reads(BLOCK, best, _POINT_S).rate)
        if turn:
            rates.append(distinct / seconds)
            shares.append(rates[-1] / statistics.mean(iops[-2:]))
    return {
        "distinct_rows": distinct,
        "iops_by_depth": at,
        "iops": statistics.median(iops),
        "rows_per_s": statistics.median(rates),
        "share": statistics.median(shares),
        "shares": shares,
    }


def hot_rows(
    weights: Sequence[NativeRows], reader: Reader, hashes: Hashes, rounds: int
) -> dict[str, Any]:
    """What keeping rows changes: chunks of one text after the other, with and without."""
    made: dict[str, Any] = {}
    for name, skew in (("uniform", 0.0), ("zipf", ZIPF)):
        spent: dict[int, list[float]] = {0: [], HOT_BYTES: []}
        held = {size: disk_tables(weights, reader, size) for size in spent}
        for turn in range(rounds + 1):
            tokens = ids(CHUNK, 2000 + turn, skew)
            for size in spent:
                spent[size].append(prompt_rows(held[size], hashes, tokens)[0])
        use = held[HOT_BYTES][0].use
        made[name] = {
            "hit_rate": use.hits / use.distinct,
            "time": statistics.median(
                b / a for a, b in zip(spent[0][1:], spent[HOT_BYTES][1:], strict=True)
            ),
        }
    return made


def disk_tables(weights: Sequence[NativeRows], reader: Reader, hot: int) -> list[PrefetchedTable]:
    """The first one keeps rows."""
    shared, found = RowReads(reader, uninterrupted), []
    for number, weight in enumerate(weights):
        size = 0 if number else hot
        table = prefetched(weight, shared, engram_model.CPU, torch.bfloat16, size)
        assert table is not None
        found.append(table)
    return found


def report(chosen: argparse.Namespace) -> dict[str, Any]:
    held = engram_model.constants(parse_size(chosen.table_bytes))
    with ExitStack() as stack:
        paths = stack.enter_context(tables(chosen.folder, held.rows, chosen.keep))
        weights = [
            engram_model.table_weight(path, number, rows)
            for number, (path, rows) in enumerate(zip(paths, held.rows, strict=True))
        ]
        reader = open_reader(paths)
        stack.callback(reader.close)
        filesystem = disk(chosen.folder).filesystem
        reads = stack.enter_context(direct_reads(paths[0], filesystem))
        forget(paths)
        hashes = Hashes(held, engram_model.CPU)
        on_disk = disk_tables(weights, reader, 0)
        rows = prefill(on_disk, hashes, reads, chosen.rounds)
        hot = hot_rows(weights, reader, hashes, chosen.rounds)
        where = (engram_model.CPU, torch.bfloat16)
        memory = [table_in_memory(weight, *where) for weight in weights]
        model = wide_enough(held, memory, chosen)
        stack.callback(model.close)
        models = {
            "ram": model,
            "prefetched": engram_model.with_tables(model, disk_tables(weights, reader, 0)),
            "synchronous": engram_model.with_tables(
                model, [DiskTable(weight, *where) for weight in weights]
            ),
        }
        decoded = decoding(models, paths, chosen)
    return {
        "table_bytes": [count * engram_model.ROW for count in held.rows],
        "threads": chosen.threads,
        "load": os.getloadavg()[0],
        "model_bytes": model.nbytes - sum(table.nbytes for table in memory),
        "decode": decoded,
        "prefill": rows,
        "hot_rows": hot,
    }


def missed(found: Mapping[str, Any]) -> list[str]:
    """The bounds this run does not hold."""
    lines = []
    decoded, rows = found["decode"], found["prefill"]
    if decoded["least_ms"] < 1e3 * TOKEN_S:
        lines.append(f"a resident token took {decoded['least_ms']:.1f} ms, not {1e3 * TOKEN_S:g}")
    if decoded["ratios"]["prefetched"] > SLOWER:
        lines.append(f"prefetched: {decoded['ratios']['prefetched']:.3f} of memory, not {SLOWER}")
    if rows["share"] < IOPS_SHARE:
        lines.append(f"rows of a prompt: {rows['share']:.2f} of the disk's reads, not {IOPS_SHARE}")
    return lines


def show(found: Mapping[str, Any]) -> None:
    sizes = " and ".join(f"{size / 1e9:.2f} GB" for size in found["table_bytes"])
    decoded, rows = found["decode"], found["prefill"]
    print(f"tables of {sizes}, {found['model_bytes'] / 1e9:.2f} GB of matrices, ", end="")
    print(f"{found['threads']} threads, load {found['load']:.1f}")
    for name, own in decoded["samples_ms"].items():
        ratio = decoded["ratios"].get(name)
        beside = f"  {ratio:.3f} of the time in memory" if ratio is not None else ""
        spread = f"({min(own):.1f} to {max(own):.1f})"
        print(f"{name:>12} {decoded['ms'][name]:8.1f} ms a token {spread}{beside}")
    print(f"{'':>12} waiting for rows was {decoded['waited_share']:.2%} of decoding")
    print(
        f"rows of {CHUNK} tokens: {rows['distinct_rows']} distinct, {rows['rows_per_s']:.0f} a "
        f"second, {rows['share']:.2f} of {rows['iops']:.0f} random reads of 4 KiB a second"
    )
    for name, own in found["hot_rows"].items():
        print(
            f"hot rows of {HOT_BYTES / 1e6:.0f} MB, {name} tokens: {own['hit_rate']:.1%} hits "
            f"in the first table, {own['time']:.2f} of the time without"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, metavar="DIR")
    parser.add_argument("--table-bytes", default="4GB", metavar="BYTES")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--decode", type=int, default=32)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    try:
        found = report(chosen)
    except LocalrunError as error:
        print(f"{error.message}; {error.hint}", file=sys.stderr)
        return error.exit_code
    return ended(found, missed(found), show, as_json=chosen.json)


if __name__ == "__main__":
    raise SystemExit(main())
