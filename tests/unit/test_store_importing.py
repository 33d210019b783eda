"""Taking in models that lie on this disk: linked, never moved, checked first."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from localrun.config import Settings, settings
from localrun.errors import HeaderError, ModelNotFoundError, SourceError, UsageError
from localrun.ref import LocalRef, parse
from localrun.store import disk
from localrun.store.importing import import_path, plain_name
from localrun.store.library import Library
from localrun.store.lmstudio import import_lmstudio
from localrun.store.ollama import import_ollama
from localrun.store.pull import pull
from tests.gguf_builder import safetensors_bytes, split_gguf
from tests.wheel_builder import tiny_gguf

GGUF = tiny_gguf()


def written(path: Path, data: bytes = GGUF) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_a_file_is_linked_and_stays_where_it_is(here: Settings, tmp_path: Path) -> None:
    mine = written(tmp_path / "My Model-Q4_K_M.gguf")
    files = import_path(mine, here)
    assert str(files.ref) == "local:imported/My-Model-Q4_K_M"
    (file,) = files.weights
    assert file.path is not None
    assert file.path.is_symlink()
    assert file.path.resolve() == mine
    assert mine.read_bytes() == GGUF
    (model,) = Library(here).list()
    assert (model.ref, model.state) == (str(files.ref), "ok")
    assert pull(files.ref, here) == files
    mine.unlink()
    assert Library(here).list()[0].state == "missing files"


def test_importing_twice_is_importing_once(here: Settings, tmp_path: Path) -> None:
    mine = written(tmp_path / "m.gguf")
    assert import_path(mine, here) == import_path(mine, here)
    assert len(Library(here).list()) == 1


def test_a_name_that_is_taken_by_another_model_is_refused(here: Settings, tmp_path: Path) -> None:
    import_path(written(tmp_path / "a" / "m.gguf"), here)
    with pytest.raises(UsageError, match="another file"):
        import_path(written(tmp_path / "b" / "m.gguf"), here)
    import_path(tmp_path / "b" / "m.gguf", here, LocalRef("me", "other"))
    assert [model.ref for model in Library(here).list()] == ["local:imported/m", "local:me/other"]


def test_where_no_links_can_be_made_a_hard_link_is(
    here: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoLinks(disk.Disk):
        def symlink(self, source: Path, target: Path) -> None:
            raise OSError(errno.EPERM, "no")

    monkeypatch.setattr(disk, "DISK", NoLinks())
    mine = written(tmp_path / "m.gguf")
    (file,) = import_path(mine, here).files
    assert file.path is not None
    assert not file.path.is_symlink()
    assert file.path.samefile(mine)
    Library(here).remove(parse("local:imported/m"))
    assert mine.read_bytes() == GGUF


def test_all_parts_of_a_split_model_come_along(here: Settings, tmp_path: Path) -> None:
    for number, data in enumerate(split_gguf(3), start=1):
        written(tmp_path / f"big-{number:05}-of-00003.gguf", data)
    files = import_path(tmp_path / "big-00001-of-00003.gguf", here)
    assert str(files.ref) == "local:imported/big"
    assert len(files.weights) == 3
    (tmp_path / "big-00002-of-00003.gguf").unlink()
    with pytest.raises(SourceError, match="not whole"):
        import_path(tmp_path / "big-00001-of-00003.gguf", here, LocalRef("me", "again"))


def sharded(directory: Path, shards: dict[str, bytes], weight_map: dict[str, Any]) -> Path:
    written(directory / "config.json", b"{}")
    written(directory / "tokenizer.json", b"{}")
    for name, data in shards.items():
        written(directory / name, data)
    index = json.dumps({"weight_map": weight_map}).encode()
    written(directory / "model.safetensors.index.json", index)
    return directory


def test_a_directory_of_safetensors_comes_with_its_config(here: Settings, tmp_path: Path) -> None:
    names = [f"model-{number:05}-of-00002.safetensors" for number in (1, 2)]
    shards = {n: safetensors_bytes([(f"w{i}", (2, 2), "F32")]) for i, n in enumerate(names)}
    path = sharded(tmp_path / "my-model", shards, {"w0": names[0], "w1": names[1]})
    files = import_path(path, here)
    assert files.format == "safetensors"
    assert [file.name for file in files.weights] == names
    assert {file.role for file in files.files} == {"weights", "config", "tokenizer", "index"}


@pytest.mark.parametrize(
    "shard",
    ["../outside.safetensors", "/etc/x.safetensors", "C:\\x.safetensors", "a\x00.safetensors", 7],
    ids=["climbs", "absolute", "drive", "NUL", "a number"],
)
def test_an_index_that_leaves_its_directory_is_refused(
    here: Settings, tmp_path: Path, shard: Any
) -> None:
    written(tmp_path / "outside.safetensors", safetensors_bytes([("w", (2, 2), "F32")]))
    path = sharded(tmp_path / "model", {}, {"w": shard})
    with pytest.raises(SourceError):
        import_path(path, here)
    assert Library(here).list() == ()


@pytest.mark.parametrize(
    ("name", "data", "error"),
    [
        ("m.gguf", b"GGUF", HeaderError),
        ("m.gguf", b"not a model", SourceError),
        ("m.safetensors", b"\xff" * 64, HeaderError),
        ("pytorch_model.bin", b"\x80\x02}q\x00.", SourceError),
        ("notes.txt", b"hello", SourceError),
    ],
    ids=["cut", "text", "absurd length", "pickle", "notes"],
)
def test_what_is_no_sound_model_is_not_taken_in(
    here: Settings, tmp_path: Path, name: str, data: bytes, error: type[SourceError]
) -> None:
    with pytest.raises(error, match=name.split(".")[0]):
        import_path(written(tmp_path / name, data), here)
    assert Library(here).list() == ()
    assert list(here.data.rglob("*.gguf")) == []


def test_nothing_there_is_not_found(here: Settings, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"gone\.gguf"):
        import_path(tmp_path / "gone.gguf", here)


def test_two_models_in_one_directory_ask_for_a_name(here: Settings, tmp_path: Path) -> None:
    written(tmp_path / "d" / "a.gguf")
    written(tmp_path / "d" / "b.gguf")
    with pytest.raises(SourceError, match="2 GGUF models"):
        import_path(tmp_path / "d", here)
    (tmp_path / "d" / "b.gguf").rename(tmp_path / "d" / "mmproj-b.gguf")
    assert [file.role for file in import_path(tmp_path / "d", here).files] == [
        "weights",
        "projector",
    ]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("My Model (v2)", "My-Model-v2"),
        ("..", "model"),
        ("a--b..c", "a-b.c"),
        ("x" * 200, "x" * 80),
        ("模型", "model"),
    ],
)
def test_names_of_other_stores_become_parts_of_a_reference(text: str, name: str) -> None:
    assert plain_name(text) == name
    assert parse(f"local:imported/{name}") == LocalRef("imported", name)


MODEL_LAYER = "application/vnd.ollama.image.model"


def ollama_blob(root: Path, data: bytes = GGUF) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    written(root / "blobs" / f"sha256-{digest}", data)
    return {"mediaType": MODEL_LAYER, "digest": f"sha256:{digest}", "size": len(data)}


def ollama_tag(root: Path, name: str, layers: Any) -> None:
    path = root / "manifests" / "host.example" / name
    written(path, json.dumps({"schemaVersion": 2, "layers": layers}).encode())


@pytest.fixture
def ollama(here: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    return tmp_path / "ollama"


def test_models_of_ollama_are_linked(ollama: Path) -> None:
    layer = ollama_blob(ollama)
    template = {"mediaType": "application/vnd.ollama.image.template", "digest": "x", "size": 1}
    ollama_tag(ollama, "library/llama3.2/1b", [template, layer])
    ollama_tag(ollama, "me/mine/latest", [layer])
    done = import_ollama(settings())
    assert [str(files.ref) for files in done.models] == [
        "local:ollama/llama3.2-1b",
        "local:ollama/me-mine-latest",
    ]
    assert done.skipped == ()
    (file,) = done.models[0].weights
    assert file.path is not None
    assert file.path.suffix == ".gguf"
    assert file.path.read_bytes() == GGUF
    assert file.digest is not None
    assert f"sha256:{file.digest.value}" == layer["digest"]


def test_one_broken_model_of_ollama_does_not_stop_the_others(ollama: Path) -> None:
    good = ollama_blob(ollama)
    ollama_tag(ollama, "library/good/1", [good])
    ollama_tag(ollama, "library/bad/size", [{**good, "size": 1}])
    ollama_tag(ollama, "library/bad/none", [])
    ollama_tag(ollama, "library/bad/header", [ollama_blob(ollama, b"no model")])
    written(ollama / "manifests" / "host.example" / "library" / "bad" / "json", b"{")
    done = import_ollama(settings())
    assert [str(files.ref) for files in done.models] == ["local:ollama/good-1"]
    assert len(done.skipped) == 4
    assert [model.ref for model in Library(settings()).list()] == ["local:ollama/good-1"]


def test_models_of_lm_studio_are_linked_with_their_projector(
    here: Settings, tmp_path: Path
) -> None:
    place = tmp_path / "lmstudio"
    written(place / "alice" / "M-GGUF" / "M-Q4_K_M.gguf")
    written(place / "alice" / "M-GGUF" / "mmproj-M.gguf")
    written(place / "bob" / "M-GGUF" / "M-Q4_K_M.gguf", tiny_gguf(1))
    written(place / "bob" / "N-GGUF" / "N.gguf", b"no model")
    for number, data in enumerate(split_gguf(2), start=1):
        written(place / "bob" / "S" / f"S-{number:05}-of-00002.gguf", data)
    done = import_lmstudio(replace(here, lmstudio_models=(place, tmp_path / "absent")))
    assert [str(files.ref) for files in done.models] == [
        "local:lmstudio/alice-M-Q4_K_M",
        "local:lmstudio/bob-M-Q4_K_M",
        "local:lmstudio/S",
    ]
    assert [file.role for file in done.models[0].files] == ["weights", "projector"]
    assert [skipped.name for skipped in done.skipped] == ["local:lmstudio/N"]


def test_a_program_that_is_not_here_is_said_so(here: Settings, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    with pytest.raises(ModelNotFoundError, match="Ollama"):
        import_ollama(replace(here, ollama_models=nowhere))
    with pytest.raises(ModelNotFoundError, match="LM Studio"):
        import_lmstudio(replace(here, lmstudio_models=(nowhere,)))


def test_an_import_that_fails_leaves_no_links(
    here: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoSpace(disk.Disk):
        def create(self, path: Path) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    mine = written(tmp_path / "m.gguf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk, "DISK", NoSpace())
        with pytest.raises(Exception, match="no space left"):
            import_path(mine, here)
    assert not list(here.data.rglob("*.gguf"))
    assert import_path(mine, here).complete
