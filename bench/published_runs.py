"""Rows of a table of published runs as the planner's inputs: a model, a machine and constraints.

Of a row only the columns in ``INPUTS`` are read. Its id, its notes and everything that was measured
are not among them, so nothing of an answer can reach a prediction.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from published_weights import GB, Skipped, weights

from localrun.errors import LocalrunError, UsageError
from localrun.hardware import assembly
from localrun.hardware.assembly import Card, Ram
from localrun.hardware.machine import Compute, Machine, Speed
from localrun.hardware.parts import find
from localrun.hardware.platforms import Platform, platform
from localrun.models.spec import ModelSpec
from localrun.plan.engines import ENGINES, Engine
from localrun.plan.plan import EngramPlace, PlanRequest, Workload

__all__ = ["INPUTS", "MEASURED", "Run", "Skipped", "number", "read", "rows"]

INPUTS: Final = (
    "model_key",
    "quant",
    "file_size_gb",
    "bits_per_weight_experts",
    "engine",
    "machine_kind",
    "gpu_key",
    "gpu_count",
    "vram_gb",
    "ram_gb",
    "ram_gbps_theoretical",
    "ram_gbps_measured",
    "cpu",
    "cpu_cores",
    "disk_gbps",
    "placement",
    "placement_value",
    "placement_unit",
    "expert_cache_gb",
    "engram_placement",
    "n_ctx",
    "n_depth",
    "ubatch",
    "batch",
    "speculative",
    "source_url",
)
MEASURED: Final = ("prefill_tps", "decode_tps", "vram_used_gb", "hit_rate")
# What llama.cpp and what is built on it do with a long prompt unless told otherwise.
_DEFAULT_UBATCH: Final = 512
_LLAMA_CPP: Final = (
    "llama.cpp",
    "ik_llama.cpp",
    "ollama",
    "lmstudio",
    "koboldcpp",
    "jan",
    "llamafile",
    "llama-cpp-python",
)
_MOST_CARDS: Final = 64
_SPELT: Final = {
    "llamacpp": "llama.cpp",
    "llama-server": "llama.cpp",
    "llama-bench": "llama.cpp",
    "lm studio": "lmstudio",
    "lm-studio": "lmstudio",
    "trt-llm": "tensorrt-llm",
}
_RAISED: Final = 7 / 8
_DESKTOP_GBPS: Final = 89.6
_EVERYTHING: Final = 1 << 16
_GIB: Final = 1 << 30
# No machine, file or context has more of anything.
_MOST: Final = 1e9
_APPLE: Final = re.compile(r"^apple\s+", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Run:
    """One row as the planner sees it. ``kind`` is the class that its error counts in, ``source``
    who published it; ``ram_stated`` is false where the speed of a host's memory is a guess."""

    kind: str
    source: str
    spec: ModelSpec
    machine: Machine
    engine: Engine
    device: bool
    request: PlanRequest
    ram_stated: bool


def rows(path: Path) -> list[dict[str, str]]:
    """The table's rows by column name; what a row leaves out is empty.

    Raises:
        UsageError: the file cannot be read, or is no such table.
    """
    try:
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            found = csv.DictReader(file)
            columns = [name for name in found.fieldnames or () if name]
            lines = list(found)
    except (OSError, csv.Error) as error:
        raise UsageError(f"--runs {path}: {error}") from error
    if "model_key" not in columns or "engine" not in columns:
        raise UsageError(f"--runs {path}: no columns model_key and engine: not a table of runs")
    wanted = dict.fromkeys((*INPUTS, *MEASURED, "id", "trap", *columns))
    return [{name: (line.get(name) or "").strip() for name in wanted} for line in lines]


def read(row: Mapping[str, str]) -> Run:
    """Raises Skipped with the reason."""
    seen = {name: row.get(name) or "" for name in INPUTS}
    if seen["batch"] not in ("single", ""):
        raise Skipped(f"batch is {seen['batch']}")
    if seen["speculative"] not in ("none", ""):
        raise Skipped(f"speculative decoding ({seen['speculative']})")
    if not seen["model_key"]:
        raise Skipped("no geometry is known of the model")
    size, bits = number(seen, "file_size_gb"), number(seen, "bits_per_weight_experts")
    engine = _engine(seen)
    try:
        return Run(
            kind=kind_of(seen),
            source=source_of(seen["source_url"]),
            spec=weights(seen["model_key"], seen["quant"], size or None, bits or None),
            machine=_machine(seen),
            engine=engine,
            device=seen["machine_kind"] != "cpu" and seen["placement"] != "cpu",
            request=_request(seen, engine),
            ram_stated=bool(
                seen["ram_gbps_measured"] or seen["ram_gbps_theoretical"] or seen["cpu"]
            ),
        )
    except LocalrunError as error:
        raise Skipped(error.message) from error


def kind_of(row: Mapping[str, str]) -> str:
    """The class of a row, by where its bytes lie."""
    if row["engram_placement"] not in ("", "none") or row["model_key"] == "deepseek-v4.1-flash":
        return "engram"
    if row["placement"] == "streaming":
        return "streaming"
    if row["machine_kind"] == "cpu" or row["placement"] == "cpu":
        return "cpu"
    if row["machine_kind"] == "unified":
        return "unified"
    return "all-gpu" if row["placement"] in ("all_gpu", "resident") else "hybrid"


def source_of(url: str) -> str:
    """Who measured: a repository, or a site."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url
    path = [part for part in parts.path.split("/") if part]
    return "/".join(path[:2]) if parts.hostname == "github.com" else str(parts.hostname)


def number(row: Mapping[str, str], column: str) -> float | None:
    """A figure of the row, None where it says nothing.

    Raises:
        Skipped: what stands there is no number, or one that nothing has.
    """
    text = row[column].strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= _MOST:
        raise Skipped(f"{column}: {text[:64]!r} is no number it can have")
    return value


def _engine(row: Mapping[str, str]) -> Engine:
    """The traits of the row's engine, as the row's placement shows them."""
    name = row["engine"].casefold()
    name = next((_SPELT[each] for each in _SPELT if name.startswith(each)), name)
    named = [key for key in ENGINES if name.startswith(key)]
    if not named:
        raise Skipped(f"engine {row['engine'][:64]!r} has no traits")
    found = ENGINES[max(named, key=len)]
    if row["placement"] == "streaming" and found.streams == "no":
        # Files larger than memory were mapped: the page cache holds what it can of the experts.
        found = replace(found, experts="slots", streams="pages")
    match row["engram_placement"]:
        case "disk_prefetch":
            return replace(found, tables="ahead")
        case "disk_sync":
            return replace(found, tables="inside")
        case "disk_mmap":
            return replace(found, tables="faults")
    return found


def _machine(row: Mapping[str, str]) -> Machine:
    speed = number(row, "disk_gbps")
    apple = _APPLE.match(row["cpu"])
    if row["machine_kind"] == "unified" or apple:
        chip = _APPLE.sub("", row["cpu"]).replace(" ", "-").lower()
        machine = _pool(row, row["gpu_key"] if row["machine_kind"] == "unified" else chip)
    else:
        machine = _discrete(row)
    if not speed:
        return machine
    tiers = tuple(
        replace(tier, read=Speed(speed, "measured", "the row")) if tier.kind == "disk" else tier
        for tier in machine.tiers
    )
    return replace(machine, tiers=tiers)


def _pool(row: Mapping[str, str], slug: str) -> Machine:
    if not slug:
        raise Skipped("the GPU is not stated")
    part = find(slug, "mac", "apu", where="gpu_key")
    memory = number(row, "ram_gb") or number(row, "vram_gb")
    if not memory:
        raise Skipped("the machine's memory is not stated")
    disk = assembly.internal_storage(part)
    return assembly.unified("row", part, int(memory * _GIB), disk)


def _discrete(row: Mapping[str, str]) -> Machine:
    cards = [] if row["machine_kind"] == "cpu" else _cards(row)
    cpu = platform(row["cpu"])
    cores = int(number(row, "cpu_cores") or 0)
    memory = number(row, "ram_gb")
    if not memory and row["placement"] == "streaming":
        raise Skipped("the machine's memory is not stated")
    ram = Ram("row", int((memory or 512) * _GIB), _ram_speed(row, cpu))
    count = cores or assembly.assumed_cores(cpu.channels if cpu else 2)
    machine = assembly.discrete("row", cards, ram, assembly.storage("nvme4"), count)
    return replace(machine, compute=Compute(count, sockets=cpu.sockets if cpu else 1))


def _cards(row: Mapping[str, str]) -> list[Card]:
    """One for each GPU, all of one kind."""
    slug = row["gpu_key"]
    if slug in ("", "none"):
        raise Skipped("the GPU is not stated")
    if "+" in slug:
        raise Skipped("gpu_key: which layers each kind of GPU computes is not stated")
    count = int(number(row, "gpu_count") or 1)
    if count > _MOST_CARDS:
        raise Skipped(f"gpu_count: {count} is more than {_MOST_CARDS}")
    return [assembly.card(find(slug, "gpu", where="gpu_key"))] * count


def _ram_speed(row: Mapping[str, str], cpu: Platform | None) -> Speed:
    measured, theory = number(row, "ram_gbps_measured"), number(row, "ram_gbps_theoretical")
    if measured:
        return Speed(measured, "measured", "the row")
    if theory:
        return Speed(theory, "specified", "the row")
    if cpu is not None:
        return Speed(cpu.gbps, "assumed", "the platform of the row's CPU")
    return Speed(_DESKTOP_GBPS, "assumed", "a desktop: two channels of DDR5-5600")


def _request(row: Mapping[str, str], engine: Engine) -> PlanRequest:
    depth, stated = int(number(row, "n_depth") or 0), int(number(row, "n_ctx") or 0)
    prompt = depth or min(stated, 4096) or 512
    ubatch = number(row, "ubatch")
    # A run in micro-batches of a few tokens measured decoding that way.
    if ubatch is None or ubatch < 32:
        ubatch = _DEFAULT_UBATCH if engine.name in _LLAMA_CPP else None
    cache_gb, memory = number(row, "expert_cache_gb"), number(row, "ram_gb")
    raised = row["machine_kind"] == "unified" and cache_gb is not None and memory is not None
    request = PlanRequest(
        # Who keeps so much of one pool has raised the system's limit (sysctl iogpu.wired_limit_mb).
        ram_bytes=int(memory * _GIB * _RAISED) if raised and memory else None,
        n_ctx=max(stated, prompt + 640),
        workload=Workload(prompt=prompt, output=128),
        ubatch=None if ubatch is None else int(ubatch),
        expert_cache_bytes=None if cache_gb is None else int(cache_gb * GB),
        engram=_engram_place(row),
    )
    return _placed(row, request)


def _placed(row: Mapping[str, str], request: PlanRequest) -> PlanRequest:
    """The row's placement as a constraint; where it states no number, the planner finds one."""
    value = number(row, "placement_value") if row["placement_unit"] in ("layers", "") else None
    layers = None if value is None else int(value)
    match row["placement"]:
        case "all_gpu" | "resident":
            return replace(request, gpu_layers=_EVERYTHING)
        case "ngl" if layers is not None:
            return replace(request, gpu_layers=layers)
        case "layer_split_cpu" if layers is not None:
            return replace(request, gpu_layers=layers, cpu_expert_layers=0)
        case "ncmoe" | "experts_cpu" if layers is not None:
            return replace(request, gpu_layers=_EVERYTHING, cpu_expert_layers=layers)
        case "experts_cpu":
            return replace(request, gpu_layers=_EVERYTHING, cpu_expert_layers=_EVERYTHING)
    return request


def _engram_place(row: Mapping[str, str]) -> EngramPlace | None:
    place = row["engram_placement"]
    if place.startswith("disk"):
        return "disk"
    return "ram" if place == "ram" else None
