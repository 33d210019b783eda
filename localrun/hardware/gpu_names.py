"""Knows no driver: which part a GPU is, by the name that its driver gives it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from localrun.hardware.parts import Part, parts
from localrun.hardware.reserves import GIB

# What drivers say beside the model. "Laptop" is not here: those are other, slower chips.
_WORDS = frozenset(
    {"nvidia", "geforce", "tesla", "quadro", "amd", "ati", "radeon", "instinct", "intel"}
    | {"corporation", "graphics", "r", "tm", "gpu", "generation", "blackwell", "workstation"}
    | {"edition", "hbm2e", "hbm3", "hbm3e", "oam"}
)
# By the squeezed name, where a driver leaves out what the slug says.
_ALIASES = {"h10080gb": "h100-sxm-80gb", "rtx2050": "rtx-2050-laptop"}
_SOCKET = re.compile(r"sxm[0-9]\Z")
_MEMORY = re.compile(r"-[0-9]+gb\Z")
# Error correction takes a sixteenth of GDDR; the next larger card of a name has a fifth more.
_TOLERANCE = 0.1


def gpu_part(name: str, total_bytes: int) -> Part | None:
    """The one part with this name and memory; None where there is none or a doubt.

    ``total_bytes`` is 0 where the driver does not say; a name must then be one part's alone.
    """
    words = [word for word in re.findall(r"[a-z0-9]+", name.lower()) if word not in _WORDS]
    squeezed = _squeezed(words)
    alias = _ALIASES.get(squeezed)
    found = [
        part
        for part in parts().values()
        if part.kind in ("gpu", "apu")
        and (part.slug == alias or squeezed in _spellings(part.slug))
        and _has(part, total_bytes)
    ]
    return found[0] if len(found) == 1 else None


def mac_part(chip: str, gpu_cores: int) -> Part | None:
    """The part of an Apple chip, ``Apple M4 Max``; of several GPUs it is sold with, the one with
    ``gpu_cores``, else the slowest."""
    base = "-".join(chip.lower().removeprefix("apple").split())
    exact = parts().get(f"{base}-{gpu_cores}c") or parts().get(base)
    if exact is not None and exact.kind == "mac":
        return exact
    variants = [
        part
        for part in parts().values()
        if part.kind == "mac" and re.fullmatch(re.escape(base) + r"-[0-9]+c", part.slug)
    ]
    return min(variants, key=_speed, default=None)


def _speed(part: Part) -> tuple[float, float]:
    return part.bandwidth.value, part.flops.value if part.flops else 0.0


def _spellings(slug: str) -> tuple[str, str]:
    return _squeezed(slug.split("-")), _squeezed(_MEMORY.sub("", slug).split("-"))


def _squeezed(words: Iterable[str]) -> str:
    """``A100-SXM4-80GB`` and ``a100-sxm-80gb`` are one, as are ``4090 D`` and ``4090d``."""
    return "".join("sxm" if _SOCKET.match(word) else word for word in words)


def _has(part: Part, total_bytes: int) -> bool:
    if not total_bytes or part.memory_gb is None:
        return True
    return abs(total_bytes / GIB - part.memory_gb) <= _TOLERANCE * part.memory_gb
