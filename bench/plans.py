"""The planner's answers for six models on five machines, as one table.

    python bench/plans.py [--json]

Nothing is loaded or downloaded: models are the geometries that localrun keeps, machines are named,
the request is the planner's default. Which backend a model is planned for is in METHODOLOGY.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field

from localrun.errors import DoesNotFitError
from localrun.hardware.profiles import named
from localrun.models.describe import describe_config
from localrun.models.geometries import geometry
from localrun.models.spec import ModelSpec
from localrun.plan.constants import GIB
from localrun.plan.plan import Plan, PlanRequest
from localrun.plan.planner import plan
from localrun.plan.search import Candidate, Source


@dataclass(frozen=True, slots=True)
class Subject:
    """A model as people have it: a release, or a GGUF of the mixture ``quant``. The first of
    ``backends`` whose plan fits is taken."""

    name: str
    geometry: str
    quant: str | None
    backends: tuple[str, ...]

    def spec(self) -> ModelSpec:
        return describe_config(geometry(self.geometry), quant=self.quant)


SUBJECTS = (
    Subject("DeepSeek-V4.1-Flash", "deepseek-v4.1-flash", None, ("torch",)),
    Subject("DeepSeek-V4-Flash-0731", "deepseek-v4-flash-0731", None, ("torch",)),
    Subject("DeepSeek-V3-671B Q4_K_M", "deepseek-v3", "Q4_K_M", ("llama.cpp", "torch")),
    Subject("gpt-oss-120b MXFP4", "gpt-oss-120b", None, ("llama.cpp",)),
    Subject("Qwen3-30B-A3B Q4_K_M", "qwen3-30b-a3b", "Q4_K_M", ("llama.cpp",)),
    Subject("Llama-3-70B Q4_K_M", "llama-3-70b", "Q4_K_M", ("llama.cpp",)),
)
MACHINES = (
    "rtx-4090+ddr5-6000x2:128+nvme4",
    "2xrtx-3090+ddr4-3200x8:256+nvme4",
    "rtx-5090+ddr5-6400x2:192+nvme5",
    "m4-max-128",
    "cpu:16+ddr5-5600x2:64+nvme4",
)


@dataclass(frozen=True, slots=True)
class Row:
    """One model on one machine. ``shortfalls`` are the bytes that each tier lacks, by backend that
    was refused; ``plan`` is None where all were."""

    model: str
    machine: str
    plan: Plan | None
    shortfalls: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


def row(subject: Subject, spec: ModelSpec, machine: str) -> Row:
    """Plan for each backend in turn, until one fits."""
    refused: dict[str, Mapping[str, int]] = {}
    there = named(machine)
    for backend in subject.backends:
        candidate = Candidate(backend, "this table's", device=True)
        source = Source(subject.name, (), (candidate,))
        try:
            found = plan(spec, there, PlanRequest(), source)
        except DoesNotFitError as error:
            refused[backend] = error.shortfall
            continue
        return Row(subject.name, machine, found, refused)
    return Row(subject.name, machine, None, refused)


def rows() -> Iterator[Row]:
    for subject in SUBJECTS:
        spec = subject.spec()
        for machine in MACHINES:
            yield row(subject, spec, machine)


def document(found: Row) -> dict[str, object]:
    """A row of --json. Bytes, tokens a second and milliseconds."""
    made = found.plan
    facts: dict[str, object] = {
        "model": found.model,
        "machine": found.machine,
        "fits": made is not None,
        "shortfalls": found.shortfalls,
    }
    if made is None:
        return facts
    return facts | {
        "backend": made.backend,
        "n_ctx": made.execution.n_ctx,
        "bytes_per_token": made.bytes_per_token,
        "engram": asdict(made.engram),
        "decode_tps": asdict(made.prediction.decode_tps),
        "prefill_tps": asdict(made.prediction.prefill_tps),
        "bound_by": made.prediction.bound_by,
        "terms_ms": made.prediction.terms_ms,
    }


def lines(found: Row) -> Iterator[str]:
    """A row of the table, and one line for each backend that was refused."""
    made = found.plan
    if made is not None:
        read = ", ".join(
            f"{tier} {_gb(size)}" for tier, size in made.bytes_per_token.items() if size
        )
        decode = made.prediction.decode_tps
        speeds = f"{decode.low:.1f} … {decode.mid:.1f} … {decode.high:.1f}"
        yield (
            f"{found.machine:<33} {made.backend:<9} {read:<53} {speeds:<21} "
            f"{made.prediction.prefill_tps.mid:>8.0f}  {made.prediction.bound_by}"
        )
    for backend, shortfall in found.shortfalls.items():
        lacking = ", ".join(
            f"{tier} lacks {size / GIB:.1f} GiB" for tier, size in shortfall.items()
        )
        yield f"{found.machine:<33} {backend:<9} does not fit: {lacking}"


def _gb(size: int) -> str:
    """In GB; n-gram rows alone are kilobytes."""
    return f"{size / 1e9:.3f}" if size >= 1e6 else f"{size / 1e9:.7f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = list(rows())
    if given.json:
        print(json.dumps([document(each) for each in found], indent=1))
        return
    heads = ("machine", "backend", "GB a token", "decode t/s", "prefill", "bound by")
    for subject in SUBJECTS:
        print(f"\n{subject.name}")
        print("{:<33} {:<9} {:<53} {:<21} {:>8}  {}".format(*heads))
        for each in found:
            if each.model == subject.name:
                print("\n".join(lines(each)))


if __name__ == "__main__":
    main()
