"""Knows no checkpoint: mlx as it is installed, and the model classes of mlx-lm.

``import mlx_lm`` brings transformers, and with it torch where that is installed: seconds before the
first weight is read. Its models need neither, so their modules are imported under a package of
their own name that runs none of its ``__init__``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any, Final

import mlx.core as mx

from localrun.backends.mlx.working_set import limits
from localrun.backends.report import Device
from localrun.errors import EngineError

_PACKAGE: Final = "mlx_lm"


def devices() -> tuple[Device, ...]:
    """The GPU where Metal is, else the CPU."""
    told = mx.device_info()
    name = str(told.get("device_name", "")) or str(told.get("architecture", "CPU"))
    if metal():
        return (Device("metal", name, "gpu"),)
    return (Device("cpu", name, "cpu"),)


def metal() -> bool:
    return bool(mx.metal.is_available())


def device_facts() -> Mapping[str, Any]:
    """What Metal says of its device, sizes in bytes; empty where there is none."""
    return dict(mx.device_info()) if metal() else {}


def version() -> str:
    """Of both libraries, as a state depends on them."""
    return ", ".join(f"{name} {_version_of(name)}" for name in ("mlx", "mlx-lm"))


def _version_of(distribution: str) -> str:
    try:
        return installed_version(distribution)
    except PackageNotFoundError:
        return "of unknown version"


def model_module(name: str) -> ModuleType:
    """``mlx_lm.models.NAME``: a ``Model`` and its ``ModelArgs``.

    Raises:
        EngineError: the installed mlx-lm has none, or it needs what is not installed.
    """
    with _models():
        try:
            return import_module(f"{_PACKAGE}.models.{name}")
        except ImportError as error:
            raise EngineError(
                f"mlx-lm {_version_of('mlx-lm')} does not load its model {name!r}: {error}"
            ) from error


def own_module(name: str) -> ModuleType:
    """Another copy of the same, for whoever changes some of its functions.

    Raises:
        EngineError: as ``model_module``.
    """
    model_module(name)
    with _models():
        found = find_spec(f"{_PACKAGE}.models.{name}")
        assert found is not None  # It was imported just now.
        assert found.loader is not None
        made = module_from_spec(found)
        found.loader.exec_module(made)
    return made


def make_cache(model: Any) -> list[Any]:
    """Fresh caches, one a layer, as the model's own module wants them."""
    if hasattr(model, "make_cache"):
        return list(model.make_cache())
    # The very module that the model's own imports found: caches are told apart by their class.
    caches = sys.modules.get(f"{_PACKAGE}.models.cache") or _cache_module()
    return [caches.KVCache() for _ in model.layers]


def _cache_module() -> ModuleType:
    with _models():
        return import_module(f"{_PACKAGE}.models.cache")


@contextmanager
def _models() -> Iterator[None]:
    """While it lasts, ``mlx_lm`` is a bare package; where it was imported whole, it stays so.

    Afterwards the bare name is gone again, and ``import mlx_lm`` gives what it always does.
    """
    if _PACKAGE in sys.modules:
        yield
        return
    found = find_spec(_PACKAGE)
    if found is None or found.submodule_search_locations is None:
        raise EngineError("mlx-lm is not installed")
    bare = ModuleType(_PACKAGE)
    bare.__path__ = list(found.submodule_search_locations)
    sys.modules[_PACKAGE] = bare
    try:
        yield
    finally:
        if sys.modules.get(_PACKAGE) is bare:
            del sys.modules[_PACKAGE]


def limit_memory(planned: int, compute: int) -> None:
    """Keep to what Metal recommends: wire what is planned, and hold freed buffers only as large as
    a step's. Does nothing where there is no Metal.

    Raises:
        OutOfMemoryError: more is planned than the recommended working set.
    """
    told = limits(device_facts(), planned, compute)
    if told is not None:
        mx.set_memory_limit(told.memory)
        mx.set_cache_limit(told.kept)
        mx.set_wired_limit(told.wired)
