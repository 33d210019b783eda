"""Knows no HTTP: what mlx-lm can run, whether it is installed, and how a plan is loaded.

Nothing here imports mlx until ``probe``, ``calibrate`` or ``load`` is called.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

from localrun.backends.mlx.architectures import MODULES
from localrun.backends.report import BackendReport, Device
from localrun.errors import BackendMissingError, EngineError, ModelNotFoundError
from localrun.formats.header import Format
from localrun.hardware.measurements import DeviceFigures
from localrun.models.spec import ModelSpec
from localrun.plan.plan import KvType, Plan

if TYPE_CHECKING:
    from localrun.engine.runner import ModelRunner

NAME: Final = "mlx"
DISTRIBUTION: Final = "mlx-lm"
VERSION: Final = "0.32.2"
MLX_VERSION: Final = "0.32.4"
_NEEDED: Final = ("mlx", "mlx_lm", "tokenizers")
# Caches hold what the model computes in; nothing is quantized.
_KV_TYPES: Final[frozenset[KvType]] = frozenset({"f16", "bf16", "f32"})


def install_command(gpu: str = "cpu", *, rebuild: bool = False) -> str:
    """The command that installs both libraries; on a Mac with Metal, elsewhere for the CPU."""
    again = " --force-reinstall --no-deps" if rebuild else ""
    kind = "" if gpu == "metal" or sys.platform == "darwin" else "[cpu]"
    wanted = f"{shlex.quote(f'mlx{kind}=={MLX_VERSION}')} {DISTRIBUTION}=={VERSION}"
    return f"{shlex.quote(sys.executable)} -m pip install{again} {wanted}"


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
            from localrun.backends.mlx import library

            devices = library.devices()
        except (ImportError, OSError, RuntimeError, AttributeError) as error:
            problem = f"mlx does not load: {error}"
    return BackendReport(
        name=NAME,
        installed=installed is not None,
        version=installed,
        devices=devices,
        openmp=None,
        problem=problem,
        install=install_command(),
        optional=sys.platform != "darwin",
    )


def supports(spec: ModelSpec, format: Format) -> str | None:
    """None, or why the pinned mlx-lm cannot generate with this model."""
    if format != "safetensors":
        return f"reads safetensors files, not {format}"
    if spec.encoder:
        return "makes no embeddings, which is all that this model does"
    if spec.architecture not in MODULES:
        return f"{DISTRIBUTION} {VERSION} has no model of type {spec.architecture!r}"
    return None


def load(plan: Plan) -> ModelRunner:
    """Load a plan's model.

    Raises:
        BackendMissingError: a library is absent or does not load.
        ModelNotFoundError: a file of the plan is gone.
        HeaderError: a file is torn.
        OutOfMemoryError: the plan takes more than Metal's recommended working set.
        EngineError: mlx-lm has no such model, the tensors are not its own, or the plan asks for
            what it cannot do.
    """
    for file in plan.files:
        if not Path(file).is_file():
            raise ModelNotFoundError(
                f"{plan.ref}: {file} is no longer on this disk", hint=f"localrun pull {plan.ref}"
            )
    _require_library()
    execution = plan.execution
    if execution.kv_type not in _KV_TYPES:
        raise EngineError(
            f"--kv-type {execution.kv_type}: the mlx backend keeps keys and values as it computes",
            hint="leave --kv-type out, or choose another backend",
        )
    from localrun.backends.mlx.checkpoint import read_checkpoint
    from localrun.backends.mlx.library import limit_memory
    from localrun.backends.mlx.runner import MlxRunner

    gpu = execution.gpu_layers > 0
    if gpu:
        held = [budget for budget in plan.budgets if budget.tier == "unified"]
        limit_memory(sum(each.total for each in held), sum(each.compute for each in held))
    checkpoint = read_checkpoint(plan.files, execution, float32=not gpu)
    try:
        return MlxRunner(checkpoint, execution)
    except BaseException:
        checkpoint.close()
        raise


def calibrate(seconds: float, say: Callable[[str], None]) -> Mapping[str, DeviceFigures]:
    """What Metal's GPU gets through, by its name; empty where there is none.

    Raises:
        BackendMissingError: a library is absent or does not load.
    """
    _require_library()
    from localrun.backends.mlx.calibrate import measure

    return measure(seconds, say)


def _require_library() -> None:
    missing = _missing()
    if missing:
        raise BackendMissingError(f"{', '.join(missing)} is not installed", hint=install_command())
    try:
        import localrun.backends.mlx.library  # noqa: F401  loads mlx, or says why not
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise BackendMissingError(f"mlx does not load: {error}", hint=install_command()) from error


def _missing() -> list[str]:
    return [name.replace("_", "-") for name in _NEEDED if find_spec(name) is None]


def _version() -> str:
    try:
        return f"{version(DISTRIBUTION)} on mlx {version('mlx')}"
    except PackageNotFoundError:
        return "of unknown version"
