"""Knows no model: what a user asks a model to be made into, checked before any file is opened."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from localrun.errors import UsageError
from localrun.formats.text import shown
from localrun.models.mixtures import known, mixture_name
from localrun.quantize.types.imatrix import Imatrix
from localrun.quantize.types.overrides import Override
from localrun.store.files import ModelFiles

COMPRESSED: Final = ("fp8-block", "w4a16", "mxfp4-ct")
MLX: Final = ("mlx-4bit", "mlx-8bit", "mlx-mxfp4", "mlx-mxfp8")
PLAIN: Final = ("safetensors-bf16", "safetensors-f16", "safetensors-f32")
GGUF_SUFFIX: Final = ".gguf"
BUDGET: Final = "budget"
"""Stands for the type of a file whose tensors' types are solved for."""

Kind = Literal["gguf", "safetensors", "mlx"]


def kind_of(type: str) -> Kind:
    """The format that a type is written in."""
    if type in MLX:
        return "mlx"
    return "safetensors" if type in COMPRESSED + PLAIN else "gguf"


def known_type(text: str) -> str:
    """``text`` as the type is spelled: GGUF's in capitals, all others small.

    Raises:
        UsageError: there is no such type.
    """
    small = text.lower()
    if small in COMPRESSED + MLX + PLAIN:
        return small
    try:
        return mixture_name(text)
    except UsageError:
        raise UsageError(
            f"--type {shown(text)}: there is no such type",
            hint=f"one of {', '.join((*known(), *COMPRESSED, *MLX, *PLAIN))}",
        ) from None


@dataclass(frozen=True, slots=True)
class Recipe:
    """``types`` as ``known_type`` spells them. ``overrides`` and ``imatrix`` speak of GGUF tensors;
    with ``bits_per_weight`` or ``size`` (bytes) there are no ``types``: those of the one GGUF file
    are solved for.

    Raises:
        UsageError: settings that do not go together.
    """

    types: tuple[str, ...]
    overrides: tuple[Override, ...] = ()
    imatrix: Imatrix | None = None
    bits_per_weight: float | None = None
    size: int | None = None
    collecting: bool = False
    """The matrix is made when all else is settled; a plan counts on it."""

    def __post_init__(self) -> None:
        if self.bits_per_weight is not None and self.size is not None:
            raise UsageError("--bits-per-weight and --size: give one of the two")
        if self.budgeted and self.types:
            raise UsageError(
                "--bits-per-weight and --size choose the types of a GGUF file themselves",
                hint="leave --type out; --tensor-type still decides for the tensors it fits",
            )
        if not self.budgeted and not self.types:
            raise UsageError("--type is missing", hint="name at least one, such as --type Q4_K_M")
        if len(set(self.types)) < len(self.types):
            raise UsageError("--type: name each type once", hint="--type Q4_K_M --type Q8_0")
        if (self.overrides or self.weighted) and not self.gguf:
            raise UsageError(
                "--tensor-type, --imatrix and --collect-imatrix are for GGUF types",
                hint=f"name one with --type, not only {', '.join(self.types)}",
            )

    @property
    def budgeted(self) -> bool:
        return self.bits_per_weight is not None or self.size is not None

    @property
    def gguf(self) -> bool:
        """Whether any output is a GGUF file."""
        return self.budgeted or any(kind_of(type) == "gguf" for type in self.types)

    @property
    def runnable(self) -> bool:
        """Whether a runner of ours takes any output."""
        return self.gguf or any(kind_of(type) == "mlx" for type in self.types)

    @property
    def weighted(self) -> bool:
        return self.imatrix is not None or self.collecting

    @property
    def single(self) -> bool:
        """Whether the output is one file."""
        return self.budgeted or (len(self.types) == 1 and kind_of(self.types[0]) == "gguf")


def check_target(out: Path, recipe: Recipe, source: ModelFiles) -> None:
    """Hold where the output is to go before anything is read.

    Raises:
        UsageError: no name of such an output, no folder for it, or it is the model itself.
    """
    if not out.name:
        raise UsageError(f"OUT {out}: has no name", hint="name a file or a directory to be made")
    if recipe.single and out.suffix != GGUF_SUFFIX:
        stem = out.name[: -len(GGUF_SUFFIX)] if out.name.lower().endswith(GGUF_SUFFIX) else out.name
        raise UsageError(
            f"{out}: a GGUF file's name ends in {GGUF_SUFFIX}",
            hint=f"name it {out.with_name((stem or 'model') + GGUF_SUFFIX)}",
        )
    if not recipe.single and out.suffix == GGUF_SUFFIX:
        what = "several types make" if len(recipe.types) > 1 else f"{recipe.types[0]} makes"
        raise UsageError(
            f"{out}: {what} a directory, not a GGUF file", hint=f"name it {out.with_suffix('')}"
        )
    if not out.parent.is_dir():
        raise UsageError(f"{out.parent}: no such directory", hint="make it, or name another")
    itself = any(file.path is not None and _same(file.path, out) for file in source.files)
    if itself:
        raise UsageError(f"{out}: is the model itself", hint="name another file")
    if recipe.single and out.is_dir():
        raise UsageError(f"{out}: is a directory", hint="name another file")


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False
