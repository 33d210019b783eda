"""Knows no architecture: what a file of ``models/architectures`` says of a family.

One file a family, named after it, with two functions that take a config.json's fields (of a GGUF
file: its metadata, translated into the same words):

    layout(config, storage)  → the tensors of a checkpoint, in the release's names
    caches(config)           → what a sequence costs

The fields are those of ``text_config`` over those of the config.json itself, so that one look finds
both; ``vision_config`` and ``text_config`` are still there where a release has them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from localrun.models.fields import Fields
from localrun.models.layout import LayoutTensor
from localrun.models.spec import CacheRows


@dataclass(frozen=True, slots=True)
class Caches:
    """``states`` are (layer, bytes a sequence) whatever its length. ``prefill_layers`` is how many
    layers see the whole prompt, 0 for all. ``table_rows`` is how many rows of the n-gram table of
    one layer a token reads. An ``encoder`` keeps nothing: it makes embeddings of whole texts only.
    """

    rows: tuple[CacheRows, ...] = ()
    states: tuple[tuple[int, int], ...] = ()
    prefill_layers: int = 0
    table_rows: int = 0
    encoder: bool = False


class Storage(Protocol):
    """How a release stores its matrices: plain, or quantized with scales beside them."""

    def linear(
        self, name: str, rows: int, columns: int, *, copies: int = 1
    ) -> Iterator[LayoutTensor]:
        """The tensors of one matrix ``[rows, columns]``; ``name`` lacks ``.weight``."""
        ...

    def plain(self, name: str, *shape: int) -> Iterator[LayoutTensor]:
        """A tensor in the release's own float type; ``name`` is whole."""
        ...


class Architecture(Protocol):
    def layout(self, config: Fields, storage: Storage) -> Iterator[LayoutTensor]:
        """Raises HeaderError for a field that is absent or that no model has."""
        ...

    def caches(self, config: Fields) -> Caches:
        """Raises HeaderError for a field that is absent or that no model has."""
        ...
