"""A GGUF file as a source: its weights in every type, and its metadata byte for byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from numpy.typing import NDArray

from localrun.errors import HeaderError, LocalrunError, SourceError, UsageError
from localrun.formats.gguf_values import Raw
from localrun.formats.read import read_header
from localrun.formats.types import GGUF_TYPES
from localrun.ggml.quantize import dequantize, quantize
from localrun.ggml.types import WEIGHT_TYPES
from localrun.quantize.gguf_writer import GgufPlan, Written
from localrun.ref import PathRef
from localrun.releases.gguf_file import GgufFile
from localrun.releases.weights import Weight
from localrun.store import on_disk
from tests.gguf_builder import gguf_bytes, kv, split_gguf
from tests.strategies import headers

TYPES = {kind.name: kind for kind in GGUF_TYPES.values()}
NAME = "blk.0.it.weight"
FLOATS = ("F32", "F16", "BF16")
QUANTIZED = sorted(set(WEIGHT_TYPES) - set(FLOATS))
NUMBERS = np.random.default_rng(0).normal(0, 1, (6, 512)).astype(np.float32)
_OPEN = ExitStack()


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    _OPEN.close()


def opened(path: Path) -> GgufFile:
    return _OPEN.enter_context(GgufFile(on_disk.model_files(PathRef(str(path)))))


def weight(folder: Path, kind: str, data: bytes, shape: tuple[int, ...]) -> Weight:
    path = folder / "it.gguf"
    path.write_bytes(
        gguf_bytes({}, [("blk.0.it.weight", shape, kind)], data={"blk.0.it.weight": data})
    )
    (found,) = opened(path).weights().values()
    return found


def encoded(kind: str) -> NDArray[np.uint8]:
    """Rows in blocks of a type; of the IQ types any bytes, as finding the nearest takes seconds.
    No two bytes below 64 make an F16 that is not finite."""
    if kind.startswith("IQ"):
        size = 512 // TYPES[kind].block_elements * TYPES[kind].block_bytes
        return np.random.default_rng(1).integers(0, 64, (6, size), dtype=np.uint8)
    return quantize(kind, NUMBERS)


@pytest.mark.parametrize("kind", [*FLOATS, *QUANTIZED])
def test_a_weight_of_every_type_is_what_ggml_makes_of_it(tmp_path: Path, kind: str) -> None:
    raw = encoded(kind)
    found = weight(tmp_path, kind, raw.tobytes(), (2, 3, 512))
    expected = dequantize(kind, raw, 512)
    own = found.blocks(kind, 1, 5)

    assert (found.name, found.stored, found.shape) == (NAME, kind, (2, 3, 512))
    assert found.read_bytes == raw.nbytes
    assert np.array_equal(found.rows(0, 6), expected)
    assert np.array_equal(found.rows(5, 6), expected[5:])
    assert own is not None
    assert np.array_equal(own, raw[1:5])
    assert found.blocks("Q8_0" if kind != "Q8_0" else "F16", 0, 6) is None


@pytest.mark.parametrize("kind", ["I8", "I16", "I32", "I64", "F64"])
def test_integers_and_doubles_are_read_too(tmp_path: Path, kind: str) -> None:
    view = {"I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8", "F64": "<f8"}[kind]
    table = np.arange(-6, 6).reshape(3, 4).astype(view)
    found = weight(tmp_path, kind, table.tobytes(), (3, 4))
    own = found.blocks(kind, 0, 3)

    assert np.array_equal(found.rows(0, 3), table.astype("f4"))
    assert own is not None
    assert own.tobytes() == table.tobytes()


@pytest.mark.parametrize("kind", [kind for kind in QUANTIZED if kind not in ("NVFP4", "MXFP4")])
@pytest.mark.parametrize("block", [0, 5, 11])
def test_a_block_whose_scale_is_not_finite_is_named(tmp_path: Path, kind: str, block: int) -> None:
    """Filled with the bytes of an F16 NaN, a block is not finite wherever its scale stands."""
    size = TYPES[kind].block_bytes
    blocks = np.frombuffer(encoded(kind).tobytes(), "u1").copy().reshape(-1, size)
    at = block * (len(blocks) - 1) // 11
    blocks[at] = 0xFF
    found = weight(tmp_path, kind, blocks.tobytes(), (6, 512))
    first = at * TYPES[kind].block_elements

    with pytest.raises(
        SourceError, match=r"^blk\.0\.it\.weight: element [0-9]+ .* is nan"
    ) as caught:
        found.rows(0, 6)
    assert first <= int(caught.value.message.split()[2]) < first + TYPES[kind].block_elements
    with pytest.raises(SourceError, match="is nan"):
        found.blocks(kind, 0, 6)


@pytest.mark.parametrize("kind", QUANTIZED)
def test_blocks_are_refused_where_decoding_finds_what_is_no_number(
    tmp_path: Path, kind: str
) -> None:
    """Each byte of a block in turn has the bits of an exponent that stands for no number, or for
    one too large; all others are as they come."""
    whole = TYPES[kind]
    source = np.random.default_rng(2)
    blocks = source.integers(0, 64, (4 * whole.block_bytes, whole.block_bytes), dtype=np.uint8)
    for byte, code in enumerate([0x7C, 0xFC, 0xFF, 0xFE] * whole.block_bytes):
        blocks[byte, byte // 4] = code
    blocks[-1] = 0xFF  # A scale may have its bits in several bytes.
    with np.errstate(invalid="ignore"):
        found = weight(tmp_path, kind, blocks.tobytes(), (len(blocks), whole.block_elements))
        verdicts = [
            (message(found.rows, row), message(lambda a, b: found.blocks(kind, a, b), row))
            for row in range(len(blocks))
        ]

    assert all(rows == moved for rows, moved in verdicts)
    assert any(rows for rows, _ in verdicts)


def message(read: Callable[[int, int], Any], row: int) -> str:
    try:
        read(row, row + 1)
    except SourceError as error:
        return error.message
    return ""


@pytest.mark.parametrize("block", [0, 47, 95])
def test_a_nan_that_ggml_takes_for_a_power_of_two_is_named(tmp_path: Path, block: int) -> None:
    blocks = encoded("MXFP4").reshape(-1, 17).copy()
    blocks[block, 0] = 0xFF
    found = weight(tmp_path, "MXFP4", blocks.tobytes(), (6, 512))
    row, column = divmod(32 * block, 512)

    place = rf"element {32 * block} \(row {row}, column {column}\) has a scale that is nan"
    for read in (found.rows, lambda a, b: found.blocks("MXFP4", a, b)):
        with pytest.raises(SourceError, match=place):
            read(row, 6)


@given(made=headers())
@settings(max_examples=60, deadline=None)
def test_metadata_passes_through_byte_for_byte(
    tmp_path_factory: pytest.TempPathFactory, made: Any
) -> None:
    metadata = {k: v for k, v in made[0].items() if not k.startswith("split.")}
    path = tmp_path_factory.mktemp("metadata") / "it.gguf"
    path.write_bytes(gguf_bytes(metadata, [("it", (1, 32), "F32")]))
    with GgufFile(on_disk.model_files(PathRef(str(path)))) as source:
        plan = GgufPlan(source.metadata, (Written("it", TYPES["F32"], (1, 32)),))
        again = path.with_name("again.gguf")
        again.write_bytes(plan.header() + bytes(128))
        typed = source.header.metadata

    assert list(source.metadata) == list(metadata)
    for key, value in metadata.items():
        raw = source.metadata[key]
        assert isinstance(raw, Raw)
        assert kv(key, value).endswith(raw.data)
    assert repr(read_header([again]).metadata) == repr(typed)


def test_a_split_model_is_one_and_forgets_how_it_was_split(tmp_path: Path) -> None:
    for number, part in enumerate(split_gguf(3), 1):
        (tmp_path / f"it-{number:05}-of-00003.gguf").write_bytes(part)
    source = opened(tmp_path / "it-00001-of-00003.gguf")
    found = source.weights()

    assert [w.place[0] for w in found.values()] == [0, 1, 2]
    assert list(found) == ["part0.0", "part1.0", "part2.0"]
    assert np.array_equal(found["part2.0"].rows(0, 2), np.zeros((2, 32)))
    assert "general.architecture" in source.metadata
    assert not [key for key in source.metadata if key.startswith("split.")]
    assert source.header.metadata["split.count"] == 3


def test_what_holds_no_weights_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "it.gguf"
    path.write_bytes(gguf_bytes({}, [("a.weight", (1, 256), "Q8_K")]))
    with pytest.raises(UsageError, match=r"it\.gguf: a\.weight is Q8_K, which holds no weights"):
        opened(path).weights()


def test_a_file_that_is_no_gguf_or_is_cut_short_or_changes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "it.gguf"
    data = gguf_bytes({}, [("a.weight", (64, 256), "F32")])
    path.write_bytes(data[:-4096])
    with pytest.raises(HeaderError, match=r"it\.gguf: a\.weight: offset"):
        opened(path)

    path.write_bytes(data)
    source = opened(path)
    (found,) = source.weights().values()
    source.require_unchanged()
    with path.open("r+b") as file:
        file.truncate(len(data) - 4096)
    with pytest.raises(HeaderError, match=r"it\.gguf: a\.weight at byte [0-9]+: 4096 bytes fewer"):
        found.rows(0, 64)
    assert found.rows(0, 60).shape == (60, 256)
    with pytest.raises(LocalrunError, match="changed while they were read"):
        source.require_unchanged()


def test_a_checkpoint_is_no_gguf_file(tmp_path: Path) -> None:
    from tests.stored import write

    folder = write(tmp_path, [{"a": ("F32", np.ones(3, "<f4"))}])
    with pytest.raises(UsageError, match="a safetensors model, not a GGUF file"):
        opened(folder)


@pytest.mark.parametrize("code", [0x7F, 0xFF])
@pytest.mark.parametrize("scale", [0, 97, 6 * 512 // 16 - 1])
def test_a_nan_that_ggml_takes_for_a_number_is_named(tmp_path: Path, scale: int, code: int) -> None:
    """Of NVFP4's scales ggml reads one as zero, the other as 240."""
    blocks = encoded("NVFP4").reshape(-1, 36).copy()
    blocks[scale // 4, scale % 4] = code
    found = weight(tmp_path, "NVFP4", blocks.tobytes(), (6, 512))
    for read in (found.rows, lambda a, b: found.blocks("NVFP4", a, b)):
        with pytest.raises(SourceError, match=rf"element {16 * scale} .*F8_E4M3 code {code:#x}"):
            read(0, 6)
