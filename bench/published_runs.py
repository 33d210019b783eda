"""Rows of a table of published runs as the planner's inputs: a model, a machine and constraints.

The columns are those of the table's legend. A row's id, notes and measured columns are not read
here, so that nothing of an answer can reach a prediction.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from localrun.errors import LocalrunError
from localrun.hardware import assembly
from localrun.hardware.assembly import Ram
from localrun.hardware.machine import Compute, Machine, Speed
from localrun.hardware.parts import find
from localrun.hardware.platforms import platform
from localrun.models import geometries
from localrun.models.describe import describe_config
from localrun.models.spec import Experts, Group, ModelSpec
from localrun.plan.engines import ENGINES, Engine
from localrun.plan.plan import EngramPlace, PlanRequest, Workload

GB = 10**9
# What an engine's --help says it does with a long prompt unless told otherwise.
_DEFAULT_UBATCH = {"llama.cpp": 512, "ollama": 512, "ik_llama.cpp": 512}
_TABLES = {"disk_prefetch": "ahead", "disk_sync": "inside", "disk_mmap": "faults"}
# What a row's own name for a quantization means, in bits a weight: of experts, of the rest.
_BITS = {
    "q2-mixed": (2.25, 8.5),
    "q4-mixed": (4.5, 8.5),
    "4bit-affine": (4.5, 4.5),
    "2bit-affine": (2.5, 4.5),
    "VQ3": (2.8, 8.5),
    "int4": (4.0, 4.0),
    "4bit": (4.5, 4.5),
    "IQ3_KS": (3.19, 6.5),
    "NVFP4": (4.5, 16.0),
}
_RAISED = 7 / 8
_DESKTOP_GBPS = 89.6
_NATIVE = ("fp4-fp8-native",)
_ALIASES = {"Q2": "Q2_K", "UD-IQ1_S": "IQ1_S", "UD-Q3_K_XL": "Q3_K_L"}


class Skipped(Exception):
    """The row lacks what a prediction needs."""


@dataclass(frozen=True, slots=True)
class Run:
    """One row as the planner sees it. ``kind`` is the class that its error counts in."""

    kind: str
    source: str
    spec: ModelSpec
    machine: Machine
    engine: Engine
    device: bool
    request: PlanRequest
    ram_stated: bool


def rows(path: Path) -> list[dict[str, str]]:
    """The table's rows by column name."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read(row: Mapping[str, str]) -> Run:
    """Raises Skipped with the reason."""
    if row["batch"] not in ("single", ""):
        raise Skipped(f"batch is {row['batch']}")
    if not row["model_key"]:
        raise Skipped("no geometry is known of the model")
    kind = ENGINES.get(row["engine"])
    if kind is None:
        raise Skipped(f"engine {row['engine']!r} has no traits")
    if row["engram_placement"] in _TABLES:
        kind = replace(kind, tables=_TABLES[row["engram_placement"]])
    try:
        return Run(
            kind=kind_of(row),
            source=source_of(row["source_url"]),
            spec=_spec(row),
            machine=_machine(row),
            engine=kind,
            device=row["machine_kind"] != "cpu",
            request=_request(row),
            ram_stated=bool(row["ram_gbps_measured"] or row["ram_gbps_theoretical"] or row["cpu"]),
        )
    except LocalrunError as error:
        raise Skipped(error.message) from error


def kind_of(row: Mapping[str, str]) -> str:
    """The class of a row, by where its bytes lie."""
    if row["engram_placement"] not in ("", "none") or row["model_key"] == "deepseek-v4.1-flash":
        return "engram"
    if row["placement"] == "streaming":
        return "streaming"
    if row["machine_kind"] in ("cpu", "unified"):
        return row["machine_kind"]
    return "all-gpu" if row["placement"] == "all_gpu" else "hybrid"


def source_of(url: str) -> str:
    """Who measured: a repository, or a site."""
    parts = urlsplit(url)
    path = [part for part in parts.path.split("/") if part]
    return "/".join(path[:2]) if parts.hostname == "github.com" else str(parts.hostname)


def _number(row: Mapping[str, str], column: str) -> float | None:
    text = row[column].strip()
    return float(text) if text else None


@cache
def _described(key: str, quant: str | None) -> ModelSpec:
    return describe_config(geometries.geometry(key), quant=quant)


def _spec(row: Mapping[str, str]) -> ModelSpec:
    """The model at the row's quantization, its size as the row states it."""
    quant = row["quant"]
    key = row["model_key"]
    if key not in geometries.names():
        raise Skipped(f"no geometry is called {key!r}")
    if quant in _NATIVE:
        return _described(key, None)
    size, bits = _number(row, "file_size_gb"), _number(row, "bits_per_weight_experts")
    if quant in _BITS:
        experts, rest = _BITS[quant]
        return _rebitted(_described(key, None), bits or experts, rest, size)
    try:
        spec = _described(key, _ALIASES.get(quant, quant))
    except LocalrunError as error:
        if size is None and bits is None:
            raise Skipped(f"quantization {quant!r} states neither bits nor size") from error
        return _rebitted(_described(key, None), bits or 4.5, 8.5, size)
    if size is None or spec.of("engram"):
        return spec
    return _scaled(spec, size * GB / spec.tensor_bytes)


def _rebitted(spec: ModelSpec, experts: float, rest: float, size: float | None) -> ModelSpec:
    """``spec`` with other bits a weight; where the size is known, the rest makes it up."""
    apart = ("engram", "draft", "vision")
    routed = sum(group.parameters for group in spec.of("experts"))
    others = sum(group.parameters for group in spec.groups if group.kind not in ("experts", *apart))
    tables = sum(group.bytes for group in spec.of("engram"))
    if size is not None and others:
        left = size * GB - tables - routed * experts / 8
        rest = min(16.0, max(3.0, 8 * left / others))
    return _with_groups(
        spec,
        [
            group
            if group.kind in apart
            else _resized(group, (experts if group.kind == "experts" else rest) / 8)
            for group in spec.groups
        ],
    )


def _resized(group: Group, bytes_each: float) -> Group:
    size = int(group.parameters * bytes_each)
    return _grown(group, size / group.bytes if group.bytes else 1.0, packed=bytes_each < 2)


def _scaled(spec: ModelSpec, factor: float) -> ModelSpec:
    return _with_groups(spec, [_grown(group, factor, packed=False) for group in spec.groups])


def _grown(group: Group, factor: float, *, packed: bool) -> Group:
    experts = group.experts
    if experts is not None:
        experts = Experts(experts.count, experts.used, int(experts.bytes * factor))
    size = int(group.bytes * factor)
    types = {name: int(part * factor) for name, part in group.types.items()}
    return replace(
        group,
        bytes=size,
        active_bytes=int(group.active_bytes * factor),
        types={"packed": size} if packed else types,
        experts=experts,
    )


def _with_groups(spec: ModelSpec, groups: list[Group]) -> ModelSpec:
    return replace(spec, groups=tuple(groups), tensor_bytes=sum(group.bytes for group in groups))


def _machine(row: Mapping[str, str]) -> Machine:
    disk = assembly.storage("nvme4")
    speed = _number(row, "disk_gbps")
    chip = row["cpu"].removeprefix("Apple ").replace(" ", "-").lower()
    if row["machine_kind"] == "unified" or row["cpu"].startswith("Apple "):
        slug = row["gpu_key"] if row["machine_kind"] == "unified" else chip
        part = find(slug, "mac", "apu", where="gpu_key")
        memory = _number(row, "ram_gb") or _number(row, "vram_gb")
        if memory is None:
            raise Skipped("the machine's memory is not stated")
        disk = assembly.internal_storage(part)
        machine = assembly.unified("row", part, int(memory * (1 << 30)), disk)
    else:
        machine = _discrete(row)
    if speed is not None:
        tiers = tuple(
            replace(tier, read=Speed(speed, "measured", "the row")) if tier.kind == "disk" else tier
            for tier in machine.tiers
        )
        machine = replace(machine, tiers=tiers)
    return machine


def _discrete(row: Mapping[str, str]) -> Machine:
    cards = []
    if row["machine_kind"] != "cpu":
        if not row["gpu_key"]:
            raise Skipped("the GPU is not stated")
        part = find(row["gpu_key"], "gpu", where="gpu_key")
        cards = [assembly.card(part)] * int(_number(row, "gpu_count") or 1)
    cpu = platform(row["cpu"])
    cores = int(_number(row, "cpu_cores") or 0)
    memory = _number(row, "ram_gb")
    if row["placement"] != "all_gpu" and memory is None and row["placement"] == "streaming":
        raise Skipped("the machine's memory is not stated")
    ram = Ram("row", int((memory or 512) * (1 << 30)), _ram_speed(row, cpu and cpu.gbps))
    channels = cpu.channels if cpu else 2
    count = cores or assembly.assumed_cores(channels)
    machine = assembly.discrete("row", cards, ram, assembly.storage("nvme4"), count)
    return replace(machine, compute=Compute(count, sockets=cpu.sockets if cpu else 1))


def _ram_speed(row: Mapping[str, str], platform_gbps: float | None) -> Speed:
    measured, theory = _number(row, "ram_gbps_measured"), _number(row, "ram_gbps_theoretical")
    if measured is not None:
        return Speed(measured, "measured", "the row")
    if theory is not None:
        return Speed(theory, "specified", "the row")
    if platform_gbps is not None:
        return Speed(platform_gbps, "assumed", "the platform of the row's CPU")
    return Speed(_DESKTOP_GBPS, "assumed", "a desktop: two channels of DDR5-5600")


def _request(row: Mapping[str, str]) -> PlanRequest:
    depth = int(_number(row, "n_depth") or 0)
    stated = int(_number(row, "n_ctx") or 0)
    prompt = depth or min(stated, 4096) or 512
    placement, value = row["placement"], _number(row, "placement_value")
    n_ctx = max(stated, depth + 640, prompt + 640)
    ubatch = _number(row, "ubatch")
    ubatch = _DEFAULT_UBATCH.get(row["engine"]) if ubatch is None or ubatch < 32 else ubatch
    cache_gb, memory = _number(row, "expert_cache_gb"), _number(row, "ram_gb")
    raised = row["machine_kind"] == "unified" and cache_gb is not None and memory is not None
    request = PlanRequest(
        # Who keeps so much of one pool has raised the system's limit (sysctl iogpu.wired_limit_mb).
        ram_bytes=int(memory * (1 << 30) * _RAISED) if raised and memory else None,
        n_ctx=n_ctx,
        workload=Workload(prompt=prompt, output=128),
        ubatch=None if ubatch is None else int(ubatch),
        expert_cache_bytes=None if cache_gb is None else int(cache_gb * GB),
        engram=_engram_place(row),
    )
    everything = 1 << 16
    match placement:
        case "all_gpu" | "resident":
            return replace(request, gpu_layers=everything)
        case "ngl" if value is not None:
            return replace(request, gpu_layers=int(value))
        case "layer_split_cpu" if value is not None:
            return replace(request, gpu_layers=int(value), cpu_expert_layers=0)
        case "ncmoe" | "experts_cpu" if value is not None:
            return replace(request, gpu_layers=everything, cpu_expert_layers=int(value))
    return request


def _engram_place(row: Mapping[str, str]) -> EngramPlace | None:
    place = row["engram_placement"]
    if place.startswith("disk"):
        return "disk"
    return "ram" if place == "ram" else None
