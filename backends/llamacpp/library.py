"""Knows no model: libllama and libggml as this room calls them, and where their log goes.

Importing this module loads the libraries; only ``backend`` imports it, inside functions.
The library's own log never reaches stdout or stderr: it goes to the logger below, errors too,
because what a user must know arrives as an EngineError that quotes the first of them.
"""

from __future__ import annotations

import ctypes
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, cast

import llama_cpp
from llama_cpp import llama_cpp as llama

from localrun.backends.report import Device, DeviceKind

_log = logging.getLogger("localrun.llamacpp")
# Without a handler of its own, logging would print warnings to stderr.
_log.addHandler(logging.NullHandler())

# enum ggml_log_level (ggml.h)
_WARN, _ERROR = 3, 4
_DEVICE_KINDS: Final[tuple[DeviceKind, ...]] = ("cpu", "gpu", "igpu", "accelerator")


class _Thread(threading.local):
    """What the library logged for this thread: it logs on the thread that calls it."""

    lines: list[str] | None = None
    problem: str | None = None


_thread = _Thread()


def _record(level: int, text: bytes | None, _data: int | None) -> None:
    line = (text or b"").decode("utf-8", "replace").strip()
    if not line.strip("."):
        return
    if _thread.lines is not None:
        _thread.lines.append(line)
    if level == _ERROR and _thread.problem is None:
        _thread.problem = line.partition(": ")[2] or line
    _log.log(logging.INFO if level in (_WARN, _ERROR) else logging.DEBUG, "%s", line)


# The library keeps the pointer for the life of the process, so does this module.
_callback = llama.llama_log_callback(_record)
llama.llama_log_set(_callback, ctypes.c_void_p(None))
llama.llama_backend_init()


def forget_problem() -> None:
    """Before a call whose failure is to be explained by ``problem``."""
    _thread.problem = None


def problem() -> str:
    """The first error that the library logged on this thread since, without its function's name.

    The errors after it only say what failed in consequence.
    """
    return _thread.problem or "the library gave no reason"


@contextmanager
def logged() -> Iterator[list[str]]:
    """Collect what the library logs on this thread inside the block."""
    before, _thread.lines = _thread.lines, []
    try:
        yield _thread.lines
    finally:
        _thread.lines = before


def _function(library: ctypes.CDLL, name: str, result: Any, *arguments: Any) -> Any:
    # Indexing gives a function object of our own: the package's prototypes stay as they are.
    function = library[name]
    function.restype = result
    function.argtypes = list(arguments)
    return function


_libllama: Final = cast(ctypes.CDLL, llama._lib)
# The same as llama_get_logits with an address for a result, which costs no pointer object.
logits_address: Final = _function(_libllama, "llama_get_logits", ctypes.c_void_p, ctypes.c_void_p)
# Likewise llama_get_embeddings.
embeddings_address: Final = _function(
    _libllama, "llama_get_embeddings", ctypes.c_void_p, ctypes.c_void_p
)


def version() -> str:
    """The library and what its kernels were built for."""
    features = llama.llama_print_system_info().decode("utf-8", "replace").strip(" |")
    return f"llama-cpp-python {llama_cpp.__version__}, {features}"


def openmp() -> bool:
    """Whether the CPU kernels were built with OpenMP: a feature the library itself names."""
    features = llama.llama_print_system_info().decode("utf-8", "replace")
    return "OPENMP = 1" in features


def devices() -> tuple[Device, ...]:
    """Devices in ggml's registry (ggml-backend.h): those built in that this machine has."""
    base = _ggml("ggml-base")
    registry = _ggml("ggml")
    handle = ctypes.c_void_p
    get = _function(registry, "ggml_backend_dev_get", handle, ctypes.c_size_t)
    name = _function(base, "ggml_backend_dev_name", ctypes.c_char_p, handle)
    description = _function(base, "ggml_backend_dev_description", ctypes.c_char_p, handle)
    kind = _function(base, "ggml_backend_dev_type", ctypes.c_int, handle)
    found = []
    for index in range(_function(registry, "ggml_backend_dev_count", ctypes.c_size_t)()):
        device = get(index)
        at = kind(device)
        found.append(
            Device(
                name=name(device).decode(),
                description=description(device).decode("utf-8", "replace"),
                kind=_DEVICE_KINDS[at] if at < len(_DEVICE_KINDS) else "accelerator",
            )
        )
    return tuple(found)


def function(part: str, name: str, result: Any, *arguments: Any) -> Any:
    """``name`` of libllama (``llama``) or of one of ggml's libraries, with its prototype.

    Raises:
        OSError, AttributeError: this build has no such library or function.
    """
    library = _libllama if part == "llama" else _ggml(part)
    return _function(library, name, result, *arguments)


def _ggml(name: str) -> ctypes.CDLL:
    """The handle that one of ggml's functions is looked up in.

    A lookup in libllama reaches the libraries that libllama itself was linked with. Opening one by
    its file name would not: a wheel holds no links, so ``libggml-cpu.so`` and ``libggml-cpu.so.0``
    are two files and the loader makes two libraries of them. Threads of the second compute with
    tables that only the first has filled, which turns GELU models into NaN.
    """
    if sys.platform != "win32":
        return _libllama
    # A module's lookup ends at the module there, and its libraries have one name each.
    folder = Path(_libllama._name).parent
    for file in (f"{name}.dll", f"lib{name}.dll"):
        if (folder / file).exists():
            return ctypes.CDLL(str(folder / file))
    raise OSError(f"no {name} library in {folder}")
