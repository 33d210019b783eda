"""Rows of n-gram tables are read ahead in whole blocks, each once, within bounded memory; what
arrives is what the file holds, or an error that names the tensor and the offset.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from localrun.backends.tiers.row_reads import Lying, RowReads
from localrun.backends.torch.matrices.checked_table import CheckedTable
from localrun.backends.torch.matrices.disk_table import PrefetchedTable, prefetched
from localrun.disk.reader import ALIGNMENT
from localrun.errors import DiskReadError, EngineError, SourceError
from localrun.formats.header import TensorInfo
from localrun.formats.reader import FileSource
from localrun.formats.types import GGUF_TYPES
from localrun.releases.engram_rows import NativeRows
from localrun.releases.stored.part import Part
from localrun.releases.stored.plain import Integers
from tests.row_reader import RowReader, never

CPU = torch.device("cpu")
I8 = next(kind for kind in GGUF_TYPES.values() if kind.name == "I8")
COUNT, WIDTH = 4000, 64
ROW = WIDTH + WIDTH // 32


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """Two of random bytes, no whole number of blocks long."""
    folder, source = tmp_path_factory.mktemp("rows"), np.random.default_rng(0)
    made = folder / "a", folder / "b"
    for path in made:
        path.write_bytes(source.bytes(90 * ALIGNMENT + 777))
    return made


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_rows_of_any_parts_are_the_files_bytes(files: tuple[Path, ...], data: Any) -> None:
    count = data.draw(st.integers(1, 40), label="rows")
    parts = []
    for number in range(data.draw(st.integers(1, 2), label="parts")):
        width = data.draw(st.integers(1, 9000), label="width")
        room = files[number].stat().st_size - count * width
        parts.append(Lying(f"t{number}", number, data.draw(st.integers(0, room)), width, count))
    ids = data.draw(st.lists(st.integers(0, count - 1), unique=True, max_size=count).map(sorted))
    waves = data.draw(st.integers(1, 3), label="waves")
    reads = RowReads(RowReader(files), never, wave_bytes=10 * ALIGNMENT, waves=waves)
    found = [np.zeros((len(ids), part.width), np.uint8) for part in parts]

    def landed(first: int, last: int, rows: Sequence[NDArray[np.uint8]]) -> None:
        for target, each in zip(found, rows, strict=True):
            target[first:last] = each

    reads.begin(parts, np.array(ids, np.int64), landed).wait()

    for part, rows in zip(parts, found, strict=True):
        whole = files[part.file].read_bytes()
        for row, at in zip(rows, ids, strict=True):
            begin = part.offset + at * part.width
            assert row.tobytes() == whole[begin : begin + part.width]


def written(path: Path, first: int = 0) -> NDArray[np.uint8]:
    """A table of joined rows behind ``first`` bytes."""
    source = np.random.default_rng(1)
    rows = source.integers(0, 127, (COUNT, ROW), dtype=np.uint8)
    rows[:, WIDTH:] = source.integers(120, 130, (COUNT, ROW - WIDTH))
    path.write_bytes(bytes(first) + rows.tobytes())
    return rows


@dataclass(frozen=True)
class Unheld:
    """A file that is opened for each read."""

    path: Path

    @property
    def size(self) -> int:
        return self.path.stat().st_size

    def read(self, offset: int, length: int) -> bytes:
        with FileSource(self.path) as source:
            return source.read(offset, length)


def table(
    path: Path, reader: RowReader, first: int = 0, *, hot: int = 0, waves: int = 8
) -> PrefetchedTable:
    info = TensorInfo("blk.1.engram_embd.weight", I8, (COUNT, ROW), first, COUNT * ROW)
    weight = NativeRows(Integers(Part(Unheld(path), info, path.name)), None)
    reads = RowReads(reader, never, wave_bytes=8 * ALIGNMENT, waves=waves)
    made = prefetched(weight, reads, CPU, torch.float32, hot)
    assert made is not None
    return made


def numbers(made: PrefetchedTable, ids: Tensor) -> Tensor:
    rows = [made.weight.rows(at, at + 1) for at in ids.reshape(-1).tolist()]
    return torch.from_numpy(np.concatenate(rows)).reshape(*ids.shape, WIDTH)


def test_reads_are_begun_with_the_look_up_and_waited_for_with_the_rows(tmp_path: Path) -> None:
    written(tmp_path / "t", 100)
    reader = RowReader([tmp_path / "t"])
    made = table(tmp_path / "t", reader, 100)
    ids = torch.tensor([[5, 3999, 5], [0, 2000, 0]])

    lookup = made.begin(ids)

    (begun,) = reader.begun
    assert not begun.done
    assert torch.equal(lookup.rows(), numbers(made, ids))
    assert begun.done


def test_a_block_is_read_once_for_all_its_rows_and_neighbours_in_one_read(tmp_path: Path) -> None:
    written(tmp_path / "t")
    reader = RowReader([tmp_path / "t"])
    made = table(tmp_path / "t", reader)

    # 62 rows of 66 bytes begin in a block, the last one lies over its edge.
    made.rows(torch.tensor([0, 3, 61, 3, 3000]))
    assert [each.requests.offsets.tolist() for each in reader.begun] == [[0, 48 * ALIGNMENT]]
    made.rows(torch.tensor([62, 0]))
    assert reader.begun[1].requests.lengths.tolist() == [2 * ALIGNMENT]

    use = made.use
    assert (use.rows, use.distinct, use.reads, use.bytes) == (7, 6, 3, 4 * ALIGNMENT)


def test_a_long_prompts_rows_share_bounded_memory_and_go_on_meanwhile(tmp_path: Path) -> None:
    written(tmp_path / "t")
    reader = RowReader([tmp_path / "t"])
    made = table(tmp_path / "t", reader, waves=3)
    ids = torch.arange(0, COUNT, 100)

    lookup = made.begin(ids)
    assert len(reader.begun) == 3
    lookup.advance()
    assert len(reader.begun) == 3
    reader.answer()
    lookup.advance()
    assert len(reader.begun) == 6

    assert torch.equal(lookup.rows(), numbers(made, ids))
    assert len({each.into.ctypes.data for each in reader.begun}) == 3


def test_who_looks_up_first_is_served_first_and_the_others_after_it(tmp_path: Path) -> None:
    written(tmp_path / "t")
    reader = RowReader([tmp_path / "t"])
    made = table(tmp_path / "t", reader, waves=2)
    early, late = torch.arange(0, COUNT, 200), torch.arange(100, COUNT, 200)

    first, second = made.begin(early), made.begin(late)
    assert len(reader.begun) == 2
    assert torch.equal(first.rows(), numbers(made, early))
    second.advance()
    assert not reader.begun[-1].done
    assert torch.equal(second.rows(), numbers(made, late))


def test_a_step_that_ended_early_takes_no_memory_from_the_next(tmp_path: Path) -> None:
    written(tmp_path / "t")
    reader = RowReader([tmp_path / "t"])
    made = table(tmp_path / "t", reader, waves=2)
    gc.disable()  # which may come late
    try:
        for _ in range(3):
            made.begin(torch.arange(0, COUNT, 200))
        before = len(reader.begun)
        lookup = made.begin(torch.arange(0, COUNT, 200))
    finally:
        gc.enable()

    assert len(reader.begun) - before == 2
    assert torch.equal(lookup.rows(), numbers(made, torch.arange(0, COUNT, 200)))


def test_who_finds_all_memory_taken_makes_do_with_one_piece_more(tmp_path: Path) -> None:
    written(tmp_path / "t")
    reader = RowReader([tmp_path / "t"])
    made = table(tmp_path / "t", reader, waves=2)
    ids = torch.arange(0, COUNT, 50)

    first, second = made.begin(ids), made.begin(ids)

    assert torch.equal(second.rows(), numbers(made, ids))
    assert len(reader.begun) > 8
    assert len({each.into.ctypes.data for each in reader.begun}) == 3
    assert torch.equal(first.rows(), numbers(made, ids))


def test_a_hot_row_is_not_read_again(tmp_path: Path) -> None:
    written(tmp_path / "t")
    reader = RowReader([tmp_path / "t"])
    made = table(tmp_path / "t", reader, hot=100 * (ROW + 8))
    ids = torch.tensor([7, 8, 1234])
    made.rows(ids)
    before = len(reader.begun)

    rows = made.rows(ids)

    assert len(reader.begun) == before
    assert (made.use.hits, made.use.distinct) == (3, 6)
    assert torch.equal(rows, numbers(made, ids))
    assert made.nbytes == 100 * (ROW + 8)


@settings(max_examples=40, deadline=None)
@given(looked=st.lists(st.lists(st.integers(0, COUNT - 1), max_size=30), max_size=8))
def test_hot_rows_are_the_rows(tmp_path_factory: pytest.TempPathFactory, looked: Any) -> None:
    path = tmp_path_factory.mktemp("hot") / "t"
    written(path)
    made = table(path, RowReader([path]), hot=13 * (ROW + 8))
    for ids in looked:
        asked = torch.tensor(ids, dtype=torch.int64)
        if ids:
            assert torch.equal(made.rows(asked), numbers(made, asked))


@pytest.mark.parametrize("hot", [0, 1 << 20])
def test_damage_is_named_by_its_row_in_the_table(tmp_path: Path, hot: int) -> None:
    rows = written(tmp_path / "t")
    rows[1777, 9] = 0x7F
    (tmp_path / "t").write_bytes(rows.tobytes())
    made = table(tmp_path / "t", RowReader([tmp_path / "t"]), hot=hot)
    made.rows(torch.tensor([1776, 1778]))

    for _ in range(2):
        with pytest.raises(SourceError, match=r"engram_embd.*row 1777.*column 9"):
            made.rows(torch.tensor([3, 1777]))


def test_a_failed_read_names_tensor_and_offset_and_the_next_one_works(tmp_path: Path) -> None:
    written(tmp_path / "t")
    broken = {38 * ALIGNMENT}
    reader = RowReader([tmp_path / "t"], fail=lambda file, at: "EIO" * (at in broken))
    made = table(tmp_path / "t", reader)
    ids = torch.tensor([3, 2400, 3999])

    with pytest.raises(DiskReadError, match=r"engram_embd.*offset 155648: EIO") as raised:
        made.rows(ids)
    assert (raised.value.offset, raised.value.file) == (155648, str(tmp_path / "t"))
    broken.clear()
    assert torch.equal(made.rows(ids), numbers(made, ids))


def test_a_wait_can_be_interrupted(tmp_path: Path) -> None:
    class Ended(Exception):
        pass

    def interrupt() -> None:
        raise Ended

    written(tmp_path / "t")
    made = table(tmp_path / "t", RowReader([tmp_path / "t"]))
    lookup = made.begin(torch.tensor([5]))
    made.reads.interrupt = interrupt
    with pytest.raises(Ended):
        lookup.rows()
    made.reads.interrupt = never
    assert torch.equal(made.rows(torch.tensor([5])), numbers(made, torch.tensor([5])))


def test_a_row_that_is_not_the_files_is_named(tmp_path: Path) -> None:
    written(tmp_path / "t")

    def spoil(memory: NDArray[np.uint8]) -> None:
        memory[5 * ROW + 3] ^= 1

    reader = RowReader([tmp_path / "t"])
    made = table(tmp_path / "t", reader)
    checked = CheckedTable(made, made.weight)
    ids = torch.tensor([[4, 6], [5, 7]])
    assert torch.equal(checked.rows(ids), numbers(made, ids))
    reader.spoil = spoil
    with pytest.raises(EngineError, match=r"engram_embd.*row 5 is not what the file holds"):
        checked.rows(ids)


def test_a_row_longer_than_all_memory_for_reads_is_refused(files: tuple[Path, ...]) -> None:
    reads = RowReads(RowReader(files), never, wave_bytes=ALIGNMENT)
    with pytest.raises(EngineError, match="touches 8192 bytes"):
        reads.begin([Lying("t", 0, 0, 66, 9)], np.array([3]), lambda *_: None)
