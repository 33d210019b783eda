"""Knows no disk: where the rows of a table lie in its files, and rows from there as numbers.

Rows that were read from anywhere in a file, one behind another in memory, are decoded and checked
by the very weight that they are of, made over that memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from localrun.formats.reader import BytesSource
from localrun.releases.engram_rows import NativeRows
from localrun.releases.stored.bytewise import Scaled
from localrun.releases.stored.ggml_blocks import Blocks
from localrun.releases.stored.part import Part
from localrun.releases.stored.plain import Integers, Plain
from localrun.releases.stored.scales import GROUP
from localrun.releases.weights import Bytes, Weight, row_count


def parts_of(weight: Weight) -> tuple[Part, ...]:
    """The tensors that hold its rows, the codes first: each as many rows as it has, all equally
    long. None where a row's bytes lie in another way."""
    if isinstance(weight, NativeRows):
        inner = [weight.table] if weight.scales is None else [weight.table, weight.scales]
        return tuple(part for each in inner for part in parts_of(each))
    if isinstance(weight, Scaled) and in_groups(weight):
        return weight.part, weight.scales.part
    # Subclasses and views may read otherwise than the class says.
    return (weight.part,) if type(weight) in (Plain, Blocks, Integers) else ()  # type: ignore[attr-defined]


def in_groups(weight: Scaled) -> bool:
    """Whether it is stored as a release's tables: e4m3, a power of two for 32 numbers of a row."""
    scales = weight.scales
    power = scales.part.kind in ("F8_E8M0", "U8")
    return weight.table == "e4m3" and power and (scales.height, scales.width) == (1, GROUP)


def row_bytes(part: Part, weight: Weight) -> int:
    return part.info.bytes // max(row_count(weight), 1)


def over(weight: Weight, rows: Sequence[Bytes]) -> Weight:
    """Some rows of ``weight`` as a weight of ``n`` rows: ``rows`` are their bytes in each of its
    parts, ``[n, bytes]``. Errors count rows among these."""
    if isinstance(weight, NativeRows):
        table = over(weight.table, rows[:1])
        return NativeRows(table, weight.scales and over(weight.scales, rows[1:]))
    if isinstance(weight, Scaled):
        count = len(rows[0])
        part = _over(weight.scales.part, rows[1])
        scales = replace(weight.scales, part=part, matrix=count, lines=count, total=count)
        shape = count, weight.shape[-1]
        return replace(weight, shape=shape, part=_over(weight.part, rows[0]), scales=scales)
    assert isinstance(weight, Plain | Blocks | Integers)
    return type(weight)(_over(weight.part, rows[0]))


def _over(part: Part, rows: Bytes) -> Part:
    shape = len(rows), part.info.shape[-1]
    info = part.info._replace(shape=shape, offset=0, bytes=rows.nbytes, file=0)
    return replace(part, source=BytesSource(rows.tobytes()), info=info)
