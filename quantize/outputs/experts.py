"""Knows no codes: experts of a release, each a matrix of its own, however they are stored.

Fused they are ``….mlp.experts.gate_up_proj`` ``[experts, 2 * width, columns]``, gates first, and
``….mlp.experts.down_proj``, as transformers holds Qwen3's and DeepSeek's in memory and some
releases store them. Those with biases are gpt-oss's, where gates and ups take turns: they stay.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from localrun.quantize.views import Stacked
from localrun.quantize.weights import Bytes, Floats, Weight, row_count

_FUSED: Final = re.compile(r"(.*\.mlp\.experts)\.(gate_up_proj|down_proj)(?:\.weight)?$")
_EXPERT: Final = re.compile(r"(.*)\.experts\.(\d+)\.(gate_proj|up_proj|down_proj)\.weight$")
_PARTS: Final = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}


@dataclass(frozen=True)
class Cut:
    """``count`` rows of ``source`` from ``first`` on."""

    source: Weight
    first: int
    count: int

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.count, self.source.shape[-1]

    @property
    def stored(self) -> str:
        return self.source.stored

    @property
    def read_bytes(self) -> int:
        return self.source.read_bytes * self.count // row_count(self.source)

    @property
    def place(self) -> tuple[int, int]:
        file, offset = self.source.place
        return file, offset + self.read_bytes * self.first // self.count

    @property
    def step(self) -> int:
        """The source's, or all rows where those begin inside one of its steps."""
        return self.source.step if self.first % self.source.step == 0 else self.count

    def rows(self, start: int, stop: int) -> Floats:
        begin, skipped = self._begin(start)
        return self.source.rows(begin, self.first + stop)[skipped:]

    def blocks(self, type: str, start: int, stop: int) -> Bytes | None:
        begin, skipped = self._begin(start)
        found = self.source.blocks(type, begin, self.first + stop)
        return None if found is None else found[skipped:]

    def _begin(self, start: int) -> tuple[int, int]:
        """Where a read of the source may begin, and the rows too many by that."""
        wanted = self.first + start
        skipped = wanted % self.source.step
        return wanted - skipped, skipped


def apart(weights: Mapping[str, Weight]) -> dict[str, Weight]:
    """The weights with every fused matrix of experts as one matrix for each, by the names that
    releases give them: ``…experts.0.gate_proj.weight``."""
    found: dict[str, Weight] = {}
    for name, weight in weights.items():
        match = _FUSED.match(name)
        if match is None or len(weight.shape) != 3 or f"{name}_bias" in weights:
            found[name] = weight
        else:
            found |= dict(_matrices(match[1], _PARTS[match[2]], weight))
    return found


def _matrices(prefix: str, names: tuple[str, ...], weight: Weight) -> Iterator[tuple[str, Weight]]:
    experts, rows, _ = weight.shape
    count = rows // len(names)
    for expert in range(experts):
        for at, name in enumerate(names):
            first = expert * rows + at * count
            yield f"{prefix}.{expert}.{name}.weight", Cut(weight, first, count)


def together(weights: Mapping[str, Weight], word: str) -> dict[str, Weight]:
    """The weights with the experts of each layer as one, ``[experts, rows, columns]``, named
    ``….{word}.gate_proj.weight``."""
    stacks: dict[str, list[tuple[int, Weight]]] = {}
    found: dict[str, Weight] = {}
    for name, weight in weights.items():
        match = _EXPERT.match(name)
        if match is None:
            found[name] = weight
        else:
            key = f"{match[1]}.{word}.{match[3]}.weight"
            stacks.setdefault(key, []).append((int(match[2]), weight))
    for key, members in stacks.items():
        parts = tuple(weight for _, weight in sorted(members, key=lambda each: each[0]))
        found[key] = Stacked(parts, (len(parts), *parts[0].shape))
    return found
