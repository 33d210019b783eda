"""What the GGUF reader makes of well-formed files."""

from __future__ import annotations

import ctypes
import math
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from localrun.errors import HeaderError
from localrun.formats.gguf import join_splits, read_gguf
from localrun.formats.header import Header
from localrun.formats.read import read_header
from localrun.formats.reader import BytesSource
from localrun.formats.types import GGUF_REMOVED, GGUF_TYPES
from tests.gguf_builder import (
    F32,
    F64,
    STRING,
    U16,
    U32,
    As,
    gguf_bytes,
    info,
    kv,
    llama_metadata,
    padded,
    raw_gguf,
    split_gguf,
)
from tests.strategies import Tensors, headers


def read(data: bytes) -> Header:
    return read_gguf(BytesSource(data), "m.gguf")


def _expected(value: As) -> Any:
    def one(item: Any) -> Any:
        return struct.unpack("<f", struct.pack("<f", item))[0] if value.kind == F32 else item

    return tuple(map(one, value.value)) if isinstance(value.value, list) else one(value.value)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(headers())
def test_what_is_written_is_read_back(case: tuple[dict[str, As], Tensors]) -> None:
    metadata, tensors = case
    header = read(gguf_bytes(metadata, tensors))

    assert {key: _expected(value) for key, value in metadata.items()} == header.metadata
    assert [(t.name, t.shape, t.type.name) for t in header.tensors] == tensors
    assert all(t.offset % 32 == 0 for t in header.tensors)


def test_data_lies_at_the_offset_the_header_says() -> None:
    data = gguf_bytes(
        llama_metadata(),
        [("a", (3, 8), "F32"), ("b", (2, 32), "Q8_0")],
        data={"a": b"A" * 96, "b": b"B" * 68},
    )
    header = read(data)

    found = [data[t.offset : t.offset + t.bytes] for t in header.tensors]
    assert found == [b"A" * 96, b"B" * 68]
    assert header.tensor_bytes == 96 + 68


@pytest.mark.parametrize("version", [2, 3])
def test_versions_2_and_3_read_alike(version: int) -> None:
    header = read(gguf_bytes(llama_metadata(), [("a", (8,), "F32")], version=version))

    assert header.version == version
    assert header.metadata["general.architecture"] == "llama"


@pytest.mark.parametrize("alignment", [1, 8, 64, 4096, 1024**2])
def test_every_power_of_two_aligns(alignment: int) -> None:
    tensors = [("a", (3,), "F32"), ("b", (5,), "F32")]
    data = gguf_bytes({"general.alignment": alignment}, tensors, alignment=alignment)

    assert all(t.offset % alignment == 0 for t in read(data).tensors)


def test_shapes_are_turned_outermost_first() -> None:
    data = padded(raw_gguf(info("t", [32, 3, 2], 0, 0), n_tensors=1)) + bytes(768)

    assert read(data).tensors[0].shape == (2, 3, 32)


def test_a_scalar_tensor_has_one_element() -> None:
    data = padded(raw_gguf(info("t", [], 0, 0), n_tensors=1)) + bytes(4)

    assert (read(data).tensors[0].shape, read(data).tensors[0].elements) == ((), 1)


def test_the_last_tensor_may_lack_its_padding() -> None:
    whole = gguf_bytes({}, [("a", (3,), "F32")])

    assert read(whole[:-20]).tensors[0].bytes == 12


def test_bytes_behind_the_last_tensor_are_ignored() -> None:
    assert len(read(gguf_bytes({}, [("a", (8,), "F32")]) + bytes(99)).tensors) == 1


def test_a_file_without_keys_and_tensors_is_a_header() -> None:
    header = read(raw_gguf())

    assert (header.tensors, dict(header.metadata), header.header_bytes) == ((), {}, 24)


def test_half_a_character_in_a_token_is_kept_and_in_a_text_is_replaced() -> None:
    half = b"\xe2\x82"
    header = read(gguf_bytes({"tokens": As(STRING, [half, "ok"]), "name": As(STRING, half)}))

    assert header.metadata["name"] == "\N{REPLACEMENT CHARACTER}"
    token = header.metadata["tokens"]
    assert isinstance(token, tuple)
    assert str(token[0]).encode("utf-8", "surrogateescape") == half


def test_strings_longer_than_the_window_are_read_whole() -> None:
    texts = ["x" * 100, "y" * 700_000, "", "z" * 3]

    assert read(gguf_bytes({"texts": texts, "after": 7})).metadata["texts"] == tuple(texts)


def test_numbers_keep_their_width() -> None:
    header = read(gguf_bytes({"pi": As(F64, math.pi), "many": As(U16, [1, 65535])}))

    assert header.metadata == {"pi": math.pi, "many": (1, 65535)}


def test_a_vocabulary_of_150_000_reads_as_one_tuple() -> None:
    tokens = [f"Ġtoken{index}" for index in range(150_000)]

    assert read(gguf_bytes({"tokenizer.ggml.tokens": tokens})).metadata == {
        "tokenizer.ggml.tokens": tuple(tokens)
    }


def test_split_parts_become_one_header() -> None:
    header = join_splits(
        [read_gguf(BytesSource(data), f"m{i}.gguf") for i, data in enumerate(split_gguf(3, 2))]
    )

    assert header.files == ("m0.gguf", "m1.gguf", "m2.gguf")
    assert [(t.name, t.file) for t in header.tensors][::2] == [
        ("part0.0", 0),
        ("part1.0", 1),
        ("part2.0", 2),
    ]
    assert header.metadata["general.name"] == "Tiny"


def _parts(count: int) -> list[Header]:
    return [read(data) for data in split_gguf(count)]


def _part(number: int, count: int, total: int, tensor: str) -> Header:
    keys = {"split.no": As(U16, number), "split.count": count, "split.tensors.count": total}
    return read(gguf_bytes(keys, [(tensor, (8,), "F32")]))


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        pytest.param(_parts(3)[:2], "split.count", id="one_is_missing"),
        pytest.param(_parts(3)[:1], "split.count", id="only_the_first"),
        pytest.param(_parts(2)[::-1], "split.no", id="out_of_order"),
        pytest.param([_parts(2)[0]] * 2, "split.no", id="the_first_twice"),
        pytest.param([_part(0, 2, 2, "a"), _part(1, 2, 2, "a")], "a", id="a_tensor_twice"),
        pytest.param(
            [_part(0, 2, 3, "a"), _part(1, 2, 3, "b")], "split.tensors.count", id="tensors_missing"
        ),
        pytest.param(
            [read(gguf_bytes({"split.count": "2"}))], "split.count", id="count_is_a_string"
        ),
        pytest.param([read(gguf_bytes({"split.no": True}))], "split.no", id="number_is_a_boolean"),
        pytest.param([read(raw_gguf())] * 2, "split.count", id="two_whole_files"),
    ],
)
def test_split_parts_that_do_not_fit_are_refused(parts: list[Header], field: str) -> None:
    with pytest.raises(HeaderError) as caught:
        join_splits(parts)

    assert caught.value.field == field
    assert "m.gguf" in str(caught.value)


def test_a_file_that_says_it_is_split_in_none_is_whole() -> None:
    assert join_splits([read(gguf_bytes({"split.count": As(U16, 0)}))]).files == ("m.gguf",)


def test_only_the_header_is_read(tmp_path: Path) -> None:
    class Counting(BytesSource):
        most = 0

        def read(self, offset: int, length: int) -> bytes:
            self.most = max(self.most, offset + length)
            return super().read(offset, length)

    source = Counting(gguf_bytes(llama_metadata(), [("big", (2**20,), "F32")]))
    read_gguf(source, "m.gguf")

    assert source.most <= 512 * 1024


def test_types_have_the_sizes_of_the_installed_library() -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    folder = Path(llama_cpp.__file__).parent / "lib"
    [library] = [
        path for path in folder.iterdir() if path.name in {"libggml-base.so", "libggml-base.dylib"}
    ]
    ggml = ctypes.CDLL(str(library))
    ggml.ggml_type_size.restype = ctypes.c_size_t
    ggml.ggml_blck_size.restype = ctypes.c_int64
    ggml.ggml_type_name.restype = ctypes.c_char_p

    for number, kind in GGUF_TYPES.items():
        name = ggml.ggml_type_name(number).decode().upper()
        assert (name, ggml.ggml_blck_size(number), ggml.ggml_type_size(number)) == (
            kind.name.upper(),
            kind.block_elements,
            kind.block_bytes,
        )
    known = set(GGUF_TYPES) | set(GGUF_REMOVED)
    assert known == set(range(max(known) + 1))


def test_the_default_model_reads(smollm2_path: Path) -> None:
    header = read_header([smollm2_path])

    assert (header.metadata["general.architecture"], len(header.tensors)) == ("llama", 272)
    last = max(header.tensors, key=lambda tensor: tensor.offset)
    assert last.offset + last.bytes <= smollm2_path.stat().st_size


def test_a_duplicate_is_named_readably() -> None:
    key = "bad\x1b[31m\n"
    with pytest.raises(HeaderError) as caught:
        read(raw_gguf(kv(key, 1), kv(key, As(U32, 2)), n_kv=2))

    assert str(caught.value).isprintable()
