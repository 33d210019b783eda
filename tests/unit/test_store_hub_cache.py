"""The shared cache: ours for huggingface_hub, huggingface_hub's for us."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest

from localrun.config import Settings
from localrun.errors import LocalrunError, ModelNotFoundError, SourceError, VerificationError
from localrun.ref import HubRef
from localrun.store.download import fetch
from localrun.store.files import Digest, ModelFile, ModelFiles
from localrun.store.hub import resolve
from localrun.store.hub_cache import find, remove, scan, verify
from localrun.store.progress import NoProgress
from tests.hub_stub import HubStub, noise

REF = HubRef("org", "repo")
FILES = {
    "m-Q4_K_M.gguf": noise(3000, "four"),
    "m-Q8_0-00001-of-00002.gguf": noise(2000, "eight"),
    "m-Q8_0-00002-of-00002.gguf": noise(1000, "eight more"),
    "sub/m-F16.gguf": noise(4000, "sixteen"),
    "config.json": b"{}",
}


@pytest.fixture
def hub() -> Iterator[HubStub]:
    with HubStub() as stub:
        stub.add("org/repo", FILES)
        yield stub


@pytest.fixture
def here(hub: HubStub, tmp_path: Path) -> Settings:
    return hub.settings(tmp_path)


def pull(here: Settings, tag: str | None = None, revision: str | None = None) -> ModelFiles:
    found = resolve(replace(REF, tag=tag), here, revision)
    return fetch(found, here, NoProgress(), revision=revision)


def theirs(here: Settings, name: str) -> Path:
    """The file as huggingface_hub itself finds it, without asking anybody."""
    path = huggingface_hub.hf_hub_download(
        "org/repo", name, local_files_only=True, cache_dir=here.hub_cache
    )
    return Path(path)


def tree(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir()}


def test_huggingface_hub_finds_what_we_fetched(hub: HubStub, here: Settings) -> None:
    for tag in ("Q4_K_M", "Q8_0", "F16"):
        done = pull(here, tag)
        assert all(theirs(here, file.name) == file.path for file in done.files)

    snapshot = huggingface_hub.snapshot_download(
        "org/repo", local_files_only=True, cache_dir=here.hub_cache
    )
    listed = huggingface_hub.scan_cache_dir(here.hub_cache)

    assert tree(Path(snapshot)) == set(FILES)
    assert listed.warnings == []
    assert listed.incomplete_files == frozenset()
    (repo,) = listed.repos
    (revision,) = repo.revisions
    assert (repo.repo_id, revision.refs) == ("org/repo", frozenset({"main"}))
    assert revision.size_on_disk == sum(map(len, FILES.values()))


def test_the_layout_is_the_librarys_own_byte_for_byte(
    hub: HubStub, here: Settings, tmp_path: Path
) -> None:
    ours = pull(here, "F16")
    other = tmp_path / "theirs"
    for file in ours.files:
        huggingface_hub.hf_hub_download(
            "org/repo", file.name, cache_dir=other, endpoint=hub.endpoint
        )

    def shape(root: Path) -> dict[str, str | bytes]:
        return {
            path.relative_to(root).as_posix(): os.readlink(path)
            if path.is_symlink()
            else path.read_bytes()
            for path in (root / "models--org--repo").rglob("*")
            if path.is_symlink() or path.is_file()
        }

    assert shape(here.hub_cache) == shape(other)
    blob = ours.weights[0].path
    assert blob is not None
    assert blob.stat().st_mode == (other / blob.relative_to(here.hub_cache)).stat().st_mode


def test_we_use_what_huggingface_hub_fetched(hub: HubStub, here: Settings) -> None:
    huggingface_hub.hf_hub_download(
        "org/repo", "m-Q4_K_M.gguf", cache_dir=here.hub_cache, endpoint=hub.endpoint
    )
    before = len(hub.gets("m-Q4_K_M.gguf"))

    found = find(REF, here)
    done = pull(here)

    assert found is not None
    assert found.weights[0].path == done.weights[0].path == theirs(here, "m-Q4_K_M.gguf")
    assert len(hub.gets("m-Q4_K_M.gguf")) == before
    verify(found.weights[0])


def test_find_wants_every_shard(hub: HubStub, here: Settings) -> None:
    huggingface_hub.hf_hub_download(
        "org/repo", "m-Q8_0-00001-of-00002.gguf", cache_dir=here.hub_cache, endpoint=hub.endpoint
    )

    assert find(REF, here) is None
    assert find(replace(REF, tag="Q8_0"), here) is None
    assert list(scan(here)) == []


def test_find_wants_every_shard_of_an_index(hub: HubStub, here: Settings) -> None:
    index = b'{"weight_map":{"a":"a.safetensors","b":"b.safetensors"}}'
    files = {"a.safetensors": b"a", "b.safetensors": b"b", "model.safetensors.index.json": index}
    hub.add("org/repo", files)

    done = pull(here)
    assert {file.name for file in done.files} == set(files)
    assert find(REF, here) is not None
    path = done.weights[1].path
    assert path is not None
    path.unlink()

    assert find(REF, here) is None


def test_scan_lists_each_quantization_once_under_a_name_that_finds_it(
    hub: HubStub, here: Settings
) -> None:
    for tag in ("Q4_K_M", "Q8_0", "F16"):
        pull(here, tag)
    (here.hub_cache / "datasets--org--repo").mkdir()
    (here.hub_cache / "models--odd").mkdir()
    (here.hub_cache / "version.txt").write_text("1")

    listed = scan(here)

    assert {str(entry.ref) for entry in listed} == {
        "hf:org/repo:Q4_K_M",
        "hf:org/repo:Q8_0",
        "hf:org/repo:F16",
    }
    for entry in listed:
        assert isinstance(entry.ref, HubRef)
        assert find(entry.ref, here) == entry


def test_an_absent_cache_lists_nothing(tmp_path: Path, here: Settings) -> None:
    nowhere = replace(here, hub_cache=tmp_path / "nowhere")

    assert list(scan(nowhere)) == []
    assert find(REF, nowhere) is None


def test_a_file_deleted_behind_our_back_is_not_listed(hub: HubStub, here: Settings) -> None:
    done = pull(here)
    path = done.weights[0].path
    assert path is not None
    path.resolve().unlink()

    assert find(REF, here) is None
    assert list(scan(here)) == []
    assert pull(here).weights[0].path == path
    assert path.read_bytes() == FILES["m-Q4_K_M.gguf"]


def test_an_older_commit_still_serves_when_main_moved(hub: HubStub, here: Settings) -> None:
    old = pull(here)
    hub.add("org/repo", {"m-Q8_0.gguf": noise(500, "new")})
    new = pull(here)

    assert old.revision != new.revision
    found = find(replace(REF, tag="Q4_K_M"), here)
    assert found is not None
    assert found.revision == old.revision
    best = find(REF, here)
    assert best is not None
    assert best.revision == new.revision
    assert find(REF, here, revision=old.revision) == found


def test_a_pinned_commit_does_not_become_main(hub: HubStub, here: Settings) -> None:
    commit = hub.repos["org/repo"].commit
    pull(here, revision=commit)

    assert not (here.hub_cache / "models--org--repo" / "refs" / "main").exists()
    assert find(REF, here, revision=commit) is not None


def test_remove_leaves_other_quantizations_and_shared_blobs(hub: HubStub, here: Settings) -> None:
    four = pull(here, "Q4_K_M")
    pull(here, "Q8_0")
    hub.add("org/repo", FILES | {"README.md": b"new commit, same weights"})
    pull(here, "Q4_K_M")

    freed = remove(four, here)

    assert freed == 0  # the newer commit leads to the same blob
    assert find(replace(REF, tag="Q8_0"), here) is not None
    latest = find(replace(REF, tag="Q4_K_M"), here)
    assert latest is not None
    assert latest.revision != four.revision
    assert remove(latest, here) == len(FILES["m-Q4_K_M.gguf"])
    assert find(replace(REF, tag="Q4_K_M"), here) is None
    assert huggingface_hub.scan_cache_dir(here.hub_cache).warnings == []


def test_removing_the_last_model_leaves_no_trace_of_the_repository(
    hub: HubStub, here: Settings
) -> None:
    freed = remove(pull(here, "Q8_0"), here)

    assert freed == 3002
    assert not (here.hub_cache / "models--org--repo").exists()
    assert huggingface_hub.scan_cache_dir(here.hub_cache).repos == frozenset()


def test_only_hub_models_can_be_removed(here: Settings) -> None:
    with pytest.raises(ModelNotFoundError):
        remove(ModelFiles(ref=REF, origin="hub", format="gguf", files=()), here)


def test_verify_tells_flipped_bits(hub: HubStub, here: Settings) -> None:
    done = pull(here)
    verify(done.weights[0])
    verify(done.files[-1])
    path = done.weights[0].path
    assert path is not None
    path.write_bytes(bytes(3000))

    with pytest.raises(VerificationError, match="differs"):
        verify(done.weights[0])
    with pytest.raises(VerificationError, match="no published digest"):
        verify(ModelFile("m.gguf", 1, "weights", path=path))


PLANTED = ["models--org--repo", "models--org--repo/blobs", "models--org--repo/snapshots", ".locks"]


@pytest.mark.parametrize("place", PLANTED)
def test_a_planted_directory_link_is_not_followed_out_of_the_cache(
    hub: HubStub, here: Settings, tmp_path: Path, place: str
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (here.hub_cache / place).parent.mkdir(parents=True)
    (here.hub_cache / place).symlink_to(victim)

    with pytest.raises(SourceError, match="leaves the hub cache"):
        pull(here)
    assert tree(victim) == set()


def test_planted_file_links_are_replaced_not_written_through(
    hub: HubStub, here: Settings, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    done = pull(here)
    assert done.revision is not None
    digest = done.weights[0].digest
    assert digest is not None
    repo = here.hub_cache / "models--org--repo"
    link = done.weights[0].path
    assert link is not None
    for place in (
        repo / "blobs" / digest.value,
        repo / "refs" / "main",
        link,
        here.hub_cache / ".locks" / repo.name / f"{digest.value}.lock",
    ):
        place.unlink(missing_ok=True)
        place.symlink_to(victim)

    assert find(REF, here) is None
    again = pull(here)

    assert victim.read_bytes() == b"precious"
    assert again.weights[0].path == link
    assert link.read_bytes() == FILES["m-Q4_K_M.gguf"]
    assert (repo / "refs" / "main").read_text() == done.revision


def test_remove_takes_links_never_what_they_lead_to(
    hub: HubStub, here: Settings, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    done = pull(here)
    link = done.weights[0].path
    assert link is not None
    (link.parent / "planted.gguf").symlink_to(victim)
    (link.parent / "planted").symlink_to(tmp_path)

    remove(done, here)

    assert victim.read_bytes() == b"precious"


def test_digests_that_are_none_make_no_path(hub: HubStub, here: Settings) -> None:
    wanted = resolve(REF, here)
    for value in ("", "..", "../x", "a/b", "A" * 64, "a" * 63, "a" * 64 + "\n", "a" * 65, "x" * 64):
        bad = replace(wanted.files[0], digest=Digest("sha256", value))
        with pytest.raises(VerificationError):
            fetch(replace(wanted, files=(bad,)), here, NoProgress())
    assert not here.hub_cache.exists()


def test_pull_and_remove_at_once_leave_the_cache_right(hub: HubStub, here: Settings) -> None:
    wanted = resolve(REF, here)
    done = threading.Event()
    trouble: list[LocalrunError] = []

    def keep_removing() -> None:
        while not done.is_set():
            found = find(REF, here)
            if found is not None:
                remove(found, here)

    def keep_pulling() -> None:
        for _ in range(15):
            try:
                fetch(wanted, here, NoProgress())
            except LocalrunError as error:
                trouble.append(error)
        done.set()

    threads = [threading.Thread(target=work) for work in (keep_removing, keep_pulling)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [error for error in trouble if "keeps removing" not in error.message] == []
    verify(fetch(wanted, here, NoProgress()).weights[0])
    assert huggingface_hub.scan_cache_dir(here.hub_cache).warnings == []
    assert not list((here.hub_cache / "models--org--repo").rglob("*.tmp*"))
