"""The built-in catalogue: short names for what people run."""

from __future__ import annotations

import re

import pytest

from localrun.errors import ModelNotFoundError, UsageError
from localrun.ref import CatalogueRef, HubRef, PipRef, parse
from localrun.store import catalogue

FAMILIES = (
    "smollm2",
    "gemma3-270m",
    "qwen3-0.6b",
    "qwen3-30b-a3b",
    "qwen2.5-coder-7b",
    "gpt-oss-20b",
    "gpt-oss-120b",
    "llama-3.1-8b",
    "llama-3.3-70b",
    "gemma-3-12b",
    "deepseek-r1-qwen-7b",
    "deepseek-v4-flash",
    "deepseek-v4.1-flash",
)


def test_every_family_the_catalogue_promises_is_there() -> None:
    assert set(FAMILIES) <= set(catalogue.entries())


@pytest.mark.parametrize("name", catalogue.entries())
def test_entries_are_well_formed(name: str) -> None:
    entry = catalogue.entries()[name]
    assert parse(name) == CatalogueRef(name)
    assert entry.licence
    assert 10 <= len(entry.about) <= 80
    assert entry.quant is None or entry.quant == entry.quant.upper()
    if isinstance(entry.source, PipRef):
        assert entry.source.version
        assert entry.pin is not None
        assert re.fullmatch("[0-9a-f]{64}", entry.pin.wheel_sha256)
        assert re.fullmatch("[0-9a-f]{64}", entry.pin.sha256)
    else:
        assert entry.source.tag is None
        assert entry.source.file is None


def test_a_catalogue_name_resolves_with_the_quantization_asked_for() -> None:
    repo = HubRef("Qwen", "Qwen3-8B-GGUF", tag="Q4_K_M")
    assert catalogue.resolve(CatalogueRef("qwen3-8b"))[1] == repo
    other = HubRef("Qwen", "Qwen3-8B-GGUF", tag="Q8_0")
    assert catalogue.resolve(CatalogueRef("qwen3-8b", "Q8_0"))[1] == other
    assert catalogue.resolve(CatalogueRef("qwen3-8b"), "q8_0")[1] == other


def test_the_default_quantization_is_not_part_of_the_canonical_name() -> None:
    assert catalogue.canonical(CatalogueRef("smollm2", "Q4_1")) == CatalogueRef("smollm2")
    kept = CatalogueRef("qwen3-8b", "Q8_0")
    assert catalogue.canonical(kept) == kept


def test_a_form_that_does_not_exist_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="Q4_1 only"):
        catalogue.resolve(CatalogueRef("smollm2", "Q8_0"))
    with pytest.raises(UsageError, match="different"):
        catalogue.resolve(CatalogueRef("qwen3-8b", "Q8_0"), "Q4_K_M")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("smolm2", "smollm2"), ("qwen3-8", "qwen3-8b"), ("gpt-oss", "gpt-oss-20b")],
)
def test_the_nearest_names_are_told(typed: str, meant: str) -> None:
    with pytest.raises(ModelNotFoundError) as info:
        catalogue.resolve(CatalogueRef(typed))
    assert meant in info.value.nearest
    assert len(info.value.nearest) <= 3
    assert meant in info.value.message


def test_installed_names_are_near_too() -> None:
    assert "local:me/mymodel" in catalogue.nearest(
        "local:me/mymodle", installed=["local:me/mymodel"]
    )
