"""Knows no arithmetic: the Plan as a value, and its JSON.

A runner executes exactly this value; nothing else decides (DESIGN: the plan is the product).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from localrun.errors import UsageError

PLAN_VERSION = 1
KvType = Literal["f16", "bf16", "f32", "q8_0", "q4_0"]


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What the user fixed; ``None`` leaves the choice to the planner."""

    n_ctx: int | None = None
    kv_type: KvType = "f16"
    threads: int | None = None
    backend: str | None = None
    vram_bytes: int | None = None
    ram_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Execution:
    """Parameters a runner is loaded with.

    ``threads`` is where the engine starts, ``threads_max`` how far its measurements may raise it.
    ``gpu_layers`` counts layers on the device, the output head being one more.
    """

    n_ctx: int
    ubatch: int
    kv_type: KvType
    threads: int
    threads_max: int
    mmap: bool
    gpu_layers: int
    flash_attention: bool = True


@dataclass(frozen=True, slots=True)
class Budget:
    """Bytes planned on one tier against its limit."""

    tier: str
    weights: int
    kv: int
    compute: int
    limit: int

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.compute


@dataclass(frozen=True, slots=True)
class Plan:
    """Where a model lies and how it is run. ``files`` are absolute paths, the first shard first."""

    ref: str
    files: tuple[str, ...]
    architecture: str
    backend: str
    execution: Execution
    budgets: tuple[Budget, ...] = ()
    warnings: tuple[str, ...] = ()
    version: int = field(default=PLAN_VERSION)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Plan:
        """Read a plan back.

        Raises:
            UsageError: the document is not a plan of this version.
        """
        try:
            document: dict[str, Any] = json.loads(text)
            if document.get("version") != PLAN_VERSION:
                raise UsageError(
                    f"plan: version {document.get('version')!r}, this program reads {PLAN_VERSION}"
                )
            return Plan(
                ref=document["ref"],
                files=tuple(document["files"]),
                architecture=document["architecture"],
                backend=document["backend"],
                execution=Execution(**document["execution"]),
                budgets=tuple(Budget(**budget) for budget in document["budgets"]),
                warnings=tuple(document["warnings"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"plan: not a plan document ({error})") from error
