"""Every released model whose configuration is kept adds up to what was counted of it."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from localrun.errors import ModelNotFoundError
from localrun.models.describe import describe_config
from localrun.models.geometries import geometry, names
from localrun.models.spec import GroupKind, ModelSpec

# Releases that repeat embedding and head in the draft layer, where the count takes them once.
REPEATED = {"deepseek-v3", "glm-4.7"}
# The count of these takes the vision tower in, as the published figure does.
WITH_VISION = {"gemma-3-12b", "gemma-3-27b"}


def check(name: str) -> Mapping[str, object]:
    found = geometry(name)["_check"]
    assert isinstance(found, dict)
    return found


def parameters(spec: ModelSpec, *kinds: GroupKind) -> int:
    return sum(group.parameters for group in spec.of(*kinds))


def test_all_are_there() -> None:
    assert len(names()) == 43


@pytest.mark.parametrize("name", names())
def test_parameters_are_those_that_were_counted(name: str) -> None:
    spec, counted = describe_config(geometry(name)), check(name)

    vision = parameters(spec, "vision") if name in WITH_VISION else 0
    assert spec.backbone_parameters + vision == counted["computed_total_params"]
    assert spec.active_parameters == counted["computed_active_params"]
    assert parameters(spec, "experts") == counted["computed_routed_expert_params"]
    assert not spec.guessed
    assert not spec.of("other")


@pytest.mark.parametrize("name", [n for n in names() if check(n).get("not_counted_draft_params")])
def test_drafts_are_counted_apart(name: str) -> None:
    spec = describe_config(geometry(name))
    copies = 2 * spec.vocabulary * spec.width if name in REPEATED else 0

    assert parameters(spec, "draft") - copies == check(name)["not_counted_draft_params"]
    assert all(group.active_parameters == 0 for group in spec.of("draft", "vision"))


@pytest.mark.parametrize(
    ("name", "key", "rows", "row_bytes", "read", "pieces"),
    [
        pytest.param(
            "qwen3.8-flash-next",
            "not_counted_ngram_table_params",
            320_001_536,
            320,
            16,
            1,
            id="qwen",
        ),
        pytest.param(
            "deepseek-v4.1-flash",
            "not_counted_engram_tables_params",
            768_022_850,
            264,
            48,
            2,
            id="deepseek",
        ),
    ],
)
def test_tables_of_ngrams_are_counted_apart_and_read_by_the_row(
    name: str, key: str, rows: int, row_bytes: int, read: int, pieces: int
) -> None:
    spec = describe_config(geometry(name))
    tables = [group.table for group in spec.of("engram") if group.table]

    assert parameters(spec, "engram") == check(name)[key]
    assert sum(table.rows for table in tables) == rows
    assert sum(table.rows_per_token for table in tables) == read
    assert {(table.row_bytes, table.pieces) for table in tables} == {(row_bytes, pieces)}
    assert sum(group.active_bytes for group in spec.of("engram")) == read * row_bytes
    assert sum(group.active_parameters for group in spec.of("engram")) == 0


@pytest.mark.parametrize(
    ("name", "tensors", "size"),
    [
        ("deepseek-v4-flash-0731", 72_317, 166_878_536_440),
        ("deepseek-v4-flash", 69_187, 159_609_485_896),
        ("deepseek-v4-pro", 145_116, 864_704_792_696),
        ("deepseek-v4.1-flash", 96_085, 510_286_023_000),
    ],
)
def test_releases_are_met_to_the_byte(name: str, tensors: int, size: int) -> None:
    spec = describe_config(geometry(name))

    assert (spec.tensors, spec.tensor_bytes) == (tensors, size)


def test_keys_that_begin_with_an_underscore_are_not_read() -> None:
    config = geometry("llama-3-8b")
    marked = {**config, "_name_or_path": 3, "_anything": {"num_hidden_layers": -1}}

    assert describe_config(marked) == describe_config(config)


def test_a_name_that_is_not_kept_is_refused() -> None:
    with pytest.raises(ModelNotFoundError, match="llama-9: no geometry"):
        geometry("llama-9")
