"""Knows no HTTP: what the torch backend can run, whether torch is installed, and how a plan loads.

Nothing here imports torch until ``probe``, ``calibrate`` or ``load`` is called.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

from localrun.backends.report import BackendReport, Device
from localrun.backends.torch.architectures import FROM_GGUF, MODULES
from localrun.errors import BackendMissingError, EngineError, ModelNotFoundError
from localrun.formats.header import Format
from localrun.hardware.machine import HostFigures
from localrun.hardware.measurements import DeviceFigures
from localrun.models.spec import ModelSpec
from localrun.plan.plan import Execution, KvType, Plan

if TYPE_CHECKING:
    import torch

    from localrun.engine.runner import ModelRunner

NAME: Final = "torch"
VERSION: Final = "2.13.0"
_NEEDED: Final = ("torch", "tokenizers")
_KV_TYPES: Final[frozenset[KvType]] = frozenset({"f16", "bf16", "f32", "native"})
_TABLES: Final = ("", "ram", "unified", "disk", "vram")
_SIMULATED: Final = "simulated"
_BROKEN: Final = (ImportError, OSError, RuntimeError, AttributeError)


def install_command(gpu: str = "cpu", *, rebuild: bool = False) -> str:
    """The command that installs torch as its makers publish it: with CUDA on Linux."""
    again = " --force-reinstall" if rebuild else ""
    return f"{shlex.quote(sys.executable)} -m pip install{again} torch=={VERSION}"


def probe() -> BackendReport:
    """What is installed, loaded to be sure that it works."""
    missing = _missing()
    installed = None if missing else _version()
    devices: tuple[Device, ...] = ()
    problem: str | None = None
    if missing:
        problem = f"{', '.join(missing)} is not installed"
    else:
        try:
            from localrun.backends.torch import library

            devices = library.devices()
        except _BROKEN as error:
            problem = f"torch does not load: {error}"
    return BackendReport(
        name=NAME,
        installed=installed is not None,
        version=installed,
        devices=devices,
        openmp=None,
        problem=problem,
        install=install_command(rebuild=not missing and problem is not None),
        optional=True,
    )


def supports(spec: ModelSpec, format: Format) -> str | None:
    """None, or why no file of ``architectures`` computes this model."""
    if spec.encoder:
        return "makes no embeddings, which is all that this model does"
    known = MODULES if format == "safetensors" else FROM_GGUF
    if spec.architecture not in known:
        return f"has no model of type {spec.architecture!r} in {format} files"
    return None


def load(plan: Plan) -> ModelRunner:
    """Load a plan's model.

    Raises:
        BackendMissingError: torch is absent or does not load.
        ModelNotFoundError: a file of the plan is gone.
        HeaderError, UsageError: a file is torn, a tensor is missing or too many or has another
            shape, a field of the config is not understood.
        OutOfMemoryError: there is too little memory.
        EngineError: the plan asks for what this version cannot do.
    """
    for file in plan.files:
        if not Path(file).is_file():
            raise ModelNotFoundError(
                f"{plan.ref}: {file} is no longer on this disk", hint=f"localrun pull {plan.ref}"
            )
    _require_library()
    _executable(plan)
    import torch

    from localrun.backends.torch.loading import Singly, read_model
    from localrun.backends.torch.model import Setup
    from localrun.backends.torch.numerics import numerics
    from localrun.backends.torch.runner import TorchRunner
    from localrun.config import settings

    told = plan.execution
    device = _device(plan)
    setup = Setup(
        numerics=numerics(told.numerics),
        device=device,
        capacity=told.n_ctx,
        kv=told.kv_type,
        # Beside a card the host computes with the experts that lie in its memory.
        threads=told.threads if device.type == "cpu" or told.slots_per_layer else 0,
        engram=told.engram or "ram",
        approximate_prefill=told.approximate_prefill,
        cache_device=None if told.kv_on_device else torch.device("cpu"),
        hot_rows=told.engram_cache_bytes,
        scales_in_memory=told.engram_scales,
        check_rows=settings().check_rows,
    )
    singly = None
    if told.streams or (told.slots_per_layer and device.type != "cpu"):
        singly = Singly(
            told.slots_per_layer, told.card_slots_per_layer, told.staging_bytes, told.mirrors
        )
    loaded = read_model(plan.files, setup, singly)
    try:
        return TorchRunner(loaded, plan, check_numbers=settings().check_numbers)
    except BaseException:
        loaded.close()
        raise


def calibrate(seconds: float, say: Callable[[str], None]) -> Mapping[str, DeviceFigures]:
    """What CUDA cards get through, by the name that their driver gives them.

    Raises:
        BackendMissingError: torch is absent or does not load.
    """
    _require_library()
    from localrun.backends.torch.calibrate import measure

    return measure(seconds, say)


def calibrate_host(seconds: float, threads: int, say: Callable[[str], None]) -> HostFigures:
    """What torch takes on the CPU beside libggml's products.

    Raises:
        BackendMissingError: torch is absent or does not load.
    """
    _require_library()
    from localrun.backends.torch.calibrate_host import measure_host

    return measure_host(seconds, threads, say)


def _executable(plan: Plan) -> None:
    """Hold that all layers are computed by one device.

    Raises:
        EngineError: a card and the host would share the layers, rows are kept in an unknown type or
            tables in an unknown place.
    """
    told = plan.execution
    if told.kv_type not in _KV_TYPES:
        raise EngineError(
            f"--kv-type {told.kv_type}: the torch backend keeps rows as released or in floats",
            hint="leave --kv-type out, or choose another backend",
        )
    if told.engram not in _TABLES:
        raise EngineError(
            f"{plan.ref}: this plan keeps n-gram tables in {told.engram!r}: torch reads them from "
            f"{' or '.join(filter(None, _TABLES))}",
            hint="plan again",
        )
    layers = plan.model.layers
    if 0 < told.gpu_layers <= layers and not _simulated(plan):
        on_card = told.gpu_layers - 1
        raise EngineError(
            f"{plan.ref}: this plan computes {on_card} of {layers} layers and the head on a card, "
            "the others on the host: the torch backend has all layers on one of them",
            hint="plan again; --vram 0 computes everything on the CPU",
        )


def _simulated(plan: Plan) -> bool:
    return any(tier.device == _SIMULATED for tier in plan.machine.tiers)


def _device(plan: Plan) -> torch.device:
    """Where the plan computes. A card that was declared is a part of RAM, and the CPU computes.

    Raises:
        EngineError: a card is planned with, and torch finds none.
    """
    import torch

    if not _on_card(plan.execution) or _simulated(plan):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise EngineError(
            f"{plan.ref}: planned for a GPU, and torch finds none that it was built for",
            hint="plan again with --vram 0, or see `localrun doctor`",
        )
    return torch.device("cuda", 0)


def _on_card(told: Execution) -> bool:
    return told.gpu_layers > 0


def _require_library() -> None:
    missing = _missing()
    if missing:
        raise BackendMissingError(f"{', '.join(missing)} is not installed", hint=install_command())
    try:
        import localrun.backends.torch.library  # noqa: F401  loads torch, or says why not
    except _BROKEN as error:
        problem = f"torch does not load: {error}"
        raise BackendMissingError(problem, hint=install_command(rebuild=True)) from error


def _missing() -> list[str]:
    return [name for name in _NEEDED if find_spec(name) is None]


def _version() -> str:
    try:
        return version("torch")
    except PackageNotFoundError:
        return "of unknown version"
