"""Pulling hub models: recorded as ours, headers read, names of the catalogue kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from localrun.config import Settings
from localrun.errors import HeaderError, ModelNotFoundError, UsageError
from localrun.ref import HubRef, parse
from localrun.store import catalogue
from localrun.store.catalogue import Entry
from localrun.store.library import Library
from localrun.store.pull import pull
from tests.gguf_builder import safetensors_bytes
from tests.hub_stub import HubStub
from tests.wheel_builder import tiny_gguf

REPO = {
    "m-Q4_K_M.gguf": tiny_gguf(1),
    "m-Q8_0.gguf": tiny_gguf(2),
    "README.md": b"# A model",
}


@pytest.fixture
def hub() -> Iterator[HubStub]:
    with HubStub() as stub:
        stub.add("org/repo", REPO, licence="apache-2.0")
        yield stub


@pytest.fixture
def here(hub: HubStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    source = HubRef("org", "repo")
    entry = Entry("tiny", source, "Q8_0", "Apache-2.0", "a model of the stub")
    monkeypatch.setattr(catalogue, "entries", lambda: {"tiny": entry})
    return hub.settings(tmp_path)


def listed(here: Settings) -> list[tuple[str, str, bool]]:
    return [(model.ref, model.state, model.fetched_by_us) for model in Library(here).list()]


def test_a_repository_is_pulled_in_its_default_form_under_its_canonical_name(
    here: Settings,
) -> None:
    files = pull(parse("org/repo"), here)
    assert str(files.ref) == "hf:org/repo:Q4_K_M"
    assert files.complete
    assert files.weights[0].path is not None
    assert files.weights[0].path.read_bytes() == REPO["m-Q4_K_M.gguf"]
    assert listed(here) == [("hf:org/repo:Q4_K_M", "ok", True)]


def test_what_is_here_is_not_asked_for_again(hub: HubStub, here: Settings) -> None:
    path = pull(parse("org/repo:q8_0"), here).weights[0].path
    asked = len(hub.asked)
    for again in (
        pull(parse("hf.co/org/repo:Q8_0"), here),
        pull(parse("org/repo"), here, quant="q8_0"),
        pull(parse("tiny"), here),
    ):
        assert again.weights[0].path == path
        assert (again.licence or "").lower() == "apache-2.0"
    assert len(hub.asked) == asked


def test_a_catalogue_name_is_listed_under_that_name(here: Settings) -> None:
    files = pull(parse("tiny"), here)
    assert files.ref == parse("tiny")
    assert files.weights[0].name == "m-Q8_0.gguf"
    assert listed(here) == [("tiny", "ok", True)]
    pull(parse("tiny:Q4_K_M"), here)
    assert [ref for ref, *_ in listed(here)] == ["tiny", "tiny:Q4_K_M"]
    Library(here).remove(parse("tiny"))
    assert [ref for ref, *_ in listed(here)] == ["tiny:Q4_K_M"]
    Library(here).remove(parse("tiny:Q4_K_M"))
    assert listed(here) == []
    assert not [path for path in here.hub_cache.rglob("*") if path.suffix == ".gguf"]


def test_flags_that_clash_are_refused_before_the_hub_is_asked(hub: HubStub, here: Settings) -> None:
    with pytest.raises(UsageError, match="different"):
        pull(parse("org/repo:Q8_0"), here, quant="Q4_K_M")
    assert hub.asked == []


def test_a_quantization_that_does_not_exist_lists_those_that_do(here: Settings) -> None:
    with pytest.raises(ModelNotFoundError, match=r"Q4_K_M.*Q8_0"):
        pull(parse("org/repo:Q2_K"), here)


def test_a_model_whose_header_is_wrong_is_never_listed(hub: HubStub, here: Settings) -> None:
    hub.add("org/bad", {"m-Q4_K_M.gguf": tiny_gguf()[:70]})
    with pytest.raises(HeaderError, match="m-Q4_K_M"):
        pull(parse("org/bad"), here)
    assert listed(here) == []
    assert not list(here.hub_cache.rglob("*.gguf"))


def test_a_projector_whose_header_is_wrong_spoils_the_model(hub: HubStub, here: Settings) -> None:
    hub.add("org/bad", {"m-Q4_K_M.gguf": tiny_gguf(), "mmproj-F16.gguf": b"GGUF\x03" + bytes(9)})
    with pytest.raises(HeaderError, match="mmproj"):
        pull(parse("org/bad"), here)
    assert listed(here) == []


def test_a_safetensors_repository_comes_with_its_settings(hub: HubStub, here: Settings) -> None:
    weights = safetensors_bytes([("w", (2, 2), "F32")])
    hub.add("org/safe", {"model.safetensors": weights, "config.json": b"{}", "a.bin": b"\x80\x04"})
    files = pull(parse("org/safe"), here)
    assert files.format == "safetensors"
    assert {file.name for file in files.files} == {"model.safetensors", "config.json"}
    assert listed(here) == [("hf:org/safe", "ok", True)]


def test_bits_that_rotted_are_fetched_anew_when_asked_to_verify(here: Settings) -> None:
    path = pull(parse("org/repo"), here).weights[0].path
    assert path is not None
    blob = path.resolve()
    blob.chmod(0o600)
    blob.write_bytes(bytes(blob.stat().st_size))
    again = pull(parse("org/repo"), here, verify_again=True).weights[0].path
    assert again is not None
    assert again.read_bytes() == REPO["m-Q4_K_M.gguf"]


def test_offline_what_is_here_is_used_and_nothing_else(hub: HubStub, here: Settings) -> None:
    pull(parse("org/repo"), here)
    asked = len(hub.asked)
    offline = replace(here, offline=True)
    assert pull(parse("org/repo"), offline).complete
    with pytest.raises(ModelNotFoundError, match="HF_HUB_OFFLINE"):
        pull(parse("org/repo:Q8_0"), offline)
    assert len(hub.asked) == asked


def test_a_file_deleted_behind_our_back_is_said_and_fetched_again(here: Settings) -> None:
    path = pull(parse("org/repo"), here).weights[0].path
    assert path is not None
    path.resolve().unlink()
    assert listed(here) == [("hf:org/repo:Q4_K_M", "missing files", True)]
    assert Library(here).find(parse("org/repo")) is None
    pull(parse("org/repo"), here)
    assert listed(here) == [("hf:org/repo:Q4_K_M", "ok", True)]


def test_an_encoder_comes_with_what_says_how_to_pool(hub: HubStub, here: Settings) -> None:
    beside = {
        "config.json": b'{"model_type": "bert"}',
        "vocab.txt": b"[PAD]\n",
        "modules.json": b"[]",
        "1_Pooling/config.json": b'{"pooling_mode_mean_tokens": true}',
    }
    weights = safetensors_bytes([("embeddings.LayerNorm.weight", (32,), "F32")])
    others = {"2_Dense/config.json": b"{}", "onnx/config.json": b"{}", "train.py": b""}
    hub.add("org/minilm", {"model.safetensors": weights, **beside, **others})

    files = pull(parse("org/minilm"), here)

    assert {file.name: file.role for file in files.files} == {
        "model.safetensors": "weights",
        "config.json": "config",
        "vocab.txt": "tokenizer",
        "modules.json": "other",
        "1_Pooling/config.json": "other",
    }
    for file in files.files[1:]:
        assert file.path is not None
        assert file.path.read_bytes() == beside[file.name]
