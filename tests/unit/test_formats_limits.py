"""Each limit of a header holds at its number and refuses the next one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from localrun.errors import HeaderError
from localrun.formats import limits
from localrun.formats.gguf import read_gguf
from localrun.formats.reader import BytesSource, Reader
from localrun.formats.safetensors import header_length, read_index, read_safetensors
from localrun.formats.strict_json import read_config
from tests.gguf_builder import (
    ARRAY,
    U8,
    As,
    gguf_bytes,
    info,
    kv,
    padded,
    raw_gguf,
    raw_safetensors,
    safetensors_bytes,
    string,
    u32,
    u64,
)


class Claimed:
    """A source that says it is large and holds zeros behind its first bytes."""

    def __init__(self, start: bytes, size: int) -> None:
        self._start = start
        self.size = size

    def read(self, offset: int, length: int) -> bytes:
        return self._start[offset : offset + length].ljust(length, b"\0")


def gguf(data: bytes) -> None:
    read_gguf(BytesSource(data), "m.gguf")


def test_the_figures_are_those_of_the_security_reference() -> None:
    assert limits.SAFETENSORS_HEADER_BYTES_MAX == 100_000_000
    assert limits.GGUF_STRING_BYTES_MAX == 16 * 1024**2
    assert limits.GGUF_ARRAY_ELEMENTS_MAX == 64 * 1024**2
    assert limits.GGUF_DIMENSIONS_MAX == 4
    assert limits.GGUF_ALIGNMENT_MAX == 1024**2
    assert (limits.GGUF_KEYS_MAX, limits.GGUF_TENSORS_MAX) == (65_536, 1_000_000)
    assert (limits.GGUF_KEY_BYTES_MIN, limits.GGUF_TENSOR_BYTES_MIN) == (13, 24)
    assert limits.ARRAY_NESTING_MAX == 1


def test_the_smallest_entries_are_as_small_as_counted() -> None:
    assert len(string("") + u32(U8) + b"\0") == limits.GGUF_KEY_BYTES_MIN
    assert len(info("", [], 0, 0)) == limits.GGUF_TENSOR_BYTES_MIN


def _string(length: int) -> Callable[[], None]:
    return lambda: gguf(gguf_bytes({"k": "x" * length}))


def _dimensions(count: int) -> Callable[[], None]:
    head = raw_gguf(info("t", [1] * count, 0, 0), n_tensors=1)
    return lambda: gguf(padded(head) + bytes(4))


def _alignment(value: int) -> Callable[[], None]:
    return lambda: gguf(gguf_bytes({"general.alignment": value}))


def _name(length: int) -> Callable[[], None]:
    return lambda: gguf(gguf_bytes({}, [("n" * length, (8,), "F32")]))


def _tensor_bytes(count: int) -> Callable[[], None]:
    head = padded(raw_gguf(info("t", [count], 24, 0), n_tensors=1))
    size = len(head) + count
    return lambda: (read_gguf(Claimed(head, size), "m.gguf"), None)[1]


def _safetensors_header(length: int) -> Callable[[], None]:
    return lambda: (header_length(Claimed(u64(length), length + 8)), None)[1]


def _shape(count: int) -> Callable[[], None]:
    data = safetensors_bytes([("t", [1] * count, "U8")])
    return lambda: (read_safetensors(BytesSource(data), "m"), None)[1]


@pytest.mark.parametrize(
    ("build", "most"),
    [
        pytest.param(_string, limits.GGUF_STRING_BYTES_MAX, id="string"),
        pytest.param(_dimensions, limits.GGUF_DIMENSIONS_MAX, id="dimensions"),
        pytest.param(_alignment, limits.GGUF_ALIGNMENT_MAX, id="alignment"),
        pytest.param(_name, limits.GGUF_TENSOR_NAME_BYTES_MAX, id="tensor_name"),
        pytest.param(_tensor_bytes, limits.GGUF_DIMENSION_MAX, id="dimension"),
        pytest.param(
            _safetensors_header, limits.SAFETENSORS_HEADER_BYTES_MAX, id="safetensors_header"
        ),
        pytest.param(_shape, limits.SAFETENSORS_DIMENSIONS_MAX, id="safetensors_dimensions"),
    ],
)
def test_the_limit_passes_and_one_more_does_not(
    build: Callable[[int], Callable[[], None]], most: int
) -> None:
    build(most)()
    with pytest.raises(HeaderError):
        build(most + 1)()


# Files at these limits are too large to write in a test: a smaller limit, the same code.
@pytest.mark.parametrize(
    ("name", "most", "build"),
    [
        pytest.param(
            "GGUF_ARRAY_ELEMENTS_MAX",
            3,
            lambda n: gguf_bytes({"k": As(U8, [0] * n)}),
            id="array_elements",
        ),
        pytest.param(
            "GGUF_KEYS_MAX", 2, lambda n: gguf_bytes({f"k{i}": 1 for i in range(n)}), id="keys"
        ),
        pytest.param(
            "GGUF_TENSORS_MAX",
            2,
            lambda n: gguf_bytes({}, [(f"t{i}", (8,), "F32") for i in range(n)]),
            id="tensors",
        ),
        pytest.param(
            "GGUF_HEADER_BYTES_MAX",
            60,
            lambda n: raw_gguf(kv("k", As(U8, [0] * (n - 49))), n_kv=1),
            id="header_bytes",
        ),
    ],
)
def test_a_lowered_limit_passes_and_one_more_does_not(
    name: str, most: int, build: Callable[[int], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, name, most)
    gguf(build(most))
    with pytest.raises(HeaderError):
        gguf(build(most + 1))


def test_arrays_do_not_nest() -> None:
    inner = u32(U8) + u64(1) + b"\0"
    gguf(raw_gguf(string("k") + u32(ARRAY) + inner, n_kv=1))
    with pytest.raises(HeaderError, match="nest deeper than 1"):
        gguf(raw_gguf(string("k") + u32(ARRAY) + u32(ARRAY) + u64(1) + inner, n_kv=1))


def test_safetensors_and_shards_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SAFETENSORS_TENSORS_MAX", 1)
    monkeypatch.setattr(limits, "SHARDS_MAX", 1)
    read_safetensors(BytesSource(safetensors_bytes([("a", (1,), "U8")])), "m")
    read_index(BytesSource(b'{"weight_map": {"a": "a.safetensors"}}'), "i")
    with pytest.raises(HeaderError, match="2 tensors, at most 1"):
        read_safetensors(BytesSource(safetensors_bytes([("a", (1,), "U8"), ("b", (), "U8")])), "m")
    with pytest.raises(HeaderError, match="2 shards, 1 to 1"):
        read_index(
            BytesSource(b'{"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}'), "i"
        )


def test_an_index_over_its_limit_is_not_read() -> None:
    with pytest.raises(HeaderError, match="too many for an index"):
        read_index(Claimed(b"{", limits.SAFETENSORS_INDEX_BYTES_MAX + 1), "i")


def test_json_marks_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SAFETENSORS_JSON_MARKS_MAX", 1)
    read_safetensors(BytesSource(raw_safetensors("{}")), "m")
    with pytest.raises(HeaderError, match="at most 1"):
        read_safetensors(BytesSource(raw_safetensors('{"__metadata__":{}}')), "m")


def test_a_reader_claims_nothing_it_does_not_have() -> None:
    reader = Reader(BytesSource(b"12345678"), limit=6)

    assert reader.take(4, "first") == b"1234"
    with pytest.raises(HeaderError, match=r"second at byte 4: needs 3 bytes where 2"):
        reader.take(3, "second")
    assert (reader.position, reader.remaining) == (4, 2)


def test_a_configuration_of_too_many_bytes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CONFIG_BYTES_MAX", 2)

    assert read_config(BytesSource(b"{}"), "config.json") == {}
    with pytest.raises(HeaderError, match=r"config\.json: file at byte 0: 3 bytes"):
        read_config(BytesSource(b"{ }"), "config.json")
