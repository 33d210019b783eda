"""Experts that stream from disk: how fast they are read, what hides behind what, llama.cpp beside.

    python bench/streaming.py [--model FILE.gguf] [--scale 6GB] [--ram 2GiB] [--vram BYTES]
        [--prompt N] [--decode N] [--threads N] [--without-llamacpp] [--place DIR] [--json]

A synthetic DeepSeek-V4 is written in its release's format and quantized to GGUF, unless --model
names such a file. It is decoded by ours in --ram and --vram, and by llama.cpp from a memory map,
each inside a control group of the same limit. What is compared and how is in METHODOLOGY.md. Exit
code 1 when a bound is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, Final

import page_cache
import psutil
from confined import Outcome, confined
from ending import ended
from scratch import filesystem, scratch
from synthetic_checkpoint import write
from synthetic_configs import bytes_of, grown
from synthetic_quantized import gguf

from localrun.cli.loading import prepare
from localrun.cli.options import parse_size
from localrun.disk.reader import ALIGNMENT
from localrun.errors import EngineError, LocalrunError
from localrun.hardware.direct_reads import direct_reads
from localrun.plan.hits import TYPICAL_SKEW
from localrun.plan.plan import Execution, Plan, PlanRequest, Workload
from localrun.plan.terms import DISK, ENGRAM, HIDDEN, STEP

READS: Final = 0.85
OVERLAP: Final = 0.15
LEAST_TOKENS: Final = 200
# A token takes seconds where every one of its pages is faulted in.
LLAMACPP_TOKENS: Final = 16
# What both sides may take beyond the plan's memory before the kernel ends them.
LIMIT: Final = 1.15
WIDTH: Final = 8
POINT_S: Final = 2.0
# llama.cpp has no heads of other sizes.
LLAMACPP_SIZES: Final = {"head_dim": 128, "index_head_dim": 128, "sliding_window": 128}
# Of a file's own pages: what a kernel reads ahead of a header.
UNCACHED: Final = 1 << 20
TIMEOUT_S: Final = 1800
CHILD: Final = Path(__file__).with_name("decode_child.py")


def decoded(plan: Plan, tokens: Sequence[int], prompt: int, limit: int, place: Path) -> Any:
    """What the child says of it, and how much memory it took."""
    files = place / "plan.json", place / "tokens.json"
    files[0].write_text(plan.to_json())
    files[1].write_text(json.dumps(tokens))
    page_cache.drop(Path(file) for file in plan.files)
    line = (sys.executable, str(CHILD), *map(str, files), str(prompt))
    found = confined(line, limit, timeout=TIMEOUT_S)
    if found.code:
        raise EngineError(f"{plan.backend}: {_why(found)}")
    return {
        **json.loads(found.out),
        "peak": found.resident,
        "own": found.own,
        "held_by": found.held_by,
    }


def _why(found: Outcome) -> str:
    return "it was ended at its limit of memory" if found.killed else found.err[-2000:]


def llamacpp(plan: Plan) -> Plan:
    """The same file mapped, on the CPU, with the same context and threads."""
    told = plan.execution
    execution = Execution(
        n_ctx=told.n_ctx,
        ubatch=told.ubatch,
        kv_type="f16",
        threads=told.threads,
        threads_max=told.threads,
        mmap=True,
        gpu_layers=0,
        flash_attention=False,
    )
    return Plan(plan.model, "llama.cpp", execution)


def disk_rate(file: Path, block: int, depth: float) -> float:
    """GB/s of random reads of ``block`` bytes, ``depth`` at once, as the calibration takes it;
    between whole depths in proportion."""
    whole = max(1, int(depth))
    with direct_reads(file, filesystem(file.parent)) as reads:
        low, high = (reads(block, at, POINT_S).rate * block / 1e9 for at in (whole, whole + 1))
    return low + (high - low) * max(0.0, min(1.0, depth - whole))


def claimed(plan: Plan, computing: float, reading: float) -> float:
    """Seconds of a step that computes and reads so long, with as much of the one behind the other
    as the plan says: that share of its own computing which it has reads hide behind."""
    terms = plan.prediction.terms_ms
    apart = {DISK, HIDDEN, ENGRAM, STEP}
    planned = sum(ms for name, ms in terms.items() if name not in apart)
    hidden, disk = -terms.get(HIDDEN, 0.0), terms.get(DISK, 0.0)
    if hidden >= disk:
        return max(computing, reading)
    return computing + reading - min(reading, computing * hidden / planned)


def report(chosen: argparse.Namespace) -> dict[str, Any]:
    size = 0 if chosen.model else parse_size(chosen.scale)
    config = grown("deepseek_v4", size, WIDTH) | LLAMACPP_SIZES if size else {}
    with scratch(chosen.place, 2 * bytes_of(config) if config else 0) as place:
        model = chosen.model
        if model is None:
            write(place / "release", config, 0, False, router_skew=TYPICAL_SKEW)
            model = gguf(place / "release", place / "model.gguf")
            shutil.rmtree(place / "release")
        return measured(chosen, model, place)


def measured(chosen: argparse.Namespace, model: Path, place: Path) -> dict[str, Any]:
    vram, ram = parse_size(chosen.vram), parse_size(chosen.ram)
    request = PlanRequest(
        n_ctx=chosen.prompt + chosen.decode,
        ubatch=min(512, chosen.prompt),
        vram_bytes=vram,
        ram_bytes=ram,
        backend="torch",
        threads=chosen.threads,
        workload=Workload(prompt=chosen.prompt, output=chosen.decode),
    )
    plan = prepare(str(model), request).plan
    source = random.Random(1)
    tokens = [source.randrange(100, 900) for _ in range(chosen.prompt + chosen.decode)]
    limit = int(LIMIT * (vram + ram))
    ours = decoded(plan, tokens, chosen.prompt, limit, place)
    reads, file = ours["reads"], Path(plan.files[0])
    block = max(ALIGNMENT, reads["block"] // ALIGNMENT * ALIGNMENT)
    rates = [disk_rate(file, block, reads["depth"])]
    # The disk is asked before and after, since others may use it too.
    again = decoded(plan, tokens, chosen.prompt, limit, place)
    rates.append(disk_rate(file, block, reads["depth"]))
    beside: dict[str, Any] = {}
    if not chosen.without_llamacpp:
        fewer = tokens[: chosen.prompt + LLAMACPP_TOKENS]
        beside = decoded(llamacpp(plan), fewer, chosen.prompt, limit, place)
    return {
        "load": os.getloadavg()[0],
        "model": str(model),
        "bytes": sum(each.bytes for each in plan.model.files),
        "limit": limit,
        "slots_per_layer": plan.execution.slots_per_layer,
        "streams": plan.execution.streams,
        "tokens": chosen.decode,
        "disk_gbps": mean(rates),
        "disk_gbps_each": rates,
        "runs": [_run(plan, each, chosen.decode) for each in (ours, again)],
        "same_logits": ours["logits"] == again["logits"],
        "llamacpp": _beside(beside),
    }


def _run(plan: Plan, told: Mapping[str, Any], tokens: int) -> dict[str, Any]:
    stats, reads = told["stats"], told["reads"]
    terms = stats["terms_s"]
    computing = sum(spent for name, spent in terms.items() if name not in (DISK, ENGRAM))
    expected = claimed(plan, computing, reads["busy_s"])
    # The runner counts what it waited; the plan all of a read, and what hides of it.
    shown = terms | {DISK: reads["busy_s"], HIDDEN: terms.get(DISK, 0.0) - reads["busy_s"]}
    return {
        "tps": tokens / told["decode_s"],
        "predicted_tps": plan.prediction.decode_tps.mid,
        "read_gbps": reads["bytes"] / reads["busy_s"] / 1e9 if reads["busy_s"] else 0.0,
        "reads": reads,
        "kernel_read_bytes": told["kernel_read_bytes"],
        "cached_before": told["cached_before"],
        "cached_after": told["cached_after"],
        "computing_s": computing,
        "claimed_s": expected,
        "decode_s": told["decode_s"],
        "terms_ms": {name: 1e3 * spent / tokens for name, spent in shown.items()},
        "predicted_ms": dict(plan.prediction.terms_ms),
        "experts": stats["experts"],
        "peak": told["peak"],
        "held_by": told["held_by"],
        "notes": stats["notes"],
    }


def _beside(told: Mapping[str, Any]) -> dict[str, Any]:
    if not told:
        return {}
    tokens = len(told["steps_s"])
    return {
        "tps": tokens / told["decode_s"],
        "read_bytes_per_token": told["kernel_read_bytes"] / tokens,
        "peak": told["peak"],
    }


def missed(found: Mapping[str, Any]) -> Iterator[str]:
    """The bounds this run does not hold. Of two runs the better counts: what others take of a disk
    or a processor meanwhile only makes a run worse."""
    runs = found["runs"]
    if found["tokens"] < LEAST_TOKENS:
        yield f"{found['tokens']} tokens, not {LEAST_TOKENS}"
    if not found["streams"]:
        yield "the plan reads nothing from disk: less --ram, or a larger --scale"
        return
    if not found["same_logits"]:
        yield "two runs of the same tokens gave different logits"
    share = max(run["read_gbps"] for run in runs) / found["disk_gbps"]
    if share < READS:
        yield f"experts are read at {share:.3f} of what the disk gives, not {READS}"
    ratios = [run["decode_s"] / run["claimed_s"] for run in runs]
    if min(abs(ratio - 1) for ratio in ratios) > OVERLAP:
        yield f"a token takes {min(ratios):.3f} of what the plan's overlap claims"
    for run in runs:
        if max(run["cached_before"], run["cached_after"]) > UNCACHED:
            yield f"{run['cached_after']} bytes of the file lie in the page cache"
        if abs(run["kernel_read_bytes"] - run["reads"]["bytes"]) > 0.01 * run["reads"]["bytes"]:
            yield f"the kernel read {run['kernel_read_bytes']} bytes, we {run['reads']['bytes']}"


def show(found: dict[str, Any]) -> None:
    limit = found["limit"] / (1 << 20)
    print(
        f"{found['model']}: {found['bytes'] / 1e9:.2f} GB in {limit:.0f} MiB, "
        f"{found['slots_per_layer']} experts a layer kept; load {found['load']:.1f}"
    )
    for run in found["runs"]:
        reads = run["reads"]
        share = run["read_gbps"] / found["disk_gbps"]
        print(
            f"  reads     {run['read_gbps']:.3f} GB/s, {share:.1%} of {found['disk_gbps']:.3f}; "
            f"{reads['count']} of {reads['block'] / 1e6:.2f} MB, {reads['depth']:.1f} at once; "
            f"page cache {run['cached_before']} bytes before, {run['cached_after']} after"
        )
        picks = {tier: use["picks"] for tier, use in run["experts"].items()}
        whole = sum(picks.values()) or 1
        told = ", ".join(f"{tier} {count / whole:.1%}" for tier, count in picks.items())
        print(f"  found in  {told}")
        print(
            f"  decode    {run['tps']:.2f} tok/s, predicted {run['predicted_tps']:.2f}; "
            f"{run['decode_s'] / run['claimed_s']:.3f} of what the plan's overlap claims"
        )
        for name in dict.fromkeys((*run["predicted_ms"], *run["terms_ms"])):
            spent, guess = run["terms_ms"].get(name), run["predicted_ms"].get(name)
            print(f"    {name:>24} {_ms(spent)} ms, predicted {_ms(guess)}")
    if found["llamacpp"]:
        ours = mean(run["tps"] for run in found["runs"])
        theirs = found["llamacpp"]["tps"]
        read = found["llamacpp"]["read_bytes_per_token"] / 1e6
        print(
            f"  llama.cpp {theirs:.3f} tok/s from a memory map in the same memory, {read:.0f} MB "
            f"read a token; ours is {ours / theirs:.1f} times that"
        )


def _ms(value: float | None) -> str:
    return f"{value:9.3f}" if value is not None else f"{'–':>9}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", type=Path, metavar="FILE.gguf")
    parser.add_argument("--scale", default="6GB", metavar="BYTES")
    parser.add_argument("--ram", default="2GiB", metavar="BYTES")
    parser.add_argument("--vram", default="0", metavar="BYTES")
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--decode", type=int, default=LEAST_TOKENS)
    parser.add_argument("--threads", type=int, default=psutil.cpu_count(logical=False) or 1)
    parser.add_argument("--without-llamacpp", action="store_true")
    parser.add_argument("--place", type=Path, default=Path.cwd(), metavar="DIR")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    if not page_cache.available():
        parser.error("only Linux says what lies in the page cache")
    try:
        found = report(chosen)
    except LocalrunError as error:
        print(f"error: {error.message}\nhint: {error.hint}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return ended(found, list(missed(found)), show, as_json=chosen.json)


if __name__ == "__main__":
    raise SystemExit(main())
