"""Importance matrices: both formats, what is made of them, and files that are none."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from localrun.errors import HeaderError, LocalrunError, UsageError
from localrun.formats.read import read_header
from localrun.quantize.types.imatrix import Entry, Imatrix, collected
from localrun.quantize.types.imatrix_files import read_imatrix
from tests.gguf_builder import F32, As, gguf_bytes, llama_metadata, raw_gguf
from tests.gguf_models import llama, model, tensor

NAME = "blk.0.attn_q.weight"
SAID = {
    "general.type": "imatrix",
    "imatrix.datasets": ["wiki.txt"],
    "imatrix.chunk_count": 3,
    "imatrix.chunk_size": 512,
}


def floats(*numbers: float) -> bytes:
    return struct.pack(f"<{len(numbers)}f", *numbers)


def gguf(
    data: Mapping[str, bytes],
    shapes: Mapping[str, tuple[int, ...]],
    said: Mapping[str, object] = SAID,
    type: str = "F32",
) -> bytes:
    return gguf_bytes(said, [(n, shape, type) for n, shape in shapes.items()], data=data)


def one(sums: bytes = floats(8, 2), counts: bytes = floats(4)) -> bytes:
    names = {f"{NAME}.in_sum2": (1, len(sums) // 4), f"{NAME}.counts": (len(counts) // 4, 1)}
    return gguf(dict(zip(names, (sums, counts), strict=True)), names)


def legacy(*entries: tuple[str, int, tuple[float, ...]], tail: bytes = b"") -> bytes:
    found = struct.pack("<i", len(entries))
    for name, calls, values in entries:
        raw = name.encode()
        found += struct.pack("<i", len(raw)) + raw + struct.pack("<ii", calls, len(values))
        found += floats(*values)
    return found + tail


TAIL = struct.pack("<ii", 7, 8) + b"wiki.txt"


def read(tmp_path: Path, data: bytes) -> Imatrix:
    file = tmp_path / "some.imatrix"
    file.write_bytes(data)
    return read_imatrix(file)


def test_a_gguf_matrix_gives_means_and_what_was_read(tmp_path: Path) -> None:
    found = read(tmp_path, one())

    assert found.entries[NAME].means.tolist() == [[2.0, 0.5]]
    assert (found.chunks, found.chunk_tokens, found.datasets) == (3, 512, ("wiki.txt",))
    assert found.covered == {NAME}


def test_an_older_matrix_gives_means_with_and_without_its_tail(tmp_path: Path) -> None:
    entries = ((NAME, 4, (8.0, 2.0)), ("output.weight", 0, (3.0,)))
    whole, bare = read(tmp_path, legacy(*entries, tail=TAIL)), read(tmp_path, legacy(*entries))

    assert whole.entries[NAME].means.tolist() == [[2.0, 0.5]]
    assert whole.entries["output.weight"].means.tolist() == [[3.0]]
    assert (whole.chunks, whole.datasets) == (7, ("wiki.txt",))
    assert (bare.chunks, bare.datasets) == (0, ())


def test_experts_that_no_token_reached_count_1_in_every_column(tmp_path: Path) -> None:
    entry = read(tmp_path, one(floats(8, 2, 0, 0, 9, 3), floats(4, 0, 3))).entries[NAME]

    assert entry.means.tolist() == [[2.0, 0.5], [1.0, 1.0], [3.0, 1.0]]
    assert entry.missing == 1


def test_what_is_written_reads_back_and_is_a_well_formed_file(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    sums = {
        "blk.0.ffn_up_exps.weight": (random.random((3, 32)), np.array([5, 0, 9])),
        NAME: (random.random((1, 64)), np.array([14])),
    }
    made = collected(sums, chunks=2, chunk_tokens=7, text=Path("a/text.txt"))
    made.write(tmp_path / "out.gguf")
    found = read_imatrix(tmp_path / "out.gguf")

    assert read_header([tmp_path / "out.gguf"]).metadata["general.type"] == "imatrix"
    assert (found.chunks, found.chunk_tokens, found.datasets) == (2, 7, ("a/text.txt",))
    assert list(found.entries) == sorted(sums)
    for name, entry in made.entries.items():
        np.testing.assert_array_equal(found.entries[name].sums, entry.sums)
        np.testing.assert_array_equal(found.entries[name].counts, entry.counts)


def test_importance_has_the_shape_of_the_models_tensors(tmp_path: Path) -> None:
    experts = llama(experts=4)
    up, q = "blk.1.ffn_up_exps.weight", "blk.0.attn_q.weight"
    entries = ((up, 1, (2.0,) * 4 * 256), (q, 1, (3.0,) * 256), ("token_embd.weight", 1, (1.0,)))
    found = read(tmp_path, legacy(*entries)).importance(experts)

    assert {name: each.shape for name, each in found.items()} == {up: (4, 256), q: (1, 256)}
    assert found[q].dtype == np.float32


def test_another_models_matrix_is_refused(tmp_path: Path) -> None:
    narrow = read(tmp_path, one())
    other = read(tmp_path, legacy(("blk.9.ssm_in.weight", 1, (1.0, 2.0))))

    with pytest.raises(UsageError, match=r"attn_q\.weight has 1 × 2 numbers, the tensor 1 × 256"):
        narrow.importance(llama())
    with pytest.raises(UsageError, match=r"holds none of the model's tensors.*blk\.9\.ssm_in"):
        other.importance(llama())


def test_what_a_matrix_lacks_is_told() -> None:
    up, lookup = "blk.0.ffn_up_exps.weight", "token_embd.weight"
    found = model([tensor(up, (3, 8, 2)), tensor(NAME, (8, 2)), tensor(lookup, (8, 2))])
    matrix = Imatrix({up: Entry(np.ones((3, 2), np.float32), np.array([1, 0, 0]))})
    absent, partial = matrix.notes(found, dict.fromkeys((up, NAME, lookup), "Q4_K"))

    assert absent.endswith(f"1 tensors, which are quantized without: {NAME}")
    assert partial.startswith("2 experts of 1 tensors were never chosen")
    # What is no better for a matrix is not missed.
    assert matrix.notes(found, {up: "Q4_K", NAME: "Q8_0", lookup: "F32"}) == (partial,)


SUM, COUNT = f"{NAME}.in_sum2", f"{NAME}.counts"
PAIR = {SUM: (1, 2), COUNT: (1, 1)}
BAD = {
    "empty": b"",
    "two bytes": b"GG",
    "a GGUF header alone": raw_gguf(),
    "a model": gguf_bytes(llama_metadata(), [("output.weight", (2, 32), "F32")]),
    "sums alone": gguf({}, {SUM: (1, 2)}),
    "counts alone": gguf({}, PAIR | {"x.counts": (1, 1)}),
    "sums in 16 bits": gguf({}, PAIR, type="F16"),
    "two sums for three counts": gguf({}, {SUM: (1, 2), COUNT: (3, 1)}),
    "a negative count": one(counts=floats(-1)),
    "a count that is no number": one(counts=floats(float("nan"))),
    "an infinite count": one(counts=floats(float("inf"))),
    "cut off": one()[:-70],
    "without datasets": gguf({}, PAIR, {k: v for k, v in SAID.items() if k[8:12] != "data"}),
    "without a size": gguf({}, PAIR, {k: v for k, v in SAID.items() if k[-4:] != "size"}),
    "a size that is none": gguf({}, PAIR, SAID | {"imatrix.chunk_size": As(F32, 5.0)}),
    "no entries": legacy(),
    "a negative number of entries": struct.pack("<i", -3) + bytes(64),
    "2 billion entries": struct.pack("<i", 2**31 - 1) + bytes(64),
    "a name that never ends": struct.pack("<ii", 1, 2**31 - 1) + bytes(64),
    "a name of negative length": struct.pack("<ii", 1, -5) + bytes(64),
    "a name of 2 KiB": struct.pack("<ii", 1, 2048) + bytes(4096),
    "no name": legacy(("", 1, (1.0,))),
    "a name twice": legacy((NAME, 1, (1.0,)), (NAME, 1, (1.0,))),
    "no values": legacy((NAME, 1, ())),
    "a negative number of values": legacy((NAME, 1, ()))[:-4] + struct.pack("<i", -1),
    "values that are not there": legacy((NAME, 1, ()))[:-4] + struct.pack("<i", 2**31 - 1),
    "half a value": legacy((NAME, 1, (1.0, 2.0)))[:-2],
    "half a tail": legacy((NAME, 1, (1.0,)), tail=TAIL[:5]),
    "text": b"some lines of text that somebody takes for a matrix\n" * 9,
}


@pytest.mark.parametrize("what", BAD)
def test_a_file_that_is_no_matrix_is_refused_with_its_name(tmp_path: Path, what: str) -> None:
    with pytest.raises(HeaderError, match=r"some\.imatrix") as caught:
        read(tmp_path, BAD[what])

    assert caught.value.exit_code == 5
    assert caught.value.message.isprintable()


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -1.0])
def test_numbers_that_are_no_sums_of_squares_are_refused(tmp_path: Path, number: float) -> None:
    for data in (one(floats(1, number)), legacy((NAME, 2, (1.0, number)))):
        with pytest.raises(UsageError, match=r"blk\.0\.attn_q\.weight, matrix 0, column 1 is"):
            read(tmp_path, data)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--imatrix .*absent\.dat: no such file"):
        read_imatrix(tmp_path / "absent.dat")


@pytest.mark.parametrize("data", [one(), legacy((NAME, 4, (8.0, 2.0)), tail=TAIL)])
def test_every_truncation_is_an_error_or_a_matrix(tmp_path: Path, data: bytes) -> None:
    for length in range(len(data)):
        try:
            found = read(tmp_path, data[:length])
        except LocalrunError:
            continue
        assert found.entries[NAME].means.tolist() == [[2.0, 0.5]]
