"""What the safetensors reader makes of well-formed files and sharded models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from localrun.errors import HeaderError
from localrun.formats.read import read_header
from localrun.formats.reader import BytesSource
from localrun.formats.safetensors import read_safetensors
from tests.gguf_builder import safetensors_bytes


def test_a_file_of_the_library_is_read_as_it_was_written() -> None:
    arrays = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a": np.array([True, False]),
        "empty": np.zeros((0, 4), dtype=np.int64),
    }
    data = safetensors.numpy.save(arrays, {"format": "np", "naïve": "ja"})
    header = read_safetensors(BytesSource(data), "m.safetensors")

    assert header.metadata == {"format": "np", "naïve": "ja"}
    assert {t.name: t.shape for t in header.tensors} == {"a": (2,), "b": (2, 3), "empty": (0, 4)}
    for tensor in header.tensors:
        found = data[tensor.offset : tensor.offset + tensor.bytes]
        assert found == arrays[tensor.name].tobytes()


def test_names_with_minus_zero_and_braces_are_plain_names() -> None:
    data = safetensors_bytes([("a-0[1,2]{NaN}", (1,), "U8")])

    assert read_safetensors(BytesSource(data), "m").tensors[0].name == "a-0[1,2]{NaN}"


def _sharded(folder: Path, weight_map: dict[str, str] | None = None) -> Path:
    shards = {"model-00001-of-00002.safetensors": "a", "model-00002-of-00002.safetensors": "b"}
    for file, tensor in shards.items():
        (folder / file).write_bytes(safetensors_bytes([(tensor, (2, 2), "BF16")]))
    index = folder / "model.safetensors.index.json"
    placed = weight_map or {tensor: file for file, tensor in shards.items()}
    index.write_text(json.dumps({"metadata": {"total_size": 16}, "weight_map": placed}))
    return index


def test_an_index_leads_to_its_shards(tmp_path: Path) -> None:
    header = read_header([_sharded(tmp_path)])

    assert header.files == ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    assert [(t.name, t.file) for t in header.tensors] == [("a", 0), ("b", 1)]


def test_shards_join_without_an_index(tmp_path: Path) -> None:
    index = _sharded(tmp_path)

    assert read_header(sorted(tmp_path.glob("*.safetensors"))) == read_header([index])


@pytest.mark.parametrize(
    ("weight_map", "field"),
    [
        ({"a": "model-00001-of-00002.safetensors"}, None),
        (
            {"a": "model-00002-of-00002.safetensors", "b": "model-00001-of-00002.safetensors"},
            "weight_map: a",
        ),
        (
            {
                "a": "model-00001-of-00002.safetensors",
                "b": "model-00002-of-00002.safetensors",
                "c": "model-00002-of-00002.safetensors",
            },
            "weight_map: c",
        ),
    ],
    ids=["a_shard_unnamed", "swapped", "a_tensor_missing"],
)
def test_an_index_that_does_not_fit_its_shards_is_refused(
    weight_map: dict[str, str], field: str | None, tmp_path: Path
) -> None:
    index = _sharded(tmp_path, weight_map)
    if field is None:
        # A shard that the index leaves out is not part of the model.
        assert [t.name for t in read_header([index]).tensors] == ["a"]
        return
    with pytest.raises(HeaderError) as caught:
        read_header([index])

    assert (caught.value.field, caught.value.file) == (field, index.name)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    paths = [tmp_path / "1.safetensors", tmp_path / "2.safetensors"]
    for path in paths:
        path.write_bytes(safetensors_bytes([("a", (1,), "U8")]))

    with pytest.raises(HeaderError, match=r"2\.safetensors: a at byte .*: is in 1\.safetensors"):
        read_header(paths)
