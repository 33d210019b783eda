"""Routed experts on the host's processor, beside the bare products of libggml they are made of.

    python bench/host_experts.py [--experts N] [--width N] [--inner N] [--picks N] [--rounds N]
        [--threads N ...] [--json]

How the figures are taken is in METHODOLOGY.md. Exit code 1 when a bound is missed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from ending import ended
from numpy.typing import NDArray

from localrun.backends.torch.matrices.expert_slots import StackedSlots
from localrun.backends.torch.model import Setup
from localrun.backends.torch.numerics import FAST
from localrun.backends.torch.tensors import Tensors
from localrun.backends.torch.threads import share_threads
from localrun.formats.extent import Extent
from localrun.ggml.matmul import Product
from localrun.ggml.quantize import quantize
from localrun.ggml.weights import Weights
from localrun.releases.release import Release
from localrun.releases.weights import Bytes, Floats

BOUND = 0.85
# A release's FP4, and a GGUF file's Q4_K.
FORMS = {"MXFP4": "FP4", "Q4_K": "Q4_K"}
Token = Callable[[int], None]
"""Computes the experts of one token, whose number it is given."""


@dataclass(frozen=True)
class Drawn:
    """A matrix in memory, the same for every expert: where it lies differs, what it is does not."""

    name: str
    shape: tuple[int, ...]
    stored: str
    raw: Bytes
    step: int = 1
    place: tuple[int, int] = (0, 0)

    @property
    def read_bytes(self) -> int:
        return self.raw.nbytes

    def ranges(self, start: int, stop: int) -> Iterator[Extent]:
        return iter(())

    def rows(self, start: int, stop: int) -> Floats:
        raise NotImplementedError

    def blocks(self, type: str, start: int, stop: int) -> Bytes | None:
        return self.raw[start:stop] if type == self.stored else None


class Every:
    """In place of ``ExpertStore``: a place for each expert, all of them filled."""

    def places(self, count: int) -> int:
        return count

    def layer(self, slots: StackedSlots, top: int, guess: object) -> StackedSlots:
        for expert in range(slots.count):
            slots.fill(expert, expert)
        return slots


@contextmanager
def layer(kind: str, options: argparse.Namespace) -> Iterator[tuple[StackedSlots, Tensors]]:
    """Of blocks of ``kind``."""
    source = np.random.default_rng(0)
    shapes = {"w1": (options.inner, options.width), "w2": (options.width, options.inner)}
    drawn = {
        name: quantize(kind, source.normal(0, 0.02, shape).astype("<f4"))
        for name, shape in (shapes | {"w3": shapes["w1"]}).items()
    }
    weights = {
        f"{expert}.{name}.weight": Drawn(name, shapes.get(name, shapes["w1"]), FORMS[kind], raw)
        for expert in range(options.experts)
        for name, raw in drawn.items()
    }
    store = cast(Any, Every())
    setup = Setup(FAST, torch.device("cpu"), 64, threads=1, experts=store)
    with closing(Tensors(Release("drawn", {}, weights), setup)) as tensors:
        made = tensors.experts(
            [f"{{e}}.{name}" for name in ("w1", "w3", "w2")],
            options.experts,
            options.inner,
            options.width,
            top=options.picks,
            guess=lambda x, tokens: tokens,
            limit=10.0,
        )
        yield cast(StackedSlots, made), tensors


def picks(options: argparse.Namespace, tokens: int) -> NDArray[np.int64]:
    """Of each token other experts: each comes again only after all others."""
    source = np.random.default_rng(1)
    each = options.experts // options.picks * options.picks
    laps = -(-tokens * options.picks // each)
    drawn = [source.permutation(options.experts)[:each] for _ in range(laps)]
    return np.concatenate(drawn)[: tokens * options.picks].reshape(tokens, options.picks)


def ours(slots: StackedSlots, chosen: NDArray[np.int64], width: int) -> Token:
    """The layer of experts as a step of one token computes it."""
    x = torch.randn(1, width).bfloat16()
    places = torch.from_numpy(chosen)[:, None]
    weights = torch.full((1, chosen.shape[1]), 0.5)

    def compute(token: int) -> None:
        slots(x, places[token % len(places)], weights, 1)

    return compute


@contextmanager
def bare(slots: StackedSlots, tensors: Tensors, chosen: NDArray[np.int64]) -> Iterator[Token]:
    """The three products, of activations that are there already."""
    made = [stack.made for stack in slots.stacks]
    choices = chosen.shape[1]
    products = [
        Product(
            cast(Weights, weights),
            tensors.kernels.pool,
            1,
            choices=choices,
            own_activations=number == 2,
        )
        for number, weights in enumerate(made)
    ]
    for product in products:
        product.activations[:] = np.random.default_rng(2).normal(size=product.activations.shape)

    def compute(token: int) -> None:
        for product in products:
            assert product.chosen is not None
            product.chosen[0] = chosen[token % len(chosen)]
            product.run()

    yield compute
    for product in products:
        product.close()


def seconds(compute: Token, first: int, tokens: int) -> float:
    start = time.perf_counter()
    for token in range(first, first + tokens):
        compute(token)
    return (time.perf_counter() - start) / tokens


def measured(kind: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A result for each number of threads."""
    results = []
    with layer(kind, options) as (slots, tensors):
        read = slots.slot_nbytes * options.picks
        chosen = picks(options, 4 * options.experts)
        for threads in options.threads:
            tensors.kernels.set_threads(threads)
            share_threads(1, FAST, threads)
            with bare(slots, tensors, chosen) as plain:
                sides = [("ours", ours(slots, chosen, options.width)), ("bare", plain)]
                for _, side in sides:
                    seconds(side, 0, 2)
                at = 0
                times: dict[str, list[float]] = {name: [] for name, _ in sides}
                for _ in range(options.rounds):
                    for name, side in sides:
                        times[name].append(seconds(side, at, options.tokens))
                        at += options.tokens
                    sides.reverse()
            results.append(result(kind, threads, read, times))
    return results


def result(kind: str, threads: int, read: int, times: dict[str, list[float]]) -> dict[str, Any]:
    ratios = [plain / own for own, plain in zip(times["ours"], times["bare"], strict=True)]
    return {
        "type": kind,
        "threads": threads,
        "bytes_per_token": read,
        "ours_gbps": read / statistics.median(times["ours"]) / 1e9,
        "bare_gbps": read / statistics.median(times["bare"]) / 1e9,
        "ratio": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
    }


def show(report: dict[str, Any]) -> None:
    print(f"{report['experts']} experts, {report['picks']} a token, load {report['load']:.2f}")
    for each in report["results"]:
        print(
            f"{each['type']:6} {each['threads']} threads: {each['ours_gbps']:6.2f} GB/s, bare"
            f" {each['bare_gbps']:6.2f}, ratio {each['ratio']:.3f}"
            f" ({each['lowest']:.3f} to {each['highest']:.3f})"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--experts", type=int, default=96, metavar="N")
    parser.add_argument("--width", type=int, default=4096, metavar="N")
    parser.add_argument("--inner", type=int, default=2048, metavar="N")
    parser.add_argument("--picks", type=int, default=6, metavar="N")
    parser.add_argument("--tokens", type=int, default=8, metavar="N", help="of a round, each side")
    parser.add_argument("--rounds", type=int, default=15, metavar="N")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], metavar="N")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    results = [each for kind in FORMS for each in measured(kind, options)]
    missed = [
        f"{each['type']} on {each['threads']} threads: {each['ratio']:.3f} of bare, {BOUND} wanted"
        for each in results
        if each["ratio"] < BOUND
    ]
    report = {
        "experts": options.experts,
        "picks": options.picks,
        "width": options.width,
        "inner": options.inner,
        "load": load,
        "bound": BOUND,
        "results": results,
    }
    return ended(report, missed, show, as_json=options.json)


if __name__ == "__main__":
    raise SystemExit(main())
