"""Knows no plan: which of ggml's buffer types a tier of this machine is.

Tiers are ``vram:0``, ``vram:1``, … in the order of the devices, and ``ram``: there the library
chooses, a type that holds weights repacked for the CPU's kernels where one has them, the plain
one otherwise. ``ram:plain`` is never repacked.
"""

from __future__ import annotations

import ctypes
from functools import cache

from localrun.backends.llamacpp.library import devices, function
from localrun.backends.report import Device
from localrun.errors import EngineError

_HANDLE = ctypes.c_void_p
_ALIGNMENT = 64  # of host buffers (TENSOR_ALIGNMENT, ggml-impl.h)


def gpus() -> tuple[tuple[int, Device], ...]:
    """(place in ggml's registry, device) of each ``vram`` tier.

    Integrated devices count where there is no other, which is how llama.cpp chooses.
    """
    found = tuple(enumerate(devices()))
    for kind in ("gpu", "igpu"):
        chosen = tuple((at, device) for at, device in found if device.kind == kind)
        if chosen:
            return chosen
    return ()


def buffer_type(tier: str) -> int:
    """The address of a tier's ``ggml_backend_buffer_type``.

    Raises:
        EngineError: no tier is called that, or this machine lacks it.
    """
    if tier == "ram":
        found: int = function("ggml-base", "ggml_backend_cpu_buffer_type", _HANDLE)()
        return found
    if tier == "ram:plain":
        return _plain()
    kind, _, number = tier.partition(":")
    if kind != "vram" or not number.isdecimal():
        raise EngineError(
            f"llama.cpp holds no weights on tier {tier!r}, only on ram, ram:plain and vram:N",
            hint="make the plan again with `localrun plan REF`",
        )
    here = gpus()
    if int(number) >= len(here):
        raise EngineError(
            f"the plan puts weights on {tier}; the installed llama.cpp finds {len(here)} GPUs",
            hint="`localrun doctor` shows what it finds; make the plan again on this machine",
        )
    device = function("ggml", "ggml_backend_dev_get", _HANDLE, ctypes.c_size_t)(
        here[int(number)][0]
    )
    of_device: int = function("ggml-base", "ggml_backend_dev_buffer_type", _HANDLE, _HANDLE)(device)
    return of_device


@cache
def _plain() -> int:
    """The type that memory maps have: an override to the CPU's own type means "ram" to llama.cpp.

    The library names it nowhere, so a buffer over memory of ours is asked for its type.
    """
    size = ctypes.c_size_t
    memory = ctypes.create_string_buffer(2 * _ALIGNMENT)
    aligned = ctypes.addressof(memory) + -ctypes.addressof(memory) % _ALIGNMENT
    buffer = function("ggml-base", "ggml_backend_cpu_buffer_from_ptr", _HANDLE, _HANDLE, size)(
        aligned, _ALIGNMENT
    )
    found: int = function("ggml-base", "ggml_backend_buffer_get_type", _HANDLE, _HANDLE)(buffer)
    function("ggml-base", "ggml_backend_buffer_free", None, _HANDLE)(buffer)
    return found
