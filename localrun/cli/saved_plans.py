"""Knows no planner: a plan that was saved before, held against the model that it is to run.

What a file says is refused by its field before anything is loaded: a person may have edited it, or
written it for another model.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from localrun.cli.loading import Prepared, find, source_of
from localrun.cli.lookup import described
from localrun.cli.machines import this_machine
from localrun.config import Settings, settings
from localrun.errors import DoesNotFitError, UsageError
from localrun.plan.plan import Execution, Plan

if TYPE_CHECKING:
    from localrun.cli.lookup import Found
    from localrun.hardware.machine import Machine

_MOST_N_CTX = 1 << 31
_MOST_LAYERS = 1 << 20
_MOST_UBATCH = 1 << 20
_MOST_STAGING = 1 << 36
_MOST_OVERRIDES = 256
_LONGEST_OVERRIDE = 4096
# llama.cpp searches every tensor's name with them and goes back over each repeat: a group that
# repeats takes it hours, a few plain repeats nothing.
_REPEATED_GROUP = re.compile(r"\)[*+?{]")
_REPEAT = re.compile(r"[*+{]")
_MOST_REPEATS = 3


def prepare_saved(
    text: str, path: Path, here: Settings | None = None, *, learn: bool = False
) -> Prepared:
    """A model on disk with a plan that was saved before; nothing of it is decided anew. ``learn``:
    what its run shows is remembered.

    Raises:
        UsageError: not a plan, one for another model, or one that cannot be executed; names the
            field.
        ModelNotFoundError: the model is not on this disk.
    """
    from localrun.backends.registry import loader

    here = here or settings()
    saved = read_plan(path)
    found = described(find(text, here))
    _same_model(saved, found, text, path)
    machine = this_machine(here)[0]
    _executable(saved, found, machine, path)
    _overrides_meant(saved.execution, path)
    _has_room(saved.execution, found, machine, path)
    model = replace(saved.model, ref=found.ref, files=source_of(found, ()).files)
    made = replace(saved, model=model)
    return Prepared(found, made, loader(saved.backend), None, machine, learns=learn)


def read_plan(path: Path) -> Plan:
    """Raises UsageError naming the file and the field."""
    hint = "`localrun plan REF --json > FILE` makes one"
    try:
        return Plan.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UsageError(f"--plan {path}: {reason}", hint=hint) from error
    except UsageError as error:
        raise UsageError(f"--plan {path}: {error.message}", hint=hint) from error


def _same_model(saved: Plan, found: Found, text: str, path: Path) -> None:
    now = source_of(found, ()).files
    differences = (
        ("model.architecture", saved.model.architecture, found.spec.architecture),
        ("model.format", saved.model.format, found.format),
        ("model.tensors", saved.model.tensors, found.spec.tensors),
        ("model.total_bytes", saved.model.total_bytes, found.spec.tensor_bytes),
        ("model.files", [f.bytes for f in saved.model.files] or None, [f.bytes for f in now]),
    )
    for field, planned, real in differences:
        if planned is not None and planned != real:
            raise UsageError(
                f"--plan {path}: {field} is {planned}, {found.ref} has {real}: it is a plan for "
                f"{saved.ref}",
                hint=f"`localrun plan {text} --json > {path}` makes one for this model",
            )


def _executable(saved: Plan, found: Found, machine: Machine, path: Path) -> None:
    """Hold what a runner would otherwise find out after the load, or not at all."""
    from localrun.backends import registry
    from localrun.plan.engines import engine

    if not saved.fits:
        raise UsageError(f"--plan {path}: fits is false", hint="plan again within what there is")
    if saved.backend not in registry.names():
        raise UsageError(
            f"--plan {path}: backend is {saved.backend!r}, this version runs "
            f"{', '.join(registry.names())}",
            hint="plan again with --backend",
        )
    refusal = registry.backend(saved.backend).supports(found.spec, found.format)
    if refusal is not None:
        raise UsageError(
            f"--plan {path}: backend is {saved.backend!r}, which {refusal}",
            hint="plan again with --backend",
        )
    told = saved.execution
    kind = engine(saved.backend).on(device=told.gpu_layers > 0)
    if not kind.keeps(told.kv_type) or (told.kv_type == "native" and not kind.native_kv):
        raise UsageError(
            f"--plan {path}: execution.kv_type is {told.kv_type}, which {saved.backend} does not "
            "store",
            hint="plan again with --kv-type",
        )
    if told.numerics and told.numerics not in kind.numerics:
        raise UsageError(
            f"--plan {path}: execution.numerics is {told.numerics!r}, which {saved.backend} does "
            "not know",
            hint="plan again with --numerics",
        )
    # Threads without a core wait for each other by turning: the answer would never come.
    cores = max(1, machine.cpu.logical)
    bounds = (
        ("n_ctx", told.n_ctx, 1, _MOST_N_CTX),
        ("parallel", told.parallel, 1, 256),
        ("ubatch", told.ubatch, 1, min(_MOST_UBATCH, max(1, told.n_ctx * told.parallel))),
        ("threads", told.threads, 1, cores),
        ("threads_min", told.threads_min, 1, told.threads),
        ("threads_max", told.threads_max, told.threads, cores),
        ("gpu_layers", told.gpu_layers, 0, _MOST_LAYERS),
        ("slots_per_layer", told.slots_per_layer, 0, _MOST_LAYERS),
        ("card_slots_per_layer", told.card_slots_per_layer, 0, told.slots_per_layer),
        ("staging_bytes", told.staging_bytes, 0, _MOST_STAGING),
        ("engram_cache_bytes", told.engram_cache_bytes, 0, _MOST_STAGING),
    )
    for field, value, least, most in bounds:
        if not least <= value <= most:
            raise UsageError(
                f"--plan {path}: execution.{field} is {value}, from {least} to {most} is possible",
                hint="plan again, with a flag for what should be different",
            )
    kept, there = told.slots_per_layer, _most_experts(found)
    if 0 < kept < there and not told.streams:
        raise UsageError(
            f"--plan {path}: execution.slots_per_layer is {kept} of {there} experts, and "
            "execution.streams is false: nothing says where the others come from",
            hint="plan again: it was made by an older version, or changed",
        )
    for at, folder in enumerate(told.mirrors):
        if not Path(folder).is_dir():
            raise UsageError(
                f"--plan {path}: execution.mirrors.{at} is {folder!r}, no directory here",
                hint="plan again with --mirror, or without",
            )


def _most_experts(found: Found) -> int:
    """Of a layer."""
    return max((each.experts.count for each in found.spec.groups if each.experts), default=0)


def _overrides_meant(told: Execution, path: Path) -> None:
    """Hold expressions that the runner's library would refuse, or search for without end."""
    if len(told.tensor_overrides) > _MOST_OVERRIDES:
        raise UsageError(
            f"--plan {path}: execution.tensor_overrides has {len(told.tensor_overrides)} pairs, "
            f"{_MOST_OVERRIDES} are most"
        )
    for at, (pattern, _) in enumerate(told.tensor_overrides):
        problem = _problem(pattern)
        if problem:
            raise UsageError(
                f"--plan {path}: execution.tensor_overrides.{at}: {problem}",
                hint=r"such as blk\.(30|31)\.ffn_(gate|up|down)_exps",
            )


def _problem(pattern: str) -> str:
    if len(pattern) > _LONGEST_OVERRIDE or not pattern.isprintable():
        return f"not a line of at most {_LONGEST_OVERRIDE} characters"
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        return f"{pattern[:80]!r} is no regular expression ({error})"
    if _REPEATED_GROUP.search(pattern) or len(_REPEAT.findall(pattern)) > _MOST_REPEATS:
        return f"{pattern[:80]!r} repeats a group, or more than {_MOST_REPEATS} times"
    return ""


def _has_room(told: Execution, found: Found, machine: Machine, path: Path) -> None:
    """Refuse a cache and buffers larger than all memory before anybody asks the system for them.

    Raises:
        DoesNotFitError: weights left aside, which may be mapped.
    """
    from localrun.plan.memory import llamacpp_memory

    parts = llamacpp_memory(found.spec, replace(told, n_ctx=told.n_ctx * told.parallel)).values()
    streamed = told.staging_bytes + told.engram_cache_bytes
    needed = streamed + sum(part.needed - part.weights for part in parts)
    there = sum(tier.capacity_bytes for tier in machine.tiers if tier.kind != "disk")
    if needed > there:
        raise DoesNotFitError(
            f"--plan {path}: execution.n_ctx {told.n_ctx}, ubatch {told.ubatch}, staging_bytes "
            f"{told.staging_bytes} and engram_cache_bytes {told.engram_cache_bytes} take "
            f"{needed / (1 << 30):.1f} GiB beside the weights, the machine has "
            f"{there / (1 << 30):.1f} GiB",
            hint="plan again within what there is",
            shortfall={"ram": needed - there},
        )
