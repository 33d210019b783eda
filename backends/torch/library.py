"""Knows no model: torch as it is installed, its devices and threads, and what its failures mean."""

from __future__ import annotations

import ctypes
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch

from localrun.backends.report import Device
from localrun.errors import EngineError, OutOfMemoryError

# c10/core/impl/alloc_cpu.cpp and c10/cuda/CUDACachingAllocator.cpp
_HOST_MEMORY: Final = ("DefaultCPUAllocator", "can't allocate memory", "bad alloc", "bad_alloc")
_BYTES: Final = re.compile(r"tried to allocate (\d+) bytes")
_SIZE: Final = re.compile(r"Tried to allocate ([\d.]+) ([KMG]i)B")
_UNITS: Final = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}
_FAILURES: Final = (RuntimeError, ValueError, TypeError, IndexError)
# malloc.h: what mallopt(3) is told by, and the most that it takes for the second.
_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
_LARGEST_MMAP_THRESHOLD: Final = 32 << 20
_KEPT: Final = 128 << 20


def version() -> str:
    return str(torch.__version__)


def devices() -> tuple[Device, ...]:
    """CUDA cards, if this build has any for them, and the CPU. Cards are counted, not opened."""
    cards = tuple(
        Device(f"cuda:{at}", f"CUDA card {at}", "gpu") for at in range(torch.cuda.device_count())
    )
    name = f"CPU ({torch.backends.cpu.get_cpu_capability()})"
    return (*cards, Device("cpu", name, "cpu"))


def tier(device: torch.device) -> str:
    return f"vram:{device.index or 0}" if device.type == "cuda" else "ram"


def keep_freed_memory() -> None:
    """Let the C library keep what a step gives back for the next one, up to ``_KEPT``. As it is, it
    returns larger blocks to the system and gets them again as empty pages, which steps over a long
    context then wait for. Other libraries than glibc are left as they are."""
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        mallopt(_TRIM_THRESHOLD, _KEPT)


def give_back_memory() -> None:
    """What the C library keeps goes back to the system: a model was closed."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def failures(device: torch.device, what: str) -> Iterator[None]:
    """What torch raises inside is a typed error of ``what``; ours go through.

    Raises:
        OutOfMemoryError, EngineError.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise _memory(error, tier(device), what) from error
    except MemoryError as error:
        raise OutOfMemoryError(f"torch got no memory for {what}: {error}") from error
    except _FAILURES as error:
        if any(mark in str(error) for mark in _HOST_MEMORY):
            raise _memory(error, "ram", what) from error
        raise EngineError(f"torch could not compute {what}: {_first_line(error)}") from error


def _memory(error: BaseException, tier: str, what: str) -> OutOfMemoryError:
    text = str(error)
    needed = 0
    if exact := _BYTES.search(text):
        needed = int(exact[1])
    elif rounded := _SIZE.search(text):
        needed = int(float(rounded[1]) * _UNITS[rounded[2]])
    message = f"torch got no memory for {what}: {_first_line(error)}"
    return OutOfMemoryError(message, tier=tier, needed_bytes=needed)


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
