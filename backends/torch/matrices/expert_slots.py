"""Knows no cache: the places of a layer's experts, three stacks of matrices of any stored form.

Stacks are those that hold all experts where they fit, with fewer places; so what lies in a place,
and every product by it, is the same to the last bit.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from torch import Tensor

from localrun.backends.torch.layers.feed_forward import Experts
from localrun.backends.torch.matrices.packed import FEW, BrainBank
from localrun.backends.torch.matrices.stacks import Stack
from localrun.formats.extent import Extent
from localrun.releases.weights import Weight, row_count

if TYPE_CHECKING:
    from localrun.backends.torch.tensors import Bank

# Stretches that lie so near are read as one: a page of a disk more costs nothing.
_GAP: Final = 4096
_ADVICE: Final = getattr(mmap, "MADV_DONTNEED" if sys.platform == "linux" else "MADV_FREE", None)


@dataclass(frozen=True, slots=True)
class StackedSlots:
    """``ExpertSlots`` of ``sources``, the weights of w1, w3 and w2 of every expert, in ``stacks``.
    ``few`` and ``many`` multiply by what lies there, in steps of so many tokens."""

    name: str
    sources: tuple[Sequence[Weight], ...]
    stacks: tuple[Stack, ...]
    few: Experts
    many: Experts

    @property
    def count(self) -> int:
        return len(self.sources[0])

    @property
    def slots(self) -> int:
        return self.stacks[0].count

    @property
    def slot_nbytes(self) -> int:
        return sum(stack.place_nbytes for stack in self.stacks)

    @property
    def read_nbytes(self) -> int:
        return sum(extent.length for extent in self.extents(0))

    def extents(self, expert: int) -> tuple[Extent, ...]:
        weights = (each[expert] for each in self.sources)
        found = (extent for weight in weights for extent in weight.ranges(0, row_count(weight)))
        return joined(found)

    def fill(self, slot: int, expert: int) -> None:
        for stack, weights in zip(self.stacks, self.sources, strict=True):
            stack.fill(slot, weights[expert])

    def __call__(self, x: Tensor, slots: Tensor, weights: Tensor, tokens: int) -> Tensor:
        return (self.few if tokens <= FEW else self.many).each(x, slots, weights)

    def release(self, first: int) -> int:
        """None where memory is a device's."""
        parts = (part for stack in self.stacks for part in stack.memory)
        return sum(_given_back(part[first:]) for part in parts)

    def close(self) -> None:
        self.few.close()


def slots_of(
    name: str,
    sources: tuple[Sequence[Weight], ...],
    stacks: tuple[Stack, ...],
    banks: Sequence[Bank],
    limit: float | None,
    late: bool,
) -> StackedSlots:
    """Of products by ``stacks``."""
    few: list[Bank] = [bank.few if isinstance(bank, BrainBank) else bank for bank in banks]
    many: list[Bank] = [bank.many if isinstance(bank, BrainBank) else bank for bank in banks]
    w1, w3, w2 = few
    of_few = Experts(w1, w3, w2, limit, late)
    w1, w3, w2 = many
    return StackedSlots(name, sources, stacks, of_few, Experts(w1, w3, w2, limit, late))


def joined(extents: Iterable[Extent]) -> tuple[Extent, ...]:
    """All of them in as few stretches as may be, in the order of the files."""
    made: list[Extent] = []
    for each in sorted(extents):
        last = made[-1] if made else None
        if last and each.file == last.file and each.offset <= last.offset + last.length + _GAP:
            stop = max(last.offset + last.length, each.offset + each.length)
            made[-1] = Extent(last.file, last.offset, stop - last.offset)
        elif each.length:
            made.append(each)
    return tuple(made)


def _given_back(memory: Tensor) -> int:
    """Whole pages of it, to the system; they are zeros when they are touched again."""
    if memory.device.type != "cpu" or _ADVICE is None:
        return 0
    page = mmap.PAGESIZE
    start = -(-memory.data_ptr() // page) * page
    length = (memory.data_ptr() + memory.nbytes) // page * page - start
    if length <= 0:
        return 0
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return 0 if advise(start, length, _ADVICE) else length
