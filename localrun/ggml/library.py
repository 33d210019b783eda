"""Knows no model and no tensor type: finds the libggml that llama-cpp-python brings.

Nothing is loaded on import. The functions are those of ggml's headers
(https://github.com/ggml-org/llama.cpp/tree/master/ggml/include); ctypes lets go of the
interpreter's lock while one runs.
"""

from __future__ import annotations

import ctypes
import logging
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, Literal, cast

from localrun.errors import BackendMissingError

Part = Literal["llama", "ggml", "ggml-base", "ggml-cpu"]
DISTRIBUTION: Final = "llama-cpp-python"


@cache
def function(part: Part, name: str, result: Any, *arguments: Any) -> Any:
    """A function of one of the libraries, with its prototype in ctypes' types.

    Raises:
        BackendMissingError: the library is absent, does not load, or lacks the function.
    """
    library = _library(part)
    try:
        # Indexing gives a function object of our own: the package's prototypes stay as they are.
        found = library[name]
    except AttributeError as error:
        raise BackendMissingError(f"{DISTRIBUTION} {_version()} has no {name}") from error
    found.restype = result
    found.argtypes = list(arguments)
    return found


@cache
def build() -> str:
    """Which kernels these are: the package's version and the features it was compiled with.

    Measurements are keyed by it: the same version built for another processor, or with OpenMP,
    has other speeds.
    """
    features = function("llama", "llama_print_system_info", ctypes.c_char_p)()
    listed = " ".join(features.decode("utf-8", "replace").replace("|", " ").split())
    return f"{DISTRIBUTION} {_version()} {listed}"


@cache
def openmp() -> bool:
    """Whether OpenMP starts the compute threads: then a pool of ggml's own is not used."""
    return "OPENMP = 1" in build()


@cache
def _libllama() -> ctypes.CDLL:
    # The package's own log callback writes to stderr what this level lets through.
    logging.getLogger(DISTRIBUTION).setLevel(logging.CRITICAL + 1)
    try:
        from llama_cpp import llama_cpp as llama
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise BackendMissingError(f"{DISTRIBUTION} does not load: {error}") from error
    return cast(ctypes.CDLL, llama._lib)


@cache
def _library(part: Part) -> ctypes.CDLL:
    """The handle that a function is looked up in: libllama's, which reaches all that it links.

    Opening a part by its file name would load it a second time where the package holds copies
    instead of links, and the second one's tables are empty.
    """
    libllama = _libllama()
    if sys.platform != "win32" or part == "llama":
        return libllama
    # A module's lookup ends at the module there, and its libraries have one name each.
    folder = Path(libllama._name).parent
    for file in (f"{part}.dll", f"lib{part}.dll"):
        if (folder / file).exists():
            return ctypes.CDLL(str(folder / file))
    raise BackendMissingError(f"{DISTRIBUTION} {_version()} has no {part} library in {folder}")


def _version() -> str:
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "of unknown version"
