"""Knows no architecture: the weights of a release on their way into a model, each taken once.

Nothing is skipped in silence: what a model asks for and the release lacks, what it has otherwise
than asked, and what nobody asked for are errors that name the tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
import torch
from torch import Tensor

from localrun.backends.tiers.row_reads import RowReads
from localrun.backends.torch.layers.feed_forward import Experts
from localrun.backends.torch.matrices import loading, packed
from localrun.backends.torch.matrices.checked_table import CheckedTable
from localrun.backends.torch.matrices.dense import Dense, DenseBank
from localrun.backends.torch.matrices.device_table import table_on_device
from localrun.backends.torch.matrices.disk_table import DiskTable, prefetched
from localrun.backends.torch.matrices.expert_slots import slots_of
from localrun.backends.torch.matrices.kernels import Kernels
from localrun.backends.torch.matrices.rounding import Rounded, RoundedBank, Rounding
from localrun.backends.torch.matrices.slots import ExpertSlots
from localrun.backends.torch.matrices.stacks import Stack, filled, stack
from localrun.backends.torch.matrices.table import Table, table_in_memory
from localrun.backends.torch.matrices.tiles import Tiled, TiledBank
from localrun.backends.torch.model import Setup
from localrun.backends.torch.tiers.arms import Arms
from localrun.errors import HeaderError
from localrun.formats.text import shown
from localrun.ggml.types import WEIGHT_TYPES
from localrun.ggml.weights import Weights
from localrun.releases.release import Release
from localrun.releases.stored.bytewise import Scaled
from localrun.releases.views import Stacked
from localrun.releases.weights import Weight

if TYPE_CHECKING:
    from localrun.backends.torch.tiers.experts import Guess, StreamedExperts
    from localrun.backends.torch.tiers.store import ExpertStore

_MARK: Final = "{e}"


class Linear(Protocol):
    """A matrix ``[rows, columns]`` as it is stored."""

    @property
    def rows(self) -> int: ...

    @property
    def columns(self) -> int: ...

    @property
    def nbytes(self) -> int: ...

    def __call__(self, x: Tensor) -> Tensor:
        """``x @ W.T``: ``[..., columns]`` → ``[..., rows]``, in the type of ``x``."""
        ...

    def weight(self) -> Tensor:
        """Its numbers ``[rows, columns]``, in the type that the model computes in; of weights that
        libggml multiplies they are read from the file again."""
        ...

    def close(self) -> None: ...


class Bank(Protocol):
    """The same matrix of all experts of a layer, ``count`` of ``[rows, columns]``."""

    @property
    def count(self) -> int: ...

    @property
    def nbytes(self) -> int: ...

    @property
    def expert_nbytes(self) -> int:
        """Of one expert: what a token reads for each that it chooses."""
        ...

    def __call__(self, x: Tensor, chosen: Tensor) -> Tensor:
        """Each token by its experts, int64 ``[T, K]``: ``[T, K, rows]`` of ``x``, which is
        ``[T, columns]``, or ``[T, K, columns]`` where every expert has its own."""
        ...

    def weight(self, expert: int) -> Tensor:
        """Numbers ``[rows, columns]`` of one, as ``Linear.weight``."""
        ...

    def close(self) -> None: ...


class Tensors:
    """What a model takes of ``release``. Names are those of the release; ``linear``,
    ``joined``, ``bank`` and ``table`` take them without ``.weight``. ``close`` what was taken if
    the model cannot be built.

    Products of packed weights share ``setup.kernels``, or kernels of their own.
    """

    def __init__(self, release: Release, setup: Setup) -> None:
        self.release, self.setup = release, setup
        self.kernels = setup.kernels or Kernels(setup.threads)
        self._left: dict[str, Weight] = dict(release.weights)
        self._taken: list[Linear | Bank] = []
        self._block = _activation_block(release.weights.values())
        self._row_reads = None
        if setup.reader is not None:
            self._row_reads = RowReads(setup.reader, setup.interrupt)
        self._hot_rows = 0
        numerics = setup.numerics
        libggml = numerics.packed and setup.device.type == "cpu" and self.kernels.threads > 0
        self._place = loading.Place(setup.device, numerics.dtype, libggml)
        # What was rounded to FP8 is multiplied and summed in float32.
        self._compute = torch.float32 if numerics.rounds_activations else numerics.dtype

    def plain(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Numbers of any stored form; of the model's type where ``dtype`` is not given.

        Raises:
            HeaderError: absent, of another shape, or integers where numbers are asked for, or the
                other way round. SourceError: a number that is not finite.
        """
        weight = self._take(name, shape)
        made = torch.empty(shape, dtype=dtype or self._place.dtype, device=self._place.device)
        loading.require_numbers(weight, made.dtype)
        flat = made.view(math.prod(shape[:-1]), shape[-1] if shape else 1)
        for start, stop in loading.slabs(weight, 4 * flat.shape[1]):
            rows = weight.rows(start, stop)
            if not made.dtype.is_floating_point and (rows != np.trunc(rows)).any():
                raise HeaderError(shown(name), weight.place[1], "holds numbers that are not whole")
            loading.put(flat[start:stop], rows, weight)
        return made

    def linear(self, name: str, rows: int, columns: int) -> Linear:
        """Raises as ``plain``."""
        weight = self._take(f"{name}.weight", (rows, columns))
        made = self._linear(weight)
        self._taken.append(made)
        return made

    def joined(self, rows: Mapping[str, int], columns: int) -> tuple[Linear, ...]:
        """Matrices of one input, ``rows`` of each by its name, whose outputs follow one another:
        as one where they are stored alike in blocks or plain numbers, else each as it is.

        Raises:
            As ``plain``.
        """
        weights = [self._take(f"{name}.weight", (count, columns)) for name, count in rows.items()]
        if len({each.stored for each in weights}) == 1 and weights[0].stored in WEIGHT_TYPES:
            weights = [Stacked(tuple(weights), (sum(rows.values()), columns))]
        made = tuple(map(self._linear, weights))
        self._taken += made
        return made

    def over(self, numbers: Tensor) -> Linear:
        """Of numbers that ``plain`` gave: a head that is the embedding. They stay where they are
        and are not counted twice: ``nbytes`` is theirs."""
        made = (
            packed.brain(numbers, self.kernels) if _shares(numbers, self._place) else Dense(numbers)
        )
        self._taken.append(made)
        return made

    def bank(self, name: str, count: int, rows: int, columns: int) -> Bank:
        """``name`` has ``{e}`` where an expert's number stands.

        Raises:
            As ``plain``.
        """
        weights = self._each(name, count, rows, columns)
        form = loading.form_of(weights, self._place)
        stack = filled(form, weights, self._place, experts=True)
        made = self._bank(form, stack, weights, self._place)
        self._taken.append(made)
        return made

    def experts(
        self,
        names: Sequence[str],
        count: int,
        inner: int,
        width: int,
        *,
        top: int,
        guess: Guess,
        limit: float | None = None,
        late: bool = False,
    ) -> Experts | StreamedExperts:
        """The routed experts of a layer, of which a token picks ``top``: w1, w3 and w2 by
        ``names``, as for ``bank``. All of them, or where ``setup.experts`` keeps them in slots as
        many as it has places for; ``guess`` tells it which will be picked.

        Raises:
            As ``plain``.
        """
        shapes = [(inner, width), (inner, width), (width, inner)]
        if self.setup.experts is None:
            w1, w3, w2 = (
                self.bank(name, count, *shape) for name, shape in zip(names, shapes, strict=True)
            )
            return Experts(w1, w3, w2, limit, late)
        sources = tuple(
            self._each(name, count, *shape) for name, shape in zip(names, shapes, strict=True)
        )
        name = names[0][: names[0].index(_MARK) + len(_MARK)]
        slots = self._slots(name, sources, self.setup.experts, limit, late)
        return self.setup.experts.layer(slots, top, guess)

    def _slots(
        self,
        name: str,
        sources: tuple[tuple[Weight, ...], ...],
        store: ExpertStore,
        limit: float | None,
        late: bool,
    ) -> ExpertSlots:
        """On the CPU in one piece, whatever of it counts as a card's. A card has its own, and the
        others lie beside it in the host's memory, where its kernels compute with them."""
        places, place = store.places(len(sources[0])), self._place
        if place.device.type == "cpu":
            return self._places(name, sources, places, place, limit, late)
        near = min(store.card_slots, places)
        packed = self.setup.numerics.packed and self.kernels.threads > 0
        host = replace(place, device=torch.device("cpu"), packed=packed)
        card = self._places(name, sources, near, place, limit, late) if near else None
        if near == places and card is not None:
            return card
        return Arms(card, self._places(name, sources, places - near, host, limit, late))

    def _places(
        self,
        name: str,
        sources: tuple[tuple[Weight, ...], ...],
        places: int,
        place: loading.Place,
        limit: float | None,
        late: bool,
    ) -> ExpertSlots:
        stacks, banks = [], []
        for weights in sources:
            form = loading.form_of(weights, place)
            stacks.append(stack(form, weights[0], places, place, experts=True))
            banks.append(self._bank(form, stacks[-1], weights, place))
            self._taken.append(banks[-1])
        return slots_of(name, sources, tuple(stacks), banks, limit, late)

    def table(self, name: str, rows: int, width: int) -> Table:
        """Where ``setup.engram`` says. On disk it is read through ``setup.reader``, and without
        one from its own file, which must stay open.

        Raises:
            As ``plain``. EngineError: a device cannot hold it as it is stored.
        """
        weight = self._take(f"{name}.weight", (rows, width))
        made = self._table(weight)
        return CheckedTable(made, weight) if self.setup.check_rows else made

    def _table(self, weight: Weight) -> Table:
        setup, device, dtype = self.setup, self._place.device, self._place.dtype
        if setup.engram == "vram":
            return table_on_device(weight, device, dtype)
        if setup.engram != "disk":
            return table_in_memory(weight, device, dtype)
        loading.require_numbers(weight, dtype)
        if self._row_reads is not None:
            told = (setup.hot_rows - self._hot_rows, setup.scales_in_memory)
            made = prefetched(weight, self._row_reads, device, dtype, *told)
            if made is not None:
                # The first table is the one that is needed first in a step.
                self._hot_rows += made.hot.nbytes
                return made
        return DiskTable(weight, device, dtype)

    def has(self, name: str) -> bool:
        return name in self._left

    def leave(self, *prefixes: str) -> None:
        """What may be there and is not computed here: drafts, vision towers."""
        self._left = {k: v for k, v in self._left.items() if not k.startswith(prefixes)}

    def finish(self) -> None:
        """Raises HeaderError for a tensor that nobody took."""
        if self._left:
            name = min(self._left)
            raise HeaderError(
                shown(name),
                self._left[name].place[1],
                "is no tensor of this model: nobody reads it",
            )

    def close(self) -> None:
        """Every matrix that was taken, and the kernels unless the setup has them."""
        for each in self._taken:
            each.close()
        self._taken = []
        if self.setup.kernels is None:
            self.kernels.close()

    def _each(self, name: str, count: int, rows: int, columns: int) -> tuple[Weight, ...]:
        names = (f"{name.replace(_MARK, str(expert))}.weight" for expert in range(count))
        return tuple(self._take(each, (rows, columns)) for each in names)

    def _take(self, name: str, shape: tuple[int, ...]) -> Weight:
        found = self._left.pop(name, None)
        if found is None:
            raise HeaderError(shown(name), 0, "is not in the checkpoint; its config asks for it")
        if found.shape != shape:
            problem = f"has the shape {list(found.shape)}, its config says {list(shape)}"
            raise HeaderError(shown(name), found.place[1], problem)
        return found

    def _linear(self, weight: Weight) -> Linear:
        form = loading.form_of([weight], self._place)
        made = filled(form, [weight], self._place, experts=False).made
        if isinstance(made, Weights):
            return packed.Packed(packed.Products(made, self.kernels), weight, self._place.dtype)
        if not isinstance(made, Tensor):
            return self._rounded(Tiled(made.one(0), *self._how), weight)
        if _shares(made, self._place):
            return packed.brain(made[0], self.kernels)
        return self._rounded(Dense(made[0]), weight)

    def _bank(
        self, form: str, stack: Stack, weights: Sequence[Weight], place: loading.Place
    ) -> Bank:
        """Over matrices that may yet have to be filled, in the form of all ``weights``."""
        made = stack.made
        if isinstance(made, Weights):
            products = packed.Products(made, self.kernels, form == loading.PAIRS)
            return packed.PackedBank(products, tuple(weights), self._place.dtype)
        if not isinstance(made, Tensor):
            return self._rounded_bank(TiledBank(made, *self._how), weights[0])
        if _shares(made, place):
            return packed.brain_bank(made, self.kernels)
        return self._rounded_bank(DenseBank(made), weights[0])

    @property
    def _how(self) -> tuple[torch.dtype, torch.dtype, Kernels]:
        return self._compute, self._place.dtype, self.kernels

    def _rounded(self, linear: Linear, weight: Weight) -> Linear:
        rounding = self._rounding(weight)
        return linear if rounding is None else Rounded(linear, rounding)

    def _rounded_bank(self, bank: Bank, weight: Weight) -> Bank:
        rounding = self._rounding(weight)
        return bank if rounding is None else RoundedBank(bank, rounding)

    def _rounding(self, weight: Weight) -> Rounding | None:
        """A release rounds what enters matrices in FP8 or FP4, by blocks of its FP8 matrices. One
        without such says nothing of activations."""
        if not self.setup.numerics.rounds_activations or self._block is None:
            return None
        return self._block if weight.stored in loading.EIGHT_OR_FOUR else None


def _activation_block(weights: Iterable[Weight]) -> Rounding | None:
    """How activations are rounded, by the first FP8 matrix in blocks: as wide as those, and by
    powers of two where the weights are scaled so."""
    for weight in weights:
        if isinstance(weight, Scaled) and weight.table == "e4m3" and weight.scales.height > 1:
            scales = weight.scales
            if scales.width < weight.shape[-1] or scales.height < weight.shape[0]:
                mantissas, _ = np.frexp(scales.read(0, scales.total))
                return Rounding(scales.width, bool((mantissas == 0.5).all()))
    return None


def _shares(numbers: Tensor, place: loading.Place) -> bool:
    """Whether libggml multiplies plain numbers too: it has kernels for BF16 and few tokens."""
    return place.packed and numbers.dtype == torch.bfloat16 and numbers.numel() > 0
