"""The rules of the house that a reader of ARCHITECTURE.md relies on."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from localrun import errors

ROOT = Path(__file__).parents[2]
OUTER = ("backends", "quantize", "tui")
ROOMS = {"localrun": ROOT / "localrun", **{folder: ROOT / folder for folder in OUTER}}
ORDER = [
    "errors",
    "config",
    "ref",
    "formats",
    "models",
    "ggml",
    "disk",
    "hardware",
    "plan",
    "learned",
    "store",
    "releases",
    "engine",
    "chat",
    "evaluate",
    "server",
    "cli",
]
HEAVY = {
    "torch", "mlx", "llama_cpp", "transformers", "huggingface_hub", "textual", "fastapi",
    "uvicorn", "starlette", "httpx2", "jinja2", "numpy", "psutil", "pynvml", "pydantic", "rich",
    "llguidance",
}  # fmt: skip
LONGEST_FILE = 600


def sources() -> Iterator[tuple[str, Path]]:
    """Every module as (dotted import name, file)."""
    for room, folder in ROOMS.items():
        for path in sorted(folder.rglob("*.py")):
            inner = path.relative_to(folder).with_suffix("").parts
            prefix = ("localrun",) if room == "localrun" else ("localrun", room)
            parts = [part for part in (*prefix, *inner) if part != "__init__"]
            yield ".".join(parts), path


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, at its top or inside a function."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "localrun" and len(parts) > 1 else None


MODULES = dict(sources())


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_module_imports_only_from_the_rooms_to_its_left(module: str) -> None:
    here = room_of(module)
    for imported in imports(MODULES[module]):
        there = room_of(imported)
        if there is None or there == here or there == "__version__":
            continue
        assert there not in OUTER or here == "cli", (
            f"{module} imports {imported}: only cli composes"
        )
        if here in ORDER and there in ORDER:
            assert ORDER.index(there) < ORDER.index(here), f"{module} imports {imported}"


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_module_begins_with_a_docstring_and_stays_readable(module: str) -> None:
    source = MODULES[module].read_text(encoding="utf-8")

    assert ast.get_docstring(ast.parse(source)), f"{module} has no docstring"
    assert len(source.splitlines()) <= LONGEST_FILE


def test_packages_in_pyproject_are_the_folders_that_hold_modules() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = set(project["tool"]["setuptools"]["packages"])

    found = {module for module, path in MODULES.items() if path.name == "__init__.py"}

    assert listed == found


def test_importing_the_command_line_loads_no_heavy_module() -> None:
    code = (
        "import sys, localrun.cli, localrun.cli.app; "
        "print(' '.join({name.split('.')[0] for name in sys.modules}))"
    )

    loaded = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, timeout=60
    ).stdout.split()

    assert not HEAVY & set(loaded)


def every_error() -> list[type[errors.LocalrunError]]:
    found, waiting = [], [errors.LocalrunError]
    while waiting:
        kind = waiting.pop()
        found.append(kind)
        waiting += kind.__subclasses__()
    return [kind for kind in found if kind.__module__ == errors.__name__]


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
def test_an_error_carries_exit_code_status_and_hint_and_stands_in_the_tree(
    kind: type[errors.LocalrunError],
) -> None:
    row = next(
        (line for line in (errors.__doc__ or "").splitlines() if f"{kind.__name__} " in line), ""
    )

    assert f" {kind.exit_code} · {kind.http_status}" in row
    assert kind.exit_code in {1, 2, 3, 4, 5, 6}
    assert 400 <= kind.http_status < 600
    assert kind.hint
    assert "\n" not in kind.hint


def swallows_everything(node: ast.AST) -> bool:
    """A handler of every exception that does not end by raising it again (as a clean-up does)."""
    if not isinstance(node, ast.ExceptHandler):
        return False
    names = {name.id for name in ast.walk(node.type or node) if isinstance(name, ast.Name)}
    broad = node.type is None or names & {"Exception", "BaseException"}
    return bool(broad) and not isinstance(node.body[-1], ast.Raise)


def handles_for_the_port(node: ast.AST) -> bool:
    """Registers a handler of every exception of a request."""
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in {"exception_handler", "add_exception_handler"}
        and any(isinstance(name, ast.Name) and name.id == "Exception" for name in node.args)
    )


def test_only_the_two_boundaries_catch_every_exception() -> None:
    nodes = [(module, node) for module, path in MODULES.items() for node in ast.walk(tree(path))]

    swallowing = [module for module, node in nodes if swallows_everything(node)]
    at_the_port = [module for module, node in nodes if handles_for_the_port(node)]

    assert swallowing == ["localrun.cli.app"]
    assert at_the_port == ["localrun.server.app"]


def test_only_the_configuration_reads_the_environment() -> None:
    readers = {
        module
        for module, path in MODULES.items()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"}
    }

    assert readers == {"localrun.config"}


@pytest.mark.parametrize("folder", OUTER)
def test_an_outer_folder_refuses_its_bare_name(folder: str) -> None:
    outcome = subprocess.run(
        [sys.executable, "-c", f"import {folder}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert outcome.returncode == 1
    assert f"import localrun.{folder}, not {folder}" in outcome.stderr


def test_every_flag_has_its_environment_variable_and_configuration_key() -> None:
    from localrun.cli.app import command_tree

    root = command_tree()
    flags = [
        parameter
        for command in root.commands.values()
        for parameter in command.params
        if parameter.param_type_name == "option"
    ]

    assert flags
    for flag in flags:
        assert flag.envvar == f"LOCALRUN_{flag.name.upper()}"
