"""Knows no HTTP: what llama.cpp can run, whether it is installed, and how a plan is loaded.

Nothing here imports llama_cpp until ``probe`` or ``load`` is called.
"""

from __future__ import annotations

import ctypes
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

from localrun.backends.llamacpp.architectures import ENCODERS, GENERATIVE
from localrun.backends.report import BackendReport, Device
from localrun.errors import (
    BackendMissingError,
    EngineError,
    ModelNotFoundError,
    OutOfMemoryError,
)
from localrun.formats.header import Format
from localrun.hardware.measurements import DeviceFigures
from localrun.models.spec import ModelSpec
from localrun.plan.plan import Plan

if TYPE_CHECKING:
    from localrun.engine.runner import ModelRunner

NAME: Final = "llama.cpp"
DISTRIBUTION: Final = "llama-cpp-python"
VERSION: Final = "0.3.36"
_BUILD_FLAGS: Final = {
    "cpu": "",
    "cuda": " -DGGML_CUDA=ON",
    "rocm": " -DGGML_HIP=ON",
    "level-zero": " -DGGML_VULKAN=ON",
    "metal": " -DGGML_METAL=ON",
}


def install_command(gpu: str = "cpu", *, rebuild: bool = False) -> str:
    """The command that builds the library for ``gpu``, a ``Gpu.kind`` of the machine.

    ``rebuild`` replaces an installed one; pip would otherwise leave it, or take its cached wheel.

    OpenMP is off because its waiting threads lose most of the speed when another program keeps a
    core busy (bench/METHODOLOGY.md).
    """
    again = " --force-reinstall --no-cache-dir --no-deps" if rebuild else ""
    flags = f"-DGGML_OPENMP=OFF{_BUILD_FLAGS.get(gpu, '')}"
    pip = f"{shlex.quote(sys.executable)} -m pip"
    return f'CMAKE_ARGS="{flags}" {pip} install{again} {DISTRIBUTION}=={VERSION}'


def probe() -> BackendReport:
    """What is installed, loaded to be sure that it works."""
    installed = _version()
    devices: tuple[Device, ...] = ()
    openmp: bool | None = None
    problem: str | None = None
    if installed is None:
        problem = f"{DISTRIBUTION} is not installed"
    else:
        try:
            from localrun.backends.llamacpp import library

            devices, openmp = library.devices(), library.openmp()
        except (ImportError, OSError, RuntimeError, AttributeError) as error:
            problem = f"{DISTRIBUTION} {installed} does not load: {error}"
    return BackendReport(
        name=NAME,
        installed=installed is not None,
        version=installed,
        devices=devices,
        openmp=openmp,
        problem=problem,
        install=install_command(),
    )


def supports(spec: ModelSpec, format: Format) -> str | None:
    """None, or why the pinned llama.cpp can neither generate with this model nor embed texts."""
    if format != "gguf":
        if spec.architecture in ENCODERS:
            return f"reads GGUF files, not {format}: `localrun quantize SRC OUT.gguf --type F16`"
        return f"reads GGUF files, not {format}"
    if spec.architecture not in GENERATIVE | ENCODERS:
        return f"{DISTRIBUTION} {VERSION} does not generate with architecture {spec.architecture!r}"
    return None


def load(plan: Plan) -> ModelRunner:
    """Load a plan's model. The files' headers have been checked by whoever made the plan.

    Raises:
        BackendMissingError: the library is absent or does not load.
        ModelNotFoundError: a file of the plan is gone.
        OutOfMemoryError: the library got no memory, with what it asked for.
        EngineError: the library refuses the model, with the first error it logged, or the plan
            asks for what it cannot do.
    """
    _require(plan)
    from localrun.backends.llamacpp.buffers import read_buffers
    from localrun.backends.llamacpp.parameters import parameters
    from localrun.backends.llamacpp.runner import LlamaCppRunner

    encoder = plan.model.architecture in ENCODERS
    model, context, log = opened(plan.files, *parameters(plan.execution, encoder=encoder))
    if encoder:
        from localrun.backends.llamacpp.encoder import EncoderRunner

        return EncoderRunner(model, context, read_buffers(log), plan.execution)
    return LlamaCppRunner(model, context, read_buffers(log), plan.execution)


def compute_buffers(plan: Plan) -> dict[str, int]:
    """Bytes by tier that the library's compute buffers would take, by a load that allocates
    neither weights nor cache.

    Raises:
        As ``load`` does.
    """
    _require(plan)
    from llama_cpp import llama_cpp as llama

    from localrun.backends.llamacpp.buffers import read_buffers
    from localrun.backends.llamacpp.parameters import parameters

    encoder = plan.model.architecture in ENCODERS
    model_parameters, context_parameters = parameters(plan.execution, encoder=encoder)
    model_parameters.no_alloc = True
    model_parameters.load_mode = llama.LLAMA_LOAD_MODE_NONE
    model, context, log = opened(plan.files, model_parameters, context_parameters)
    llama.llama_free(context)
    llama.llama_model_free(model)
    return {tier: terms.get("compute", 0) for tier, terms in read_buffers(log).parts.items()}


def calibrate(seconds: float, say: Callable[[str], None]) -> Mapping[str, DeviceFigures]:
    """What the GPUs that this library was built for get through, by their drivers' names.

    Raises:
        BackendMissingError: the library is absent or does not load.
    """
    require_library()
    from localrun.backends.llamacpp.buffer_types import gpus
    from localrun.backends.llamacpp.calibrate import measure
    from localrun.ggml.device import devices

    here = devices()
    return measure([here[at] for at, _ in gpus()], seconds, say)


def _require(plan: Plan) -> None:
    for file in plan.files:
        if not Path(file).is_file():
            raise ModelNotFoundError(
                f"{plan.ref}: {file} is no longer on this disk", hint=f"localrun pull {plan.ref}"
            )
    require_library()


def require_library() -> None:
    """Raises BackendMissingError where the library is absent or does not load."""
    if _version() is None:
        raise BackendMissingError(f"{DISTRIBUTION} is not installed", hint=install_command())
    try:
        import localrun.backends.llamacpp.library  # noqa: F401  loads the library, or says why not
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise BackendMissingError(
            f"{DISTRIBUTION} does not load: {error}", hint=install_command()
        ) from error


def opened(
    files: Sequence[str], model_parameters: ctypes.Structure, context_parameters: ctypes.Structure
) -> tuple[int, int, list[str]]:
    """A model, a context and what was logged while they were made.

    Raises:
        OutOfMemoryError, EngineError: as ``load``.
    """
    from llama_cpp import llama_cpp as llama

    from localrun.backends.llamacpp import library

    paths = [file.encode() for file in files]
    library.forget_problem()
    with library.logged() as log:
        if len(paths) == 1:
            model = llama.llama_model_load_from_file(paths[0], model_parameters)
        else:
            array = (ctypes.c_char_p * len(paths))(*paths)
            model = llama.llama_model_load_from_splits(array, len(paths), model_parameters)
        if model is None:
            raise _failure(f"{files[0]} could not be loaded", library.problem(), log)
        context = None
        if llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model)) > 0:
            context = llama.llama_init_from_model(model, context_parameters)
    if context is None:
        llama.llama_model_free(model)
        raise _failure(f"{files[0]} could not be run", library.problem(), log)
    return model, context, log


def _failure(what: str, problem: str, log: list[str]) -> EngineError:
    from localrun.backends.llamacpp.buffers import read_buffers, read_refusal

    refusal = read_refusal(log)
    if refusal is None:
        return EngineError(f"{what}: {problem}")
    asked = f"{refusal.bytes / 2**30:.2f} GiB" if refusal.bytes else "the memory it asked for"
    return OutOfMemoryError(
        f"{what}: llama.cpp did not get {asked} on {refusal.tier} ({problem})",
        tier=refusal.tier,
        needed_bytes=refusal.bytes,
        held_bytes=read_buffers(log).held.get(refusal.tier, 0),
    )


def _version() -> str | None:
    if find_spec("llama_cpp") is None:
        return None
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "of unknown version"
