"""Hostile safetensors headers and indexes: what is accepted here, the library accepts too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors

from localrun.errors import HeaderError
from localrun.formats import limits
from localrun.formats.read import read_header
from localrun.formats.reader import BytesSource
from localrun.formats.safetensors import read_index, read_safetensors
from localrun.formats.types import SAFETENSORS_TYPES
from tests.gguf_builder import raw_safetensors, safetensors_bytes, u64
from tests.mutations import mutated

SEEDS = [
    safetensors_bytes([("a", (2, 4), "F32"), ("b", (3,), "BF16")], {"format": "pt"}),
    safetensors_bytes([("x", (8,), "F4"), ("y", (4,), "F6_E2M3"), ("z", (0, 9), "I64")]),
    safetensors_bytes([("blk.0-1", (), "U8")]),
    safetensors_bytes(),
]


def entry(dtype: object = "F32", shape: object = (1,), offsets: object = (0, 4)) -> str:
    return json.dumps({"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}})


MALFORMED = {
    "empty_file": b"",
    "seven_bytes": bytes(7),
    "length_0": raw_safetensors("{}", length=0),
    "length_over_the_file": raw_safetensors("{}", length=3),
    "length_2_64": raw_safetensors("{}", length=2**64 - 1),
    "length_over_the_limit": u64(limits.SAFETENSORS_HEADER_BYTES_MAX + 1) + b"{}",
    "not_an_object": raw_safetensors("[]"),
    "a_space_first": raw_safetensors(" {}"),
    "not_utf8": raw_safetensors(b'{"\xff":1}'),
    "byte_order_mark": raw_safetensors("\ufeff{}"),
    "not_json": raw_safetensors("{]"),
    "two_documents": raw_safetensors("{}{}"),
    "trailing_comma": raw_safetensors("{},"),
    "depth_bomb_of_lists": raw_safetensors('{"a":' + "[" * 100_000),
    "depth_bomb_of_objects": raw_safetensors('{"a":' * 100_000),
    "duplicate_tensor": raw_safetensors(f"{entry()[:-1]},{entry()[1:]}", 4),
    "duplicate_field": raw_safetensors(entry().replace('"shape"', '"dtype"'), 4),
    "duplicate_metadata": raw_safetensors('{"__metadata__":{"a":"1","a":"2"}}'),
    "metadata_of_numbers": raw_safetensors('{"__metadata__":{"a":1}}'),
    "metadata_null": raw_safetensors('{"__metadata__":null}'),
    "entry_is_a_list": raw_safetensors('{"a":[]}'),
    "field_missing": raw_safetensors('{"a":{"dtype":"F32","shape":[]}}'),
    "field_unknown": raw_safetensors(entry().replace('"shape"', '"more":1,"shape"'), 4),
    "dtype_unknown": raw_safetensors(entry("F33"), 4),
    "dtype_is_a_list": raw_safetensors(entry(["F32"]), 4),
    "shape_negative": raw_safetensors(entry(shape=[-1]), 4),
    "shape_minus_zero": raw_safetensors('{"a":{"dtype":"I8","shape":[-0],"data_offsets":[0,0]}}'),
    "shape_fraction": raw_safetensors(entry(shape=[1.0]), 4),
    "shape_boolean": raw_safetensors(entry(shape=[True]), 4),
    "shape_text": raw_safetensors(entry(shape="1"), 4),
    "shape_nan": raw_safetensors(entry(shape=[float("nan")]), 4),
    "shape_infinity": raw_safetensors(entry(shape=[float("inf")]), 4),
    "shape_of_5000_digits": raw_safetensors(entry(shape=[10**4000]), 4),
    "shape_overflow_times_0": raw_safetensors(entry(shape=[2**63, 4, 0], offsets=[0, 0])),
    "shape_of_100_dimensions": raw_safetensors(entry(shape=[1] * 100), 4),
    "half_a_byte": raw_safetensors(entry("F4", [3], [0, 2]), 2),
    "offsets_of_one": raw_safetensors(entry(offsets=[4]), 4),
    "offsets_of_three": raw_safetensors(entry(offsets=[0, 4, 4]), 4),
    "offsets_reversed": raw_safetensors(entry(offsets=[4, 0]), 4),
    "offsets_over_64_bits": raw_safetensors(entry(offsets=[2**64, 2**64 + 4]), 4),
    "length_is_not_shape": raw_safetensors(entry(offsets=[0, 8]), 8),
    "gap_before": raw_safetensors(entry(offsets=[4, 8]), 8),
    "data_missing": raw_safetensors(entry(), 3),
    "data_left_over": raw_safetensors(entry(), 5),
    "data_without_tensors": raw_safetensors("{}", 1),
    "overlap": raw_safetensors(f"{entry()[:-1]},{entry().replace('a', 'b', 1)[1:]}", 4),
    "lone_surrogate": raw_safetensors(entry().replace('"a"', '"\\ud800"', 1), 4),
    "escape_sequence_in_a_name": raw_safetensors(entry("F33").replace('"a"', '"\\u001b[2J"', 1), 4),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_file_is_refused_by_field_and_offset(name: str) -> None:
    with pytest.raises(HeaderError) as caught:
        read_safetensors(BytesSource(MALFORMED[name]), "bad.safetensors")

    error = caught.value
    assert str(error).startswith(f"bad.safetensors: {error.field} at byte {error.offset}: ")
    assert str(error).isprintable()


def test_a_huge_claim_is_refused_by_its_marks_before_json_sees_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "SAFETENSORS_JSON_MARKS_MAX", 3)
    with pytest.raises(HeaderError, match="6 values, at most 3"):
        read_safetensors(BytesSource(raw_safetensors('{"a":[[],[],')), "bad.safetensors")


def _library_accepts(data: bytes) -> bool:
    try:
        safetensors.deserialize(data)
    except safetensors.SafetensorError:
        return False
    return True


def _disagreements(count: int, seed: int) -> tuple[int, list[bytes]]:
    accepted, disagree = 0, []
    for data in mutated(SEEDS, count, seed=seed, head=400):
        try:
            read_safetensors(BytesSource(data), "m.safetensors")
        except HeaderError:
            continue
        accepted += 1
        if not _library_accepts(data):
            disagree.append(data)
    return accepted, disagree


def test_what_is_accepted_of_20_000_mutations_the_library_accepts_too() -> None:
    accepted, disagree = _disagreements(20_000, seed=3)

    assert disagree == []
    assert accepted > 100


@pytest.mark.long
def test_what_is_accepted_of_500_000_mutations_the_library_accepts_too() -> None:
    accepted, disagree = _disagreements(500_000, seed=4)

    assert disagree == []
    assert accepted > 2_000


@pytest.mark.parametrize("name", SAFETENSORS_TYPES)
def test_every_type_is_read_as_the_library_reads_it(name: str) -> None:
    data = safetensors_bytes([("t", (2, 4), name)])
    [tensor] = read_safetensors(BytesSource(data), "m.safetensors").tensors
    [(_, theirs)] = safetensors.deserialize(data)

    assert (tensor.shape, tensor.bytes) == (tuple(theirs["shape"]), len(theirs["data"]))


BAD_SHARDS = {
    "parent": "../x.safetensors",
    "parent_alone": "..",
    "absolute": "/etc/x.safetensors",
    "subfolder": "a/x.safetensors",
    "windows_parent": "..\\x.safetensors",
    "windows_drive": "C:x.safetensors",
    "windows_root": "\\x.safetensors",
    "windows_share": "\\\\h\\s\\x.safetensors",
    "windows_stream": "x.safetensors:s.safetensors",
    "windows_device": "CON.safetensors",
    "windows_device_lower": "lpt1.x.safetensors",
    "nul": "x\0.safetensors",
    "newline": "x.safetensors\n",
    "hidden": ".x.safetensors",
    "dots": "x..safetensors",
    "option": "-x.safetensors",
    "pickle": "pytorch_model.bin",
    "empty": "",
    "right_to_left": "x\u202e.safetensors",
    "fullwidth_slash": "a\uff0fx.safetensors",
    "long": "x" * 300 + ".safetensors",
    "number": 7,
    "list": ["x.safetensors"],
}


@pytest.mark.parametrize("name", BAD_SHARDS)
def test_an_index_that_names_a_file_elsewhere_is_refused(name: str) -> None:
    document = json.dumps({"weight_map": {"a": BAD_SHARDS[name]}}).encode()
    with pytest.raises(HeaderError) as caught:
        read_index(BytesSource(document), "model.safetensors.index.json")

    assert caught.value.field == "weight_map: a"
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"weight_map": {}}',
        '{"weight_map": []}',
        '{"weight_map": {"a": "x.safetensors", "a": "x.safetensors"}}',
        '{"metadata": {"total_size": NaN}, "weight_map": {"a": "x.safetensors"}}',
        '{"weight_map": ' * 50_000,
    ],
)
def test_what_is_no_index_is_refused(text: str) -> None:
    with pytest.raises(HeaderError):
        read_index(BytesSource(text.encode()), "model.safetensors.index.json")


def test_an_index_cannot_reach_a_file_through_its_own_folder(tmp_path: Path) -> None:
    (tmp_path / "secret.safetensors").write_bytes(SEEDS[0])
    folder = tmp_path / "model"
    folder.mkdir()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))

    with pytest.raises(HeaderError, match="not a plain"):
        read_header([index])
