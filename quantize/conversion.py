"""Knows no family: a conversion as it is planned, and how it is carried out.

Nothing is read of the weights until the whole file is planned; then each tensor goes through memory
a few rows at a time. The file is read back before anybody can see it under its name.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from localrun.errors import SourceError, UsageError
from localrun.formats.header import TensorInfo
from localrun.formats.read import read_header
from localrun.models.gguf_config import FILE_TYPES
from localrun.quantize.checkpoint import Checkpoint
from localrun.quantize.gguf_writer import U32, GgufPlan, GgufWriter, Written
from localrun.quantize.tensors import READABLE, blocks
from localrun.store.atomic import AtomicFile
from localrun.store.disk import require_space
from localrun.store.files import ModelFiles
from localrun.store.progress import NoProgress, Progress

TYPES: Final = ("F32", "F16", "BF16", "Q8_0")
_SUFFIX: Final = ".gguf"
_QUANTIZATION_VERSION: Final = 2


@dataclass(frozen=True, slots=True)
class Converted:
    """A tensor of the checkpoint, and what it becomes."""

    source: TensorInfo
    target: Written


@dataclass(frozen=True, slots=True)
class Conversion:
    """Everything that is decided. ``notes`` are for the user."""

    architecture: str
    plan: GgufPlan
    tensors: tuple[Converted, ...]
    notes: tuple[str, ...] = ()

    @property
    def source_bytes(self) -> int:
        """What is read of the checkpoint."""
        return sum(each.source.bytes for each in self.tensors)


def plan_conversion(checkpoint: Checkpoint, type: str) -> Conversion:
    """Decide what becomes of a checkpoint whose matrices shall be of ``type``.

    Raises:
        UsageError: no such type, or an architecture that is not converted.
        HeaderError: the checkpoint contradicts itself.
    """
    from localrun.quantize import bert

    if type not in TYPES:
        raise UsageError(f"--type {type}: not one of {', '.join(TYPES)}")
    refusal = bert.supports(checkpoint.config)
    if refusal is not None:
        raise UsageError(
            f"{checkpoint.ref}: {refusal} is not converted",
            hint=f"encoders of the BERT family are: {', '.join(bert.ARCHITECTURES)}",
        )
    for tensor in checkpoint.header.tensors:
        if tensor.type.name not in (*READABLE, "I64", "I32"):
            raise UsageError(f"{tensor.name} is {tensor.type.name}; {', '.join(READABLE)} are read")
    found = bert.convert(checkpoint, type, model_name(checkpoint))
    for each in found.tensors:
        if each.source.type.name not in READABLE:
            raise SourceError(f"{each.source.name} holds {each.source.type.name}, not weights")
    return _stamped(found, type, checkpoint.licence)


def model_name(checkpoint: Checkpoint) -> str:
    """What to call the model: what its reference ends in, without version or directory."""
    text = str(checkpoint.ref).rpartition(":")[2].partition("==")[0]
    return text.rstrip("/").rpartition("/")[2].removesuffix(".safetensors") or "model"


def _stamped(found: Conversion, type: str, licence: str | None) -> Conversion:
    """With what every GGUF file says of itself."""
    number = next(at for at, name in FILE_TYPES.items() if name == type)
    stamps: dict[str, U32 | str] = {"general.file_type": U32(number)}
    if type not in ("F32", "F16", "BF16"):
        stamps["general.quantization_version"] = U32(_QUANTIZATION_VERSION)
    if licence:
        stamps["general.license"] = licence
    head, *rest = found.plan.metadata.items()
    plan = GgufPlan(dict([head, *stamps.items(), *rest]), found.plan.tensors)
    return Conversion(found.architecture, plan, found.tensors, found.notes)


def check_target(out: Path, source: ModelFiles, *, force: bool) -> None:
    """Hold where a file is to go before anything is read.

    Raises:
        UsageError: no name of a GGUF file, no folder for it, or something is there already.
    """
    if out.suffix != _SUFFIX:
        raise UsageError(f"{out}: a GGUF file's name ends in {_SUFFIX}", hint=f"{out}{_SUFFIX}")
    if not out.parent.is_dir():
        raise UsageError(f"{out.parent}: no such directory", hint="make it, or name another")
    if out.is_dir() or any(file.path and _same(file.path, out) for file in source.files):
        raise UsageError(f"{out}: is a directory or the model itself", hint="name another file")
    if os.path.lexists(out) and not force:
        raise UsageError(f"{out} is there already", hint="--force replaces it")


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def write(
    conversion: Conversion,
    checkpoint: Checkpoint,
    out: Path,
    *,
    progress: Progress | None = None,
    before_publishing: Callable[[Path], None] = lambda _: None,
) -> str:
    """Write the planned file to ``out`` and return its sha256. A file there is replaced.

    ``before_publishing`` is given the whole file under its temporary name and may raise.

    Raises:
        SourceError: a number that is not finite. DiskFullError: with the bytes needed.
        LocalrunError: the disk failed, or the checkpoint changed meanwhile. Nothing is published.
    """
    plan, bar = conversion.plan, progress or NoProgress()
    size = plan.bytes
    require_space(out, size)
    bar.start(out.name, conversion.source_bytes)
    try:
        with AtomicFile(out.absolute(), expected_bytes=size) as file:
            writer = GgufWriter(plan, file)
            for each in conversion.tensors:
                source = checkpoint.source(each.source)
                writer.write(
                    each.target.name, blocks(source, each.source, each.target, bar.advance)
                )
            writer.finish()
            checkpoint.require_unchanged()
            plan.check(read_header([file.path]))
            before_publishing(file.path)
            digest = file.sha256
            file.commit()
    finally:
        bar.finish()
    return digest
