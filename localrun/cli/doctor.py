"""Knows no model: ``localrun doctor``, what is installed, what is missing, how to mend it.

Each check gathers facts through another room and gives a verdict; a verdict that is not ``ok``
names the exact command or place that mends it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from localrun.cli.options import Json
from localrun.cli.output import emit_json, note, say, size

if TYPE_CHECKING:
    from localrun.backends.registry import Backend
    from localrun.config import Settings
    from localrun.hardware.machine import Machine

State = Literal["ok", "note", "missing", "broken"]
Verify = Annotated[
    bool, typer.Option("--verify", help="Also read every byte of every model: takes minutes.")
]
# How a command begins that compiles a library.
_BUILT = "CMAKE_ARGS"


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. ``fix`` is what to type or change, empty where nothing is wrong."""

    name: str
    state: State
    detail: str
    fix: str = ""


def doctor(verify: Verify = False, json: Json = False) -> None:
    """Check the installation and print the command that mends what is wrong."""
    from localrun.config import settings
    from localrun.hardware.probe import probe

    here = settings()
    checks = list(_checks(here, probe([here.data, here.hub_cache]), verify))
    if json:
        emit_json({"ok": all(_fine(check) for check in checks), "checks": [*map(asdict, checks)]})
        return
    width = max(len(check.name) for check in checks)
    for check in checks:
        say(f"{check.state:<8}{check.name.ljust(width)}  {check.detail}")
        if check.fix:
            say(f"{'':8}{'':{width}}  fix: {check.fix}")
    wrong = sum(not _fine(check) for check in checks)
    note(f"{wrong} to mend" if wrong else "nothing to mend")


def _fine(check: Check) -> bool:
    return check.state in ("ok", "note")


def _checks(here: Settings, machine: Machine, verify: bool) -> Iterator[Check]:
    import platform

    from localrun.backends.registry import backend, names

    yield Check("python", "ok", f"{platform.python_version()} at {sys.executable}")
    for name in names():
        yield from backend_checks(backend(name), machine)
    yield _pip()
    yield _configuration(here)
    yield from _store(here, verify)
    yield _learned(here)
    yield from _hub(here)
    for disk in machine.disks:
        yield Check("disk", "ok", f"{size(disk.free)} free under {disk.path}")


def backend_checks(backend: Backend, machine: Machine) -> Iterator[Check]:
    """What one backend's library and this machine's devices say of each other."""
    report = backend.probe()
    if not report.installed:
        state: State = "note" if report.optional else "missing"
        yield Check(report.name, state, report.problem or "not installed", report.install)
        if _BUILT in report.install:
            yield from _compilers()
        return
    if report.problem is not None:
        yield Check(report.name, "broken", report.problem, report.install)
        return
    devices = ", ".join(device.description or device.name for device in report.devices)
    yield Check(report.name, "ok", f"version {report.version}, runs on {devices or 'nothing'}")
    if machine.gpus and not report.has_gpu and not report.optional:
        found = machine.gpus[0]
        yield Check(
            f"{report.name} on the GPU",
            "missing",
            f"{found.name} is here, but the library was built for the CPU",
            backend.install_command(found.kind, rebuild=True),
        )
    if report.openmp:
        gpu = machine.gpus[0].kind if report.has_gpu and machine.gpus else "cpu"
        yield Check(
            f"{report.name} threads",
            "note",
            "built with OpenMP: much slower while another program keeps a core busy",
            backend.install_command(gpu, rebuild=True),
        )


def _compilers() -> Iterator[Check]:
    import shutil

    for tools, package in (
        (("cc", "gcc", "clang"), "C compiler"),
        (("c++", "g++"), "C++ compiler"),
    ):
        found = next((path for tool in tools if (path := shutil.which(tool))), None)
        if found is None:
            yield Check(package, "missing", "llama.cpp is built from source", _compiler_command())
        else:
            yield Check(package, "ok", found)


def _compiler_command() -> str:
    return "xcode-select --install" if sys.platform == "darwin" else "apt install g++ (or its like)"


def _pip() -> Check:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return Check("pip", "ok", f"{version('pip')}, fetches models that come as wheels")
    except PackageNotFoundError:
        return Check(
            "pip", "missing", "models that come as wheels cannot be pulled",
            f"{sys.executable} -m ensurepip",
        )  # fmt: skip


def _configuration(here: Settings) -> Check:
    # An unreadable or misspelt file has ended the program before this line (cli.app.execute).
    exists = here.config_file.exists()
    return Check("config", "ok", f"{here.config_file}" + ("" if exists else " (none, defaults)"))


def _learned(here: Settings) -> Check:
    from localrun.cli.learning import folder_of

    folder = folder_of(here)
    models = {path.name.partition(".")[0] for path in folder.glob("*.json")}
    count = f"{len(models)} model{'s' * (len(models) != 1)}"
    return Check("learned", "ok", f"from runs of {count}, under {folder}")


def _store(here: Settings, verify: bool) -> Iterator[Check]:
    from localrun.cli.progress import progress
    from localrun.store.health import examine
    from localrun.store.library import Library

    stored = Library(here).list()
    yield Check("models", "ok", f"{len(stored)} on this disk, ours under {here.data}")
    if verify:
        total = sum(model.bytes for model in stored)
        note(f"reading every byte of {len(stored)} models, {size(total)}")
    for finding in examine(here, rehash=verify, progress=progress()):
        yield Check(
            "store",
            "note" if finding.harmless else "broken",
            f"{finding.name}: {finding.path} {finding.problem}",
            finding.fix,
        )


def _hub(here: Settings) -> Iterator[Check]:
    token = "with a token" if here.hub_token else "without a token"
    offline = ", offline (HF_HUB_OFFLINE)" if here.offline else ""
    yield Check("hub", "ok", f"{here.hub_endpoint} {token}{offline}, cache {here.hub_cache}")
