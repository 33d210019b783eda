"""Engine beside a bare llama_decode loop, and decode speed while another program keeps a core busy.

    python bench/decode.py [REF] [--threads N] [--kv-type T] [--rounds N] [--json]

Both loops run in this process over the same library and the same parameter structures, which are
printed. How the figures are taken is in METHODOLOGY.md. Exit code 1 when a bound is missed.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, get_args

import numpy as np
from ending import ended
from llama_cpp import llama_cpp as llama

from localrun.backends.llamacpp.backend import load
from localrun.backends.llamacpp.library import logits_address
from localrun.backends.llamacpp.parameters import parameters, printed
from localrun.cli.loading import prepare
from localrun.engine.engine import Engine
from localrun.engine.request import GenerationRequest, SamplingParams
from localrun.engine.threads import ThreadRange
from localrun.plan.plan import KvType, Plan, PlanRequest

RATIO_BOUND = 0.97
BUSY_BOUND = 0.5
N_CTX = 1024
_ids = count()


@dataclass(frozen=True)
class Run:
    """Tokens a second of one run, and the tokens it chose."""

    tps: float
    tokens: tuple[int, ...]


# prompt ids, tokens to generate → prefill, decode
Loop = Callable[[tuple[int, ...], int], tuple[Run, Run]]


class BareLoop:
    """The least there can be: llama_decode, the largest logit, the next llama_decode."""

    def __init__(self, plan: Plan) -> None:
        model_parameters, context_parameters = parameters(plan.execution)
        self.model = llama.llama_model_load_from_file(plan.files[0].encode(), model_parameters)
        self.context = llama.llama_init_from_model(self.model, context_parameters)
        self.vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self.model))
        self.chunk = llama.llama_n_batch(self.context)

    def __call__(self, prompt: tuple[int, ...], wanted: int) -> tuple[Run, Run]:
        llama.llama_memory_clear(llama.llama_get_memory(self.context), False)
        tokens = []
        began = time.perf_counter()
        for start in range(0, len(prompt), self.chunk):
            self._decode(*prompt[start : start + self.chunk])
        tokens.append(self._largest())
        prefilled = time.perf_counter()
        while len(tokens) < wanted:
            self._decode(tokens[-1])
            tokens.append(self._largest())
        decode_s = time.perf_counter() - prefilled
        return (
            Run(len(prompt) / (prefilled - began), ()),
            Run((wanted - 1) / decode_s if wanted > 1 else 0.0, tuple(tokens)),
        )

    def _decode(self, *tokens: int) -> None:
        array = (llama.llama_token * len(tokens))(*tokens)
        if llama.llama_decode(self.context, llama.llama_batch_get_one(array, len(tokens))) != 0:
            raise SystemExit("llama_decode failed")

    def _largest(self) -> int:
        row = (ctypes.c_float * self.vocabulary).from_address(logits_address(self.context))
        return int(np.frombuffer(row, np.float32).argmax())

    def close(self) -> None:
        llama.llama_free(self.context)
        llama.llama_model_free(self.model)


class EngineLoop:
    """The same through ``Engine``; ``tuned`` lets it choose its thread count as users run it."""

    def __init__(self, plan: Plan, *, tuned: bool) -> None:
        execution = plan.execution
        threads = ThreadRange(execution.threads, execution.threads_max) if tuned else None
        self.engine = Engine(load(plan), threads=threads)

    def __call__(self, prompt: tuple[int, ...], wanted: int) -> tuple[Run, Run]:
        request = GenerationRequest(
            id=str(next(_ids)),
            prompt=prompt,
            sampling=SamplingParams(temperature=0),
            max_tokens=wanted,
            ignore_end=True,
        )
        tokens: list[int] = []
        timings = None
        for event in self.engine.submit(request):
            tokens += event.tokens
            timings = event.timings or timings
            if event.error:
                raise SystemExit(event.error)
        if timings is None or timings.generated_tokens != wanted or timings.cached_tokens:
            raise SystemExit(f"the engine did something else than asked: {timings}")
        return Run(timings.prefill_tps, ()), Run(timings.decode_tps, tuple(tokens))

    def close(self) -> None:
        self.engine.close()


def prompt_of(length: int, turn: int) -> tuple[int, ...]:
    """Ids below no control token, with another first one each turn: no prefix is ever shared."""
    return tuple(1000 + (turn * 7919 + at * 31) % 4000 for at in range(length))


def compare(
    loops: dict[str, Loop], rounds: int, prompt: int, wanted: int
) -> tuple[dict[str, dict[str, list[float]]], bool]:
    """Interleave the loops, turning the order round each time: samples by test and loop."""
    samples: dict[str, dict[str, list[float]]] = {
        f"pp{prompt}": {name: [] for name in loops},
        f"tg{wanted}": {name: [] for name in loops},
    }
    same = True
    for name in loops:  # warms pages, caches and the tuner
        loops[name](prompt_of(prompt, 0), wanted)
    for turn in range(1, rounds + 1):
        chosen = set()
        for name in sorted(loops, reverse=turn % 2 == 0):
            prefill, _ = loops[name](prompt_of(prompt, 2 * turn), 1)
            _, decode = loops[name](prompt_of(8, 2 * turn + 1), wanted + 1)
            samples[f"pp{prompt}"][name].append(prefill.tps)
            samples[f"tg{wanted}"][name].append(decode.tps)
            chosen.add(decode.tokens)
        same = same and len(chosen) == 1
    return samples, same


@contextmanager
def busy_core() -> Iterator[str]:
    """A process that spins on one of our cores, the last one where the system can pin it."""
    pin = ""
    where = "on any core"
    if hasattr(os, "sched_setaffinity"):
        core = max(os.sched_getaffinity(0))
        pin, where = f"import os; os.sched_setaffinity(0, {{{core}}})", f"pinned on core {core}"
    # It ends by itself should this process be killed.
    spin = f"{pin}\nimport os\nwhile os.getppid() == {os.getpid()}:\n for _ in range(10**6): pass"
    spinner = subprocess.Popen([sys.executable, "-c", spin])
    try:
        yield where
    finally:
        spinner.kill()
        spinner.wait()


def summary(samples: dict[str, list[float]]) -> dict[str, Any]:
    """Medians, and of each loop the median of its ratio to the bare run of the same round."""
    bare = samples["bare"]
    return {
        name: {
            "tps": statistics.median(values),
            "ratio": statistics.median(a / b for a, b in zip(values, bare, strict=True)),
            "samples": values,
        }
        for name, values in samples.items()
    }


def measure(plan: Plan, rounds: int, prompt: int, wanted: int) -> dict[str, Any]:
    """Quiet, then with a busy core. Wants a machine on which nothing else runs."""
    model, context = parameters(plan.execution)
    bare = BareLoop(plan)
    fixed, tuned = EngineLoop(plan, tuned=False), EngineLoop(plan, tuned=True)
    try:
        loops: dict[str, Loop] = {"bare": bare, "engine": fixed, "tuned": tuned}
        quiet, same = compare(loops, rounds, prompt, wanted)
        with busy_core() as where:
            busy, _ = compare({"bare": bare, "tuned": tuned}, rounds, prompt, wanted)
    finally:
        bare.close()
        fixed.close()
        tuned.close()
    decode = f"tg{wanted}"
    quiet_tps = statistics.median(quiet[decode]["tuned"])
    has_affinity = hasattr(os, "sched_getaffinity")
    return {
        "ref": plan.ref,
        "parameters": {"model": printed(model), "context": printed(context)},
        "cores": len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "same_tokens": same,
        "quiet": {test: summary(by_loop) for test, by_loop in quiet.items()},
        "busy": {
            "where": where,
            **{test: summary(by_loop) for test, by_loop in busy.items()},
            "tuned_to_quiet": statistics.median(busy[decode]["tuned"]) / quiet_tps,
        },
    }


def missed(report: dict[str, Any]) -> list[str]:
    """The bounds this run does not hold."""
    found = [
        f"{test}: the engine has {loops['engine']['ratio']:.3f} of the bare loop, not {RATIO_BOUND}"
        for test, loops in report["quiet"].items()
        if loops["engine"]["ratio"] < RATIO_BOUND
    ]
    if report["busy"]["tuned_to_quiet"] < BUSY_BOUND:
        found.append(f"busy: {report['busy']['tuned_to_quiet']:.2f} of quiet, not {BUSY_BOUND}")
    if not report["same_tokens"]:
        found.append("the loops did not choose the same tokens")
    return found


def show(report: dict[str, Any]) -> None:
    for part, values in report["parameters"].items():
        print(f"{part}: " + " ".join(f"{name}={value}" for name, value in values.items()))
    print(f"{report['cores']} cores, load {report['load']}, same tokens: {report['same_tokens']}")
    for state in ("quiet", "busy"):
        for test, loops in report[state].items():
            if not isinstance(loops, dict):
                continue
            for name, values in loops.items():
                low, high = min(values["samples"]), max(values["samples"])
                print(
                    f"{state:>5} {test:>5} {name:>6} {values['tps']:9.2f} tok/s "
                    f"({low:.2f} to {high:.2f})  {values['ratio']:.3f} of bare"
                )
    print(
        f"busy ({report['busy']['where']}): the tuned engine decodes at "
        f"{report['busy']['tuned_to_quiet']:.2f} of quiet"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("ref", nargs="?", default="smollm2")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--kv-type", choices=get_args(KvType), default="f16")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--decode", type=int, default=128)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    request = PlanRequest(n_ctx=N_CTX, kv_type=chosen.kv_type, threads=chosen.threads)
    plan = prepare(chosen.ref, request).plan
    report = measure(plan, chosen.rounds, chosen.prompt, chosen.decode)
    return ended(report, missed(report), show, as_json=chosen.json)


if __name__ == "__main__":
    raise SystemExit(main())
