"""What the hub says of a repository, and what becomes of it when the hub is odd."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from localrun.config import Settings
from localrun.errors import (
    AccessError,
    ConfigError,
    DownloadError,
    LocalrunError,
    ModelNotFoundError,
    RefError,
    UnsafeFormatError,
    VerificationError,
)
from localrun.ref import HubRef, parse
from localrun.store import hub as room
from localrun.store.download import fetch
from localrun.store.files import Digest
from localrun.store.hub import resolve
from localrun.store.progress import NoProgress
from tests.hub_stub import Fault, HubStub, git_blob, sha256

REF = HubRef("org", "repo")
GGUF = {
    "m-Q4_K_M.gguf": b"four",
    "m-Q8_0-00001-of-00002.gguf": b"eight, first",
    "m-Q8_0-00002-of-00002.gguf": b"eight, second",
    "mmproj-F16.gguf": b"eyes",
    "mmproj-F32.gguf": b"large eyes",
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "README.md": b"# model",
    ".gitattributes": b"",
    "imatrix.gguf": b"matrix",
}
SAFETENSORS = {
    "model-00001-of-00002.safetensors": b"one",
    "model-00002-of-00002.safetensors": b"two",
    "model.safetensors.index.json": b'{"weight_map":{}}',
    "config.json": b"{}",
    "generation_config.json": b"{}",
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b"{}",
    "chat_template.jinja": b"{{ x }}",
    "modeling_custom.py": b"import os",
    "pytorch_model.bin": b"pickle",
    "original/params.json": b"{}",
    "LICENSE": b"MIT",
}


@pytest.fixture
def hub() -> Iterator[HubStub]:
    with HubStub() as stub:
        yield stub


@pytest.fixture
def here(hub: HubStub, tmp_path: Path) -> Settings:
    return hub.settings(tmp_path)


def test_resolve_names_the_files_their_digests_and_addresses(hub: HubStub, here: Settings) -> None:
    commit = hub.add("org/repo", GGUF, licence="apache-2.0")

    found = resolve(REF, here)

    assert {file.name: file.role for file in found.files} == {
        "m-Q4_K_M.gguf": "weights",
        "mmproj-F16.gguf": "projector",
        "config.json": "config",
    }
    assert str(found.ref) == "hf:org/repo:Q4_K_M"
    assert (found.revision, found.licence, found.format) == (commit, "apache-2.0", "gguf")
    assert found.quants == ("Q4_K_M", "Q8_0")
    weights = found.weights[0]
    assert weights.digest == Digest("sha256", sha256(b"four"))
    assert weights.url == f"{hub.endpoint}/org/repo/resolve/{commit}/m-Q4_K_M.gguf"
    assert found.files[-1].digest == Digest("git-blob", git_blob(b"{}"))
    assert not found.complete


def test_split_files_come_in_shard_order_by_tag_or_by_any_shard(
    hub: HubStub, here: Settings
) -> None:
    hub.add("org/repo", GGUF)

    by_tag = resolve(parse("org/repo:q8_0"), here)  # type: ignore[arg-type]  # parse gives a HubRef
    by_file = resolve(replace(REF, file="m-Q8_0-00002-of-00002.gguf"), here)

    names = ["m-Q8_0-00001-of-00002.gguf", "m-Q8_0-00002-of-00002.gguf"]
    assert [file.name for file in by_tag.weights] == names
    assert [file.name for file in by_file.weights] == names


def test_safetensors_repositories_bring_what_a_runner_needs_and_no_code(
    hub: HubStub, here: Settings
) -> None:
    hub.add("org/repo", SAFETENSORS, tags=["license:mit"])

    found = resolve(REF, here)

    roles = {file.name: file.role for file in found.files}
    assert [name for name, role in roles.items() if role == "weights"] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    assert set(roles) == set(SAFETENSORS) - {
        "modeling_custom.py",
        "pytorch_model.bin",
        "original/params.json",
        "LICENSE",
    }
    assert roles["model.safetensors.index.json"] == "index"
    assert (found.format, found.licence, str(found.ref)) == ("safetensors", "mit", "hf:org/repo")


def test_what_the_cache_holds_at_that_commit_has_its_path(hub: HubStub, here: Settings) -> None:
    hub.add("org/repo", GGUF)
    fetch(resolve(REF, here), here, NoProgress())
    before = len(hub.gets("m-Q4_K_M.gguf"))

    again = resolve(REF, here)

    assert again.complete
    assert fetch(again, here, NoProgress()).complete
    assert len(hub.gets("m-Q4_K_M.gguf")) == before


def test_a_revision_is_resolved_to_its_commit(hub: HubStub, here: Settings) -> None:
    commit = hub.add("org/repo", GGUF)

    assert resolve(REF, here, revision=commit).revision == commit
    with pytest.raises(ModelNotFoundError, match="no such revision"):
        resolve(REF, here, revision="v9")
    with pytest.raises(RefError):
        resolve(REF, here, revision="../../x")


FAILURES: dict[str, tuple[Fault, type[LocalrunError], int]] = {
    "gated": (Fault("gated"), AccessError, 5),
    "forbidden": (Fault("status", at=403), AccessError, 5),
    "unknown": (Fault("status", at=404), ModelNotFoundError, 3),
    "broken": (Fault("status", at=500), DownloadError, 5),
    "too many requests": (Fault("status", at=429), DownloadError, 5),
    "no JSON": (Fault("wrong"), DownloadError, 5),
    "hangs up": (Fault("cut"), DownloadError, 5),
    "silent": (Fault("stall"), DownloadError, 5),
}


@pytest.mark.parametrize(("fault", "error", "code"), FAILURES.values(), ids=FAILURES)
def test_a_hub_that_fails_gives_a_typed_error(
    hub: HubStub,
    here: Settings,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
    error: type[LocalrunError],
    code: int,
) -> None:
    monkeypatch.setattr(room, "METADATA_TIMEOUT_S", 0.2)
    hub.add("org/repo", GGUF)
    hub.fault("api", fault)

    with pytest.raises(error, match="org/repo") as caught:
        resolve(REF, here)

    assert type(caught.value) is error
    assert caught.value.exit_code == code


def test_an_unknown_repository_is_not_found(hub: HubStub, here: Settings) -> None:
    with pytest.raises(ModelNotFoundError, match="no repository org/repo"):
        resolve(REF, here)


def test_no_hub_at_all_is_a_download_error(tmp_path: Path) -> None:
    with HubStub() as gone:
        settings = gone.settings(tmp_path)

    with pytest.raises(DownloadError, match="cannot be reached"):
        resolve(REF, settings)


def test_a_gated_repository_opens_with_a_token(hub: HubStub, tmp_path: Path) -> None:
    hub.add("org/repo", GGUF, gated=True)

    with pytest.raises(AccessError, match="gated") as caught:
        resolve(REF, hub.settings(tmp_path))
    assert "HF_TOKEN" in caught.value.hint
    assert resolve(REF, hub.settings(tmp_path, HF_TOKEN="hf_x")).weights


def test_http_to_another_machine_is_refused_before_it_is_asked(here: Settings) -> None:
    with pytest.raises(ConfigError, match="not encrypted"):
        resolve(REF, replace(here, hub_endpoint="http://hub.example"))


PICKLES = ["pytorch_model.bin", "consolidated.00.pth", "model.pt", "model.ckpt", "weights.pkl"]


@pytest.mark.parametrize("name", PICKLES)
def test_pickles_are_refused_with_a_way_out(hub: HubStub, here: Settings, name: str) -> None:
    hub.add("org/repo", {name: b"\x80\x04", "config.json": b"{}"})

    with pytest.raises(UnsafeFormatError, match=name) as caught:
        resolve(REF, here)
    assert "safetensors" in caught.value.hint


def test_a_repository_without_weights_or_with_missing_shards_is_not_found(
    hub: HubStub, here: Settings
) -> None:
    hub.add("org/repo", {"README.md": b""})
    hub.add("org/parts", {"m-00001-of-00002.gguf": b""})

    with pytest.raises(ModelNotFoundError, match="no GGUF or safetensors"):
        resolve(REF, here)
    with pytest.raises(ModelNotFoundError, match=r"1 of 2 shards"):
        resolve(HubRef("org", "parts"), here)


def test_unknown_tags_and_files_list_what_exists(hub: HubStub, here: Settings) -> None:
    hub.add("org/repo", GGUF)

    with pytest.raises(ModelNotFoundError, match="Q4_K_M, Q8_0"):
        resolve(replace(REF, tag="Q5_K_M"), here)
    with pytest.raises(ModelNotFoundError, match=r"m-Q4_K_M\.gguf"):
        resolve(replace(REF, file="other.gguf"), here)


BAD_LISTINGS: dict[str, dict[str, object]] = {
    "negative size": {"rfilename": "m.gguf", "size": -1, "blobId": "a" * 40},
    "no size": {"rfilename": "m.gguf", "blobId": "a" * 40},
    "size as text": {"rfilename": "m.gguf", "size": "12", "blobId": "a" * 40},
    "true as size": {"rfilename": "m.gguf", "size": True, "blobId": "a" * 40},
    "huge size": {"rfilename": "m.gguf", "size": 1 << 70, "blobId": "a" * 40},
    "no digest": {"rfilename": "m.gguf", "size": 1},
    "digest as path": {"rfilename": "m.gguf", "size": 1, "blobId": "../../../x"},
    "short digest": {"rfilename": "m.gguf", "size": 1, "blobId": "abc"},
    "upper case digest": {"rfilename": "m.gguf", "size": 1, "blobId": "A" * 40},
    "digest with a newline": {"rfilename": "m.gguf", "size": 1, "blobId": "a" * 40 + "\n"},
    "name as number": {"rfilename": 7, "size": 1, "blobId": "a" * 40},
    "sha256 as path": {
        "rfilename": "m.gguf",
        "size": 1,
        "blobId": "a" * 40,
        "lfs": {"sha256": "../" * 21 + "x", "size": 1, "pointerSize": 1},
    },
}


@pytest.mark.parametrize("sibling", BAD_LISTINGS.values(), ids=BAD_LISTINGS)
def test_listings_that_cannot_be_are_refused(
    hub: HubStub, here: Settings, sibling: dict[str, object]
) -> None:
    hub.add("org/repo", GGUF)
    hub.repos["org/repo"].siblings = [sibling]

    with pytest.raises(VerificationError):
        resolve(REF, here)


@pytest.mark.parametrize("commit", ["main", "../../x", "a" * 39, "A" * 40, "a" * 40 + "\n"])
def test_a_commit_that_is_none_is_refused(hub: HubStub, here: Settings, commit: str) -> None:
    hub.add("org/repo", GGUF)
    hub.repos["org/repo"].sha = commit

    with pytest.raises(VerificationError, match="not a commit"):
        resolve(REF, here)


def test_offline_only_the_cache_answers(hub: HubStub, here: Settings) -> None:
    hub.add("org/repo", GGUF)
    offline = replace(here, offline=True)
    with pytest.raises(ModelNotFoundError, match="HF_HUB_OFFLINE"):
        resolve(REF, offline)
    assert hub.asked == []

    wanted = resolve(REF, here)
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE"):
        fetch(wanted, offline, NoProgress())
    done = fetch(wanted, here, NoProgress())
    asked = len(hub.asked)

    assert resolve(REF, offline).weights[0].path == done.weights[0].path
    assert fetch(resolve(REF, offline), offline, NoProgress()).complete
    assert len(hub.asked) == asked
