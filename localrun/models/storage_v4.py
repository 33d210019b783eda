"""Knows no layer: how DeepSeek-V4 releases store matrices.

Matrices are F8_E4M3 with one F8_E8M0 ``.scale`` a square block; routed experts are e2m1 codes, two
to a byte of I8 ``[out, in / 2]``, with one F8_E8M0 scale for 32 of a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from localrun.formats.types import SAFETENSORS_TYPES
from localrun.models.architecture import Storage
from localrun.models.fields import Fields
from localrun.models.layout import LayoutTensor
from localrun.models.storage import BF16, F8, Fp8Block

E8M0 = SAFETENSORS_TYPES["F8_E8M0"]
_I8 = SAFETENSORS_TYPES["I8"]
GROUP = 32


@dataclass(frozen=True, slots=True)
class Scaled:
    """``block`` numbers a side share a scale; ``packed`` experts are e2m1, others like the rest."""

    block: int
    packed: bool

    def linear(
        self, name: str, rows: int, columns: int, *, copies: int = 1
    ) -> Iterator[LayoutTensor]:
        scales = (-(-rows // self.block), -(-columns // self.block))
        yield LayoutTensor(f"{name}.weight", (rows, columns), F8, copies)
        yield LayoutTensor(f"{name}.scale", scales, E8M0, copies)

    def plain(self, name: str, *shape: int) -> Iterator[LayoutTensor]:
        yield LayoutTensor(name, shape, BF16)

    def expert(self, name: str, rows: int, columns: int, copies: int) -> Iterator[LayoutTensor]:
        """One matrix of every routed expert of a layer; ``name`` holds ``{e}``."""
        if not self.packed:
            yield from self.linear(name, rows, columns, copies=copies)
            return
        yield LayoutTensor(f"{name}.weight", (rows, -(-columns // 2)), _I8, copies)
        yield LayoutTensor(f"{name}.scale", (rows, -(-columns // GROUP)), E8M0, copies)

    def table(self, name: str, rows: int, columns: int) -> Iterator[LayoutTensor]:
        """Rows that are read one at a time: a scale for 32 numbers of each."""
        yield LayoutTensor(f"{name}.weight", (rows, columns), F8)
        yield LayoutTensor(f"{name}.scale", (rows, -(-columns // GROUP)), E8M0)


@dataclass(frozen=True, slots=True)
class Unscaled:
    """A conversion to one float type, as ``storage`` writes it."""

    storage: Storage

    def linear(
        self, name: str, rows: int, columns: int, *, copies: int = 1
    ) -> Iterator[LayoutTensor]:
        return self.storage.linear(name, rows, columns, copies=copies)

    def plain(self, name: str, *shape: int) -> Iterator[LayoutTensor]:
        return self.storage.plain(name, *shape)

    def expert(self, name: str, rows: int, columns: int, copies: int) -> Iterator[LayoutTensor]:
        return self.storage.linear(name, rows, columns, copies=copies)

    def table(self, name: str, rows: int, columns: int) -> Iterator[LayoutTensor]:
        return self.storage.plain(f"{name}.weight", rows, columns)


StorageV4 = Scaled | Unscaled


def storage_v4(config: Fields, storage: Storage) -> StorageV4:
    """V4's own names and scales where ``storage`` is the FP8 of ``quantization_config``; any other
    is taken as it is.

    ``expert_dtype`` stands at the root (V4) or inside ``quantization_config`` (V4.1).

    Raises:
        HeaderError: scales that no release has, or experts of another type.
    """
    quantization = config.mapping("quantization_config")
    if quantization is None or not isinstance(storage, Fp8Block):
        return Unscaled(storage)
    if storage.block is None or storage.block[0] != storage.block[1]:
        raise quantization.error("weight_block_size", "is not two equal numbers")
    place = quantization if quantization.values.get("expert_dtype") is not None else config
    kind = place.text("expert_dtype")
    if kind not in {None, "fp4", "fp8"}:
        raise place.error("expert_dtype", f"{kind!r} is neither fp4 nor fp8")
    return Scaled(storage.block[0], packed=kind == "fp4")
