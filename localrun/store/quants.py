"""Knows no disk and no hub: which of a repository's files belong together, and which to take.

Published names follow habits, not a standard:

    Name-Q4_K_M.gguf  name.q4_k_m.gguf  Name-UD-Q4_K_XL.gguf  Name.i1-IQ4_XS.gguf   one file
    Name-Q8_0-00001-of-00003.gguf …                                                 split
    Q4_K_M/Name-00001-of-00003.gguf …  BF16/Name.gguf                               a directory each
    mmproj-F16.gguf  Name.mmproj-fp16.gguf                                          a projector
    model.safetensors  model-00001-of-00004.safetensors …                           safetensors
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from localrun.errors import ModelNotFoundError
from localrun.formats.header import Format

SAFETENSORS_TAG = "SAFETENSORS"
INDEX_SUFFIX = ".safetensors.index.json"

_TAG = re.compile(
    r"(?<![A-Z0-9])"
    r"((?:UD[-_])?"
    r"(?:I?Q[1-8](?:_K_(?:XXS|XS|XL|S|M|L)|_K|_[01]_[48]_[48]|_[01]|_KSS|_KS|_KL|_KT|_KV"
    r"|_NL|_XXS|_XS|_XL|_S|_M|_L)?(?:_R[48])?"
    r"|TQ[12]_0|MXFP4(?:_MOE)?|NVFP4|FP8|BF16|FP?16|FP?32))"
    r"(?![A-Z0-9])"
)
_SHARD = re.compile(r"-([0-9]{5,6})-of-([0-9]{5,6})\Z", re.IGNORECASE)
_SAME = {"FP16": "F16", "FP32": "F32"}
_PROJECTOR_ORDER = ("F16", "BF16", "Q8_0", "F32", "")
_ADAPTER = re.compile(r"adapter_model", re.IGNORECASE)
# The same weights again, in the layout of their trainer's own code.
_CONSOLIDATED = re.compile(r"consolidated", re.IGNORECASE)

# Four bits first, and among them what loses least per byte; then more bits while they are cheap;
# then fewer; unquantized last, because nobody means 16 bits without saying so.
PREFERENCE = (
    *("Q4_K_M", "UD-Q4_K_M", "UD-Q4_K_XL", "Q4_K_XL", "Q4_K_L", "Q4_K", "MXFP4", "MXFP4_MOE"),
    *("Q4_K_S", "UD-Q4_K_S", "IQ4_XS", "UD-IQ4_XS", "IQ4_NL", "UD-IQ4_NL", "NVFP4", "Q4_1"),
    *("Q4_0", "Q4", "Q5_K_M", "UD-Q5_K_M", "UD-Q5_K_XL", "Q5_K_L", "Q5_K", "Q5_K_S", "Q5_1"),
    *("Q5_0", "Q6_K", "UD-Q6_K", "UD-Q6_K_XL", "Q6_K_L", "Q8_0", "UD-Q8_K_XL", "FP8"),
    *("Q3_K_M", "UD-Q3_K_M", "UD-Q3_K_XL", "Q3_K_XL", "Q3_K_L", "Q3_K", "Q3_K_S", "IQ3_M"),
    *("IQ3_S", "IQ3_XS", "IQ3_XXS", "UD-IQ3_XXS", "Q2_K", "UD-Q2_K_XL", "Q2_K_L", "IQ2_M"),
    *("UD-IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "UD-IQ2_XXS", "IQ1_M", "UD-IQ1_M", "IQ1_S"),
    *("UD-IQ1_S", "TQ2_0", "TQ1_0", "UD-TQ1_0", "BF16", "F16", "F32"),
)


@dataclass(frozen=True, slots=True)
class Variant:
    """One runnable choice of a repository. ``tag`` is upper case, empty where no name tells it."""

    tag: str
    format: Format
    files: tuple[str, ...]
    bytes: int

    @property
    def stem(self) -> str:
        """The name without directory, shard number and suffix."""
        return _stem(self.files[0])


@dataclass(frozen=True, slots=True)
class Grouped:
    """What a repository offers. ``broken`` names the sets of which shards are missing."""

    variants: tuple[Variant, ...]
    projectors: tuple[Variant, ...] = ()
    broken: tuple[str, ...] = ()

    @property
    def tags(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(variant.tag for variant in self.variants if variant.tag))


def quant_tag(name: str) -> str:
    """The quantization a file name tells, in upper case, or an empty string.

    The last one in the name counts, then the nearest directory's: names of models come first.
    """
    path = PurePosixPath(name)
    for text in (_stem(name), *reversed(path.parts[:-1])):
        found = _TAG.findall(text.upper())
        if found:
            tag = str(found[-1]).replace("UD_", "UD-")
            return _SAME.get(tag, tag)
    return ""


def group(files: Iterable[tuple[str, int]]) -> Grouped:
    """Sort a repository's (name, bytes) into variants, projectors and incomplete sets.

    Only names ending in .gguf and .safetensors count, in any case, and the safetensors index.
    """
    sets: dict[tuple[str, int, Format], dict[int, tuple[str, int]]] = {}
    indexed: set[PurePosixPath] = set()
    for name, size in sorted(files):
        kind = _format(name)
        if name.lower().endswith(INDEX_SUFFIX):
            indexed.add(PurePosixPath(name).parent)
        if kind is None or _is_imatrix(name):
            continue
        number, count = _shard(name)
        key = (_without_shard(name), count, kind)
        sets.setdefault(key, {})[number] = (name, size)
    variants: list[Variant] = []
    projectors: list[Variant] = []
    broken: list[str] = []
    for (base, count, kind), shards in sets.items():
        if sorted(shards) != list(range(1, count + 1)):
            broken.append(f"{base} ({len(shards)} of {count} shards)")
            continue
        names = tuple(shards[number][0] for number in sorted(shards))
        total = sum(size for _, size in shards.values())
        if kind == "gguf":
            variant = Variant(quant_tag(names[0]), kind, names, total)
            (projectors if _is_projector(base) else variants).append(variant)
        elif not _ADAPTER.search(PurePosixPath(base).name):
            variants.append(Variant(SAFETENSORS_TAG, kind, names, total))
    return Grouped(_one_safetensors(variants, indexed), tuple(projectors), tuple(broken))


def choose(variants: Sequence[Variant], tag: str | None) -> Variant:
    """The variant that ``tag`` names in any case, else the first of ``PREFERENCE`` that exists.

    GGUF goes before safetensors, because it runs everywhere.

    Raises:
        ModelNotFoundError: nothing carries the tag, listing what exists; or several files do.
    """
    if not variants:
        raise ModelNotFoundError("the repository holds no complete GGUF or safetensors weights")
    if tag is None:
        best = min(_rank(variant) for variant in variants)
        return _only([variant for variant in variants if _rank(variant) == best])
    wanted = _SAME.get(tag.upper(), tag.upper())
    for matching in (
        [variant for variant in variants if variant.tag == wanted],
        [variant for variant in variants if variant.tag == f"UD-{wanted}"],
        [variant for variant in variants if _carries(variant, wanted)],
    ):
        if matching:
            return _only(matching)
    tags = dict.fromkeys(
        variant.tag or PurePosixPath(variant.files[0]).name for variant in variants
    )
    raise ModelNotFoundError(
        f"no {tag} in the repository; it holds {', '.join(sorted(tags))}",
        hint="name one of them after the colon, ORG/REPO:QUANT",
    )


def containing(variants: Sequence[Variant], file: str) -> Variant | None:
    """The variant of which ``file`` is the only file or a shard."""
    return next((variant for variant in variants if file in variant.files), None)


def choose_projector(projectors: Sequence[Variant]) -> Variant | None:
    """The projector to keep beside the weights: 16 bits, which every runner takes."""
    if not projectors:
        return None
    known = {tag: place for place, tag in enumerate(_PROJECTOR_ORDER)}
    return min(projectors, key=lambda variant: (known.get(variant.tag, 9), variant.files))


def _rank(variant: Variant) -> tuple[int, int]:
    if variant.format == "safetensors":
        return (1, 0)
    if variant.tag in PREFERENCE:
        return (0, PREFERENCE.index(variant.tag))
    return (0, len(PREFERENCE) + (0 if variant.tag else 1))


def _only(variants: list[Variant]) -> Variant:
    if len(variants) == 1:
        return variants[0]
    names = [variant.files[0] for variant in variants]
    raise ModelNotFoundError(
        f"{len(names)} models of the repository are {variants[0].tag or 'unnamed'}: "
        + ", ".join(names[:6]),
        hint="name the file: ORG/REPO/FILE.gguf",
    )


def _carries(variant: Variant, wanted: str) -> bool:
    words = rf"(?<![A-Z0-9]){re.escape(wanted)}(?![A-Z0-9])"
    return variant.format == "gguf" and re.search(words, variant.files[0].upper()) is not None


def _one_safetensors(variants: list[Variant], indexed: set[PurePosixPath]) -> tuple[Variant, ...]:
    """Of several safetensors sets the model is the shallowest one called model, else the first.

    Beside an index, shards need no numbers in their names: then all of its directory is the model.
    """
    sets = [variant for variant in variants if variant.format == "safetensors"]

    def place(variant: Variant) -> tuple[bool, int, bool, int, str]:
        path = PurePosixPath(variant.files[0])
        repeated = _CONSOLIDATED.search(path.name) is not None
        return (
            repeated,
            len(path.parts),
            not path.name.startswith("model"),
            -variant.bytes,
            path.name,
        )

    chosen = min(sets, key=place, default=None)
    if chosen is None:
        return tuple(variants)
    home = PurePosixPath(chosen.files[0]).parent
    if len(chosen.files) == 1 and home in indexed and not _CONSOLIDATED.search(chosen.files[0]):
        near = [
            variant
            for variant in sets
            if PurePosixPath(variant.files[0]).parent == home and not place(variant)[0]
        ]
        names = tuple(sorted(name for variant in near for name in variant.files))
        chosen = Variant(SAFETENSORS_TAG, "safetensors", names, sum(one.bytes for one in near))
    return (*(variant for variant in variants if variant.format == "gguf"), chosen)


def _format(name: str) -> Format | None:
    lower = name.lower()
    if lower.endswith(".gguf"):
        return "gguf"
    return "safetensors" if lower.endswith(".safetensors") else None


def _stem(name: str) -> str:
    base = PurePosixPath(name).name
    dot = base.rfind(".")
    return _SHARD.sub("", base[:dot] if dot > 0 else base)


def _without_shard(name: str) -> str:
    parent = PurePosixPath(name).parent
    return str(parent / _stem(name))


def _shard(name: str) -> tuple[int, int]:
    base = PurePosixPath(name).name
    found = _SHARD.search(base[: base.rfind(".")])
    return (int(found[1]), int(found[2])) if found else (1, 1)


def _is_projector(base: str) -> bool:
    return "mmproj" in PurePosixPath(base).name.lower()


def _is_imatrix(name: str) -> bool:
    return "imatrix" in PurePosixPath(name).name.lower() and not quant_tag(PurePosixPath(name).name)
