"""Does no I/O: chooses context, threads and placement from what the machine has free.

The rules are few on purpose: weights and KV must fit what is available, with a reserve for
everything else that runs on a person's machine. Speeds are not predicted here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from localrun.errors import DoesNotFitError, UsageError
from localrun.hardware.machine import Machine
from localrun.models.spec import ModelSpec
from localrun.plan.plan import (
    Budget,
    Execution,
    KvType,
    Plan,
    PlannedFile,
    PlannedModel,
    PlanRequest,
)

MIB = 1 << 20
# A person's machine runs other things; this much of free memory is left to them.
RAM_RESERVE_BYTES = 512 * MIB
VRAM_RESERVE_BYTES = 512 * MIB
# KV is allocated whole at load. A longer context is one flag away, and costs memory at once.
DEFAULT_N_CTX = 32_768
FALLBACK_N_CTX = 4096
SMALLEST_N_CTX = 512
CONTEXT_STEP = 256
UBATCH = 512
# Scratch for activations besides the logits rows of one micro-batch.
SCRATCH_BYTES = 64 * MIB
# Bytes per element of a KV type against the 16 bits that ModelSpec counts; Q8_0 packs 32 elements
# in 34 bytes, Q4_0 in 18 (ggml-common.h).
KV_RATIO: dict[KvType, float] = {
    "f16": 1,
    "bf16": 1,
    "f32": 2,
    "q8_0": 34 / 64,
    "q4_0": 18 / 64,
    "native": 1,
}


@dataclass(frozen=True, slots=True)
class Source:
    """What is planned: the canonical reference, its files and the runner chosen for them.

    ``device`` is true when that runner was built for the machine's GPU.
    """

    ref: str
    files: tuple[str, ...]
    backend: str
    device: bool


def plan(spec: ModelSpec, machine: Machine, request: PlanRequest, source: Source) -> Plan:
    """Decide how ``spec`` runs on ``machine`` within ``request``.

    Raises:
        DoesNotFitError: with the bytes needed and the bytes there are.
        UsageError: a flag that no plan can satisfy.
    """
    _check(request, machine)
    ram_limit = request.ram_bytes
    if ram_limit is None:
        ram_limit = max(0, machine.memory.available - RAM_RESERVE_BYTES)
    vram_limit = _vram_limit(machine, request) if source.device else 0
    compute = _compute_bytes(spec)
    kv_per_token = int(spec.kv_bytes_per_token * KV_RATIO[request.kv_type or "f16"])
    n_ctx = _context(spec, request, ram_limit + vram_limit, kv_per_token, compute)
    kv = n_ctx * kv_per_token
    gpu_layers, on_device = _offload(spec, kv, vram_limit, compute)
    budgets = _budgets(spec.tensor_bytes, kv, compute, on_device, (ram_limit, vram_limit))
    _fits(budgets, request, n_ctx)
    threads = request.threads or max(1, min(machine.cpu.usable, machine.cpu.cores))
    return Plan(
        model=PlannedModel(
            ref=source.ref,
            architecture=spec.architecture,
            files=tuple(PlannedFile(path, 0) for path in source.files),
        ),
        backend=source.backend,
        execution=Execution(
            n_ctx=n_ctx,
            ubatch=min(UBATCH, n_ctx),
            kv_type=request.kv_type or "f16",
            threads=threads,
            threads_max=threads,
            mmap=True,
            gpu_layers=gpu_layers,
        ),
        budgets=budgets,
        warnings=_warnings(spec, n_ctx, source, machine),
    )


def _check(request: PlanRequest, machine: Machine) -> None:
    if request.n_ctx is not None and request.n_ctx < 1:
        raise UsageError(f"--ctx {request.n_ctx}: a context holds at least one token")
    if request.threads is not None and not 1 <= request.threads <= machine.cpu.logical:
        raise UsageError(f"--threads {request.threads}: this machine has {machine.cpu.logical}")


def _vram_limit(machine: Machine, request: PlanRequest) -> int:
    if request.vram_bytes is not None:
        return request.vram_bytes
    free = max((gpu.free for gpu in machine.gpus), default=0)
    return max(0, free - VRAM_RESERVE_BYTES)


def _compute_bytes(spec: ModelSpec) -> int:
    """Logits rows of one micro-batch in float32, and scratch."""
    vocabulary = spec.tokenizer.vocabulary if spec.tokenizer else 0
    return UBATCH * vocabulary * 4 + SCRATCH_BYTES


def _context(
    spec: ModelSpec, request: PlanRequest, limit: int, kv_per_token: int, compute: int
) -> int:
    if request.n_ctx is not None:
        return request.n_ctx
    wanted = min(spec.n_ctx_train or FALLBACK_N_CTX, DEFAULT_N_CTX)
    if kv_per_token == 0:
        return wanted
    room = (limit - spec.tensor_bytes - compute) // kv_per_token // CONTEXT_STEP * CONTEXT_STEP
    return min(wanted, max(room, SMALLEST_N_CTX))


def _offload(spec: ModelSpec, kv: int, vram_limit: int, compute: int) -> tuple[int, float]:
    """Layers on the device (the head is one more) and the fraction of bytes that go with them."""
    layers = spec.layers + 1
    per_layer = (spec.tensor_bytes + kv) / layers
    room = vram_limit - compute
    if room <= 0 or per_layer <= 0:
        return 0, 0.0
    gpu_layers = min(layers, int(room / per_layer))
    return gpu_layers, gpu_layers / layers


def _budgets(
    weights: int, kv: int, compute: int, on_device: float, limits: tuple[int, int]
) -> tuple[Budget, ...]:
    ram_limit, vram_limit = limits
    device_weights, device_kv = int(weights * on_device), int(kv * on_device)
    ram = Budget("ram", weights - device_weights, kv - device_kv, compute, ram_limit)
    if on_device == 0:
        return (ram,)
    return (Budget("vram:0", device_weights, device_kv, compute, vram_limit), ram)


def _fits(budgets: Sequence[Budget], request: PlanRequest, n_ctx: int) -> None:
    flags = {"ram": request.ram_bytes, "vram:0": request.vram_bytes}
    for budget in budgets:
        asked = flags.get(budget.tier) is not None
        free = f"allowed by --{budget.tier.partition(':')[0]}" if asked else "free"
        if budget.total > budget.limit:
            raise DoesNotFitError(
                f"{budget.tier}: {budget.total / 1e9:.2f} GB are needed "
                f"({budget.weights / 1e9:.2f} weights, {budget.kv / 1e9:.2f} KV for {n_ctx} "
                f"tokens, {budget.compute / 1e9:.2f} compute), {budget.limit / 1e9:.2f} GB are "
                f"{free}"
            )


def _warnings(spec: ModelSpec, n_ctx: int, source: Source, machine: Machine) -> tuple[str, ...]:
    warnings = []
    if spec.n_ctx_train and n_ctx > spec.n_ctx_train:
        warnings.append(
            f"context {n_ctx} is longer than the {spec.n_ctx_train} the model was trained for"
        )
    if spec.kv_bytes_per_token == 0:
        warnings.append(f"KV of architecture {spec.architecture!r} is not known and not counted")
    if machine.gpus and not source.device:
        warnings.append(
            f"{machine.gpus[0].name} is not used: {source.backend} is built for the CPU only "
            "(`localrun doctor` prints the command that fixes it)"
        )
    return tuple(warnings)
