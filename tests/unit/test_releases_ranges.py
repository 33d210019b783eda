"""What weights say of the bytes that they read, against the bytes that are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localrun.formats.extent import Extent
from localrun.formats.reader import FileSource
from localrun.releases.engram_rows import NativeRows
from localrun.releases.stored.bytewise import Scaled
from localrun.releases.views import (
    Changed,
    Gathered,
    Portion,
    Reshaped,
    Sliced,
    Stacked,
    Transposed,
)
from localrun.releases.weights import Weight
from tests.matrices import FORMS, G, fp8
from tests.stored import FP8, close_all, weights

ROWS, COLUMNS = 48, 64


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    close_all()


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What is read of the file from here on, as (offset, length)."""
    found: list[tuple[int, int]] = []
    real = FileSource.read

    def noted(source: FileSource, offset: int, length: int) -> bytes:
        found.append((offset, length))
        return real(source, offset, length)

    monkeypatch.setattr(FileSource, "read", noted)
    return found


def touched(stretches: Any) -> set[int]:
    return {at for offset, length in stretches for at in range(offset, offset + length)}


def told(weight: Weight, start: int, stop: int) -> set[int]:
    extents = list(weight.ranges(start, stop))
    assert all(isinstance(each, Extent) and each.file == 0 for each in extents)
    return touched((each.offset, each.length) for each in extents)


def hold(weight: Weight, start: int, stop: int, read: list[tuple[int, int]]) -> None:
    """Every form in which the rows can be had reads what ``ranges`` says."""
    expected = told(weight, start, stop)
    assert not read, "bytes were read to tell"
    weight.rows(start, stop)
    assert touched(read) == expected
    read.clear()
    for kind in ("MXFP4", "FP4", weight.stored):
        if weight.blocks(kind, start, stop) is not None:
            assert touched(read) <= expected
        read.clear()


SPANS = [(0, 48), (0, 1), (7, 8), (5, 41), (47, 48)]


@pytest.mark.parametrize(("start", "stop"), SPANS)
@pytest.mark.parametrize("form", FORMS)
def test_rows_of_every_form(
    tmp_path: Path, form: str, start: int, stop: int, read: list[tuple[int, int]]
) -> None:
    case = FORMS[form]("w", ROWS, COLUMNS, 1)
    weight = weights(tmp_path, case.stored, case.quantization)["w.weight"]
    read.clear()

    hold(weight, start, stop, read)


VIEWS: dict[str, Callable[[Weight, Weight], Weight]] = {
    "stacked": lambda a, b: Stacked((a, b), (2 * ROWS, COLUMNS)),
    "gathered": lambda a, b: Gathered(a, (ROWS, COLUMNS), (3, 1, 0, 2), 4),
    "sliced": lambda a, b: Sliced(a, (36, COLUMNS), 8, 2, 8),
    "portion": lambda a, b: Portion(a, (40, COLUMNS), 6),
    "changed": lambda a, b: Changed(a, lambda rows: rows + 1),
    "transposed": lambda a, b: Transposed(Reshaped(a, (3, 16, COLUMNS)), 3),
    "portion of a stack": lambda a, b: Portion(Stacked((a, b), (2 * ROWS, COLUMNS)), (9, 64), 44),
}


@pytest.mark.parametrize("form", ["fp4", "fp8-32"])
@pytest.mark.parametrize("view", VIEWS)
def test_rows_of_every_view(
    tmp_path: Path, form: str, view: str, read: list[tuple[int, int]]
) -> None:
    cases = [FORMS[form](name, ROWS, COLUMNS, seed) for seed, name in enumerate("ab")]
    stored = {name: each for case in cases for name, each in case.stored.items()}
    found = weights(tmp_path, stored, cases[0].quantization)
    weight = VIEWS[view](found["a.weight"], found["b.weight"])
    read.clear()

    for start, stop in ((0, 9), (4, 8), (5, 6), (8, 9)):
        if start % weight.step == 0:
            hold(weight, start, stop, read)


@pytest.mark.parametrize("view", VIEWS)
def test_no_rows_at_all_can_be_asked_for(
    tmp_path: Path, view: str, read: list[tuple[int, int]]
) -> None:
    """So it is told what a weight can be had as, before anything of it is read."""
    cases = [FORMS["fp4"](name, ROWS, COLUMNS, seed) for seed, name in enumerate("ab")]
    stored = {name: each for case in cases for name, each in case.stored.items()}
    found = weights(tmp_path, stored)
    weight = VIEWS[view](found["a.weight"], found["b.weight"])
    read.clear()

    moved = weight.blocks("FP4", 0, 0)

    assert (moved is None) == (view in ("changed", "transposed"))
    assert moved is None or moved.shape == (0, 17 * COLUMNS // 32)
    assert not touched(read)


def test_rows_of_a_table_and_its_parts(tmp_path: Path, read: list[tuple[int, int]]) -> None:
    case = fp8("t", ROWS, COLUMNS, "f32", 32, 1)
    held = dict(case.stored) | {
        "codes": ("I8", G().integers(0, 100, (ROWS, COLUMNS), dtype=np.int8)),
        "both": ("I8", G().integers(0, 100, (ROWS, 66), dtype=np.int8)),
        "scales": ("I8", G().integers(100, 120, (ROWS, 2), dtype=np.int8)),
    }
    found = weights(tmp_path, held, FP8 | {"weight_block_size": [32, 32]})
    apart, together = NativeRows(found["codes"], found["scales"]), NativeRows(found["both"], None)
    scaled = found["t.weight"]
    assert isinstance(scaled, Scaled)
    read.clear()

    for weight in (apart, together, scaled, scaled.codes):
        hold(weight, 3, 7, read)
