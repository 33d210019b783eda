"""Knows no target format: a GGUF file on this disk, opened for a conversion."""

from __future__ import annotations

from functools import cached_property
from types import MappingProxyType
from typing import Final

from localrun.disk.staged import Stage
from localrun.errors import UsageError
from localrun.formats.gguf import raw_values
from localrun.formats.gguf_values import Raw, Value
from localrun.formats.header import TensorInfo
from localrun.formats.text import shown
from localrun.ggml.types import WEIGHT_TYPES
from localrun.releases.opened import Opened
from localrun.releases.stored.ggml_blocks import Blocks
from localrun.releases.stored.numbers import FLOATS
from localrun.releases.stored.part import Part
from localrun.releases.stored.plain import INTEGERS, Integers, Plain
from localrun.releases.weights import Weight
from localrun.store.files import ModelFiles

_OF_A_SPLIT: Final = "split."


class GgufFile(Opened):
    """A GGUF model, of one file or split in several. ``header.metadata`` has its keys as values.

    Raises:
        UsageError: not a GGUF model.
        ModelNotFoundError, HeaderError: a file is gone or malformed, or a part is missing.
    """

    def __init__(self, files: ModelFiles, stage: Stage | None = None) -> None:
        if files.format != "gguf":
            raise UsageError(f"{files.ref}: a {files.format} model, not a GGUF file")
        super().__init__(files, stage)

    @cached_property
    def metadata(self) -> MappingProxyType[str, Value]:
        """Each key with the bytes of its type and value, in the file's order; without the keys that
        say how the model was split."""
        found = raw_values(self._sources[0], self.paths[0].name)
        kept = {k: Raw(data) for k, data in found.items() if not k.startswith(_OF_A_SPLIT)}
        return MappingProxyType(kept)

    def weights(self) -> dict[str, Weight]:
        """By the names of GGUF, in the file's order.

        Raises:
            UsageError: a type that holds no weights (Q8_1, Q8_K).
        """
        return {info.name: self._weight(info) for info in self.header.tensors}

    def _weight(self, info: TensorInfo) -> Weight:
        part = Part(self.source(info), info, self.header.files[info.file])
        kind = info.type.name
        if kind in FLOATS:
            return Plain(part)
        if kind in INTEGERS:
            return Integers(part)
        if kind in WEIGHT_TYPES:
            return Blocks(part)
        raise UsageError(
            f"{part.file}: {shown(info.name)} is {kind}, which holds no weights",
            hint="get another conversion of the model",
        )
