"""Knows no arithmetic: the Plan as a value, and its JSON.

A runner executes exactly this value; nothing else decides (DESIGN: the plan is the product).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

from localrun.errors import UsageError

PLAN_VERSION = 1
KvType = Literal["f16", "bf16", "f32", "q8_0", "q4_0", "native"]
EngramPlace = Literal["ram", "disk", "vram", "unified"]


@dataclass(frozen=True, slots=True)
class Workload:
    """What predictions are made for: a prompt of ``prompt`` tokens answered with ``output``.

    ``depth`` tokens of context are there before the prompt.
    """

    prompt: int = 2048
    output: int = 512
    depth: int = 0


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What the user fixed; ``None`` leaves the choice to the planner. Sizes in bytes.

    ``disk_read`` is bytes a second. ``gpu_layers`` counts whole layers on GPUs,
    ``cpu_expert_layers`` layers of which only the experts stay in RAM, ``expert_cache_bytes`` the
    memory that streamed experts are kept in. ``numerics`` is how exactly torch computes;
    ``approximate_prefill`` lets a prompt pass only the layers that keep something of it.
    ``mirrors`` are directories with copies of the files, on disks of their own.
    """

    n_ctx: int | None = None
    kv_type: KvType | None = None
    threads: int | None = None
    backend: str | None = None
    vram_bytes: int | None = None
    ram_bytes: int | None = None
    disk_read: int | None = None
    parallel: int = 1
    workload: Workload = Workload()
    ubatch: int | None = None
    gpu_layers: int | None = None
    cpu_expert_layers: int | None = None
    expert_cache_bytes: int | None = None
    engram: EngramPlace | None = None
    numerics: str | None = None
    approximate_prefill: bool = False
    mirrors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """``path`` is absolute for what is on disk, otherwise the name in its repository."""

    path: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Parameters:
    """Counts. ``engram`` are the parameters of n-gram tables."""

    total: int
    active: int
    engram: int


@dataclass(frozen=True, slots=True)
class Shares:
    """Fractions of the parameters: n-gram tables (memory), routed experts, everything else."""

    memory: float
    experts: float
    dense: float


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """Which model a plan is for. ``files`` holds the weights, the first shard first. An ``encoder``
    makes embeddings only."""

    ref: str
    architecture: str
    format: str = "gguf"
    total_bytes: int = 0
    tensors: int = 0
    layers: int = 0
    quantization: str = ""
    parameters: Parameters = Parameters(0, 0, 0)
    shares: Shares = Shares(0.0, 0.0, 0.0)
    files: tuple[PlannedFile, ...] = ()
    header_bytes_read: int = 0
    encoder: bool = False


@dataclass(frozen=True, slots=True)
class PlannedTier:
    """A tier as the plan saw it; speeds in GB/s with their basis."""

    tier: str
    capacity_bytes: int
    usable_bytes: int
    read_gbps: float
    basis: str
    device: str = ""


@dataclass(frozen=True, slots=True)
class PlannedMachine:
    name: str = "auto"
    tiers: tuple[PlannedTier, ...] = ()
    compute: Mapping[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Execution:
    """Parameters a runner is loaded with.

    ``n_ctx`` is the context of each of ``parallel`` sequences. ``threads`` is where the engine
    starts, its measurements move it from ``threads_min`` to ``threads_max``.
    ``gpu_layers`` counts layers on devices, the output head being one more. ``tensor_overrides``
    are (regular expression over tensor names, tier) pairs, the first that matches decides;
    ``tensor_split`` is the share of the offloaded layers by device. ``slots_per_layer`` counts the
    experts that are kept of each layer whose experts are kept singly, ``card_slots_per_layer``
    those of them on devices; 0 where all experts lie with their layer. ``streams`` says that the
    others are read from disk, in ``staging_bytes`` of memory. ``mirrors`` are directories that hold
    copies of the files, on other disks. Of n-gram tables on disk ``engram_cache_bytes`` are kept of
    rows that were read, and with ``engram_scales`` all scales that are tensors of their own.
    ``numerics`` is how exactly is computed; the empty one is the backend's default.
    """

    n_ctx: int
    ubatch: int
    kv_type: KvType
    threads: int
    threads_max: int
    mmap: bool
    gpu_layers: int
    flash_attention: bool = True
    parallel: int = 1
    kv_on_device: bool = True
    tensor_split: tuple[float, ...] = ()
    tensor_overrides: tuple[tuple[str, str], ...] = ()
    slots_per_layer: int = 0
    engram: str = ""
    threads_min: int = 1
    numerics: str = ""
    approximate_prefill: bool = False
    card_slots_per_layer: int = 0
    streams: bool = False
    staging_bytes: int = 0
    mirrors: tuple[str, ...] = ()
    engram_scales: bool = False
    engram_cache_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Placement:
    """``bytes`` of a kind of tensors on a tier. ``count`` is layers, for experts their number."""

    group: str
    tier: str
    bytes: int
    count: int


@dataclass(frozen=True, slots=True)
class Budget:
    """Bytes planned on one tier against its limit."""

    tier: str
    weights: int
    kv: int
    compute: int
    limit: int
    expert_cache: int = 0
    overhead: int = 0
    total: int = -1

    def __post_init__(self) -> None:
        """``total`` is in the JSON for its readers; what is given must be the sum."""
        parts = self.weights + self.expert_cache + self.kv + self.compute + self.overhead
        if self.total == -1:
            object.__setattr__(self, "total", parts)
        elif self.total != parts:
            raise ValueError(f"total {self.total} is not the sum of its parts, {parts}")


@dataclass(frozen=True, slots=True)
class Range:
    """An estimate with its band."""

    low: float
    mid: float
    high: float


NOTHING = Range(0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class EngramUse:
    """What n-gram tables cost a decoded token."""

    tier: str = ""
    rows_per_token: int = 0
    bytes_per_token: int = 0
    reads_per_token: int = 0


@dataclass(frozen=True, slots=True)
class Prediction:
    """Speeds for the request's workload. ``cold`` and ``steady`` are decode in tokens a second
    before and after caches have filled; equal where nothing is cached. ``terms_ms`` are the parts
    of one decoded token, ``prefill_terms_ms`` those of one prompt chunk. An encoder decodes
    nothing: its ``prefill_tps`` are tokens of texts, ``ttft_s`` is one text of the workload's
    length. Terms have the names of ``plan.terms``; ``terms_bytes`` is what one token reads by the
    same. ``runs`` counts those of this machine that the speeds rest on, of decoding and of prompts
    the fewer; 0 where none was like this plan."""

    decode_tps: Range = NOTHING
    prefill_tps: Range = NOTHING
    ttft_s: Range = NOTHING
    cold: Range = NOTHING
    steady: Range = NOTHING
    bound_by: str = ""
    terms_ms: Mapping[str, float] = field(default_factory=dict)
    prefill_terms_ms: Mapping[str, float] = field(default_factory=dict)
    terms_bytes: Mapping[str, int] = field(default_factory=dict)
    runs: int = 0


@dataclass(frozen=True, slots=True)
class WhatIf:
    change: str
    decode_tps: float


@dataclass(frozen=True, slots=True)
class Plan:
    """Where every byte of a model lies, how it is run, and how fast that will be."""

    model: PlannedModel
    backend: str
    execution: Execution
    machine: PlannedMachine = PlannedMachine()
    request: PlanRequest = PlanRequest()
    backend_reason: str = ""
    fits: bool = True
    verdict: str = ""
    placements: tuple[Placement, ...] = ()
    budgets: tuple[Budget, ...] = ()
    bytes_per_token: Mapping[str, int] = field(default_factory=dict)
    engram: EngramUse = EngramUse()
    prediction: Prediction = Prediction()
    warnings: tuple[str, ...] = ()
    what_if: tuple[WhatIf, ...] = ()
    version: int = PLAN_VERSION

    @property
    def ref(self) -> str:
        return self.model.ref

    @property
    def files(self) -> tuple[str, ...]:
        """Paths of the weights, the first shard first."""
        return tuple(file.path for file in self.model.files)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Plan:
        """Read a plan back.

        Raises:
            UsageError: the document is not a plan of this version; names the field.
        """
        from localrun.plan.wire import read_plan

        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"plan: not a JSON document ({error})") from error
        if not isinstance(document, dict):
            raise UsageError(f"plan: a {type(document).__name__}, not an object")
        if document.get("version") != PLAN_VERSION:
            raise UsageError(
                f"plan: version {document.get('version')!r}, this program reads {PLAN_VERSION}",
                hint="make the plan again with `localrun plan REF --json`",
            )
        return read_plan(text)
