"""`localrun launch`: which server and model, what is written and when, and what is started."""

from __future__ import annotations

import json
import os
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from localrun.cli import user_files
from localrun.cli.app import execute
from localrun.cli.launch.starting import run
from localrun.config import Settings
from localrun.server.running import register
from tests.command_lines import small_gguf

KEY = "s3cret"
SERVED = [{"id": "big", "meta": {"n_ctx": 70_000}}, {"id": "small", "meta": {"n_ctx": 512}}]


class _Answers(BaseHTTPRequestHandler):
    """A server's list of models, and ``/props`` of one that does not say its context there."""

    served: list[dict[str, Any]] = SERVED
    key = ""

    def do_GET(self) -> None:
        if self.key and self.headers["Authorization"] != f"Bearer {self.key}":
            self._answer(401, {"error": {"message": "the API key is missing or wrong"}})
        elif self.path.startswith("/props"):
            self._answer(200, {"default_generation_settings": {"n_ctx": 66_000}})
        else:
            self._answer(200, {"object": "list", "data": self.served})

    def _answer(self, status: int, document: Any) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def answering(**fields: Any) -> Iterator[int]:
    handler = type("Answers", (_Answers,), fields)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def user(here: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of nobody's, with no program on PATH but those a test puts there."""
    home = tmp_path / "user"
    (home / "bin").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PATH", str(home / "bin"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    return home


@pytest.fixture
def port(user: Path, here: Settings) -> Iterator[int]:
    """A registered server that answers; it has loaded ``big``."""
    with (
        answering() as port,
        register(here, host="127.0.0.1", port=port, models=["big"]),
    ):
        yield port


def stub(home: Path, name: str, *, code: int = 0) -> Path:
    """A program that writes down its arguments and its environment; where it writes them."""
    told = home / f"{name}.told"
    program = home / "bin" / name
    program.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$@" > {told}\n/usr/bin/env >> {told}\nexit {code}\n'
    )
    program.chmod(0o755)
    return told


def test_an_agent_is_started_with_its_environment_and_its_exit_code_passed_on(
    user: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = stub(user, "claude", code=7)
    monkeypatch.setenv("CLAUDE_CODE_USE_BEDROCK", "1")
    monkeypatch.setenv("THE_USERS_OWN", "kept")

    assert execute(["launch", "claude", "--", "--continue", "a b", "--"]) == 7

    lines = told.read_text().splitlines()
    assert lines[:3] == ["--continue", "a b", "--"]
    assert f"ANTHROPIC_BASE_URL=http://127.0.0.1:{port}" in lines
    assert "ANTHROPIC_MODEL=big" in lines
    assert "CLAUDE_CODE_MAX_CONTEXT_TOKENS=70000" in lines
    assert "THE_USERS_OWN=kept" in lines
    assert not any(line.startswith("CLAUDE_CODE_USE_BEDROCK") for line in lines)


def test_settings_on_the_command_line_come_before_the_users_arguments(
    user: Path, port: int
) -> None:
    told = stub(user, "codex")

    assert execute(["launch", "codex", "--", "exec", "hi"]) == 0

    lines = told.read_text().splitlines()
    assert lines[:2] == ["-c", 'model="big"']
    at = lines.index("exec")
    assert lines[at : at + 2] == ["exec", "hi"]


def test_aiders_file_of_models_is_ours_and_nobody_is_asked(user: Path, port: int) -> None:
    told = stub(user, "aider")

    assert execute(["launch", "aider"]) == 0

    lines = dict(line.split("=", 1) for line in told.read_text().splitlines() if "=" in line)
    file = Path(lines["AIDER_MODEL_METADATA_FILE"])
    assert json.loads(file.read_text())["openai/big"]["max_input_tokens"] == 70_000
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_the_key_reaches_the_agent_by_its_environment_alone(
    user: Path, here: Settings, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    told = stub(user, "claude")
    monkeypatch.setenv("LOCALRUN_API_KEY", KEY)
    with answering(key=KEY) as port, register(here, host="127.0.0.1", port=port, models=["big"]):
        assert execute(["launch", "claude"]) == 0
        assert execute(["launch", "claude", "--print"]) == 0
        assert execute(["launch", "codex", "--json"]) == 0
        assert execute(["launch", "zed", "--yes"]) == 0

    captured = capfd.readouterr()
    assert f"ANTHROPIC_AUTH_TOKEN={KEY}" in told.read_text().splitlines()
    assert 'export ANTHROPIC_AUTH_TOKEN="$LOCALRUN_API_KEY"' in captured.out
    assert KEY not in captured.out + captured.err
    assert KEY not in (user / ".config/zed/settings.json").read_text()


def test_a_server_that_wants_a_key_says_so(
    user: Path, here: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    stub(user, "claude")
    with answering(key=KEY) as port, register(here, host="127.0.0.1", port=port, models=["big"]):
        assert execute(["launch", "claude"]) == 1

    assert "API key" in capfd.readouterr().err


@pytest.mark.parametrize("agent", ["claude", "codex", "opencode", "aider", "llama.vim"])
def test_an_agent_that_is_not_installed_is_said_with_how_to_install_it(
    agent: str, user: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert execute(["launch", agent]) == 6

    error = capfd.readouterr().err
    assert "is not installed: no " in error
    assert "hint: " in error
    assert "install" in error.partition("hint: ")[2]


def test_an_unknown_agent_is_answered_with_those_there_are(
    user: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert execute(["launch", "emacs"]) == 2

    assert "claude" in capfd.readouterr().err


def test_printing_writes_and_starts_nothing(
    user: Path, port: int, capfd: pytest.CaptureFixture[str]
) -> None:
    told = stub(user, "opencode")
    before = sorted(user.rglob("*"))

    assert execute(["launch", "opencode", "--print"]) == 0
    assert execute(["launch", "zed", "--print", "--yes"]) == 0
    assert execute(["launch", "aider", "--print"]) == 0  # not even installed

    assert "OPENCODE_CONFIG_CONTENT" in capfd.readouterr().out
    assert not told.exists()
    assert sorted(user.rglob("*")) == before


def test_the_json_is_one_document_and_starts_nothing(
    user: Path, port: int, capfd: pytest.CaptureFixture[str]
) -> None:
    assert execute(["launch", "vscode", "--json"]) == 0

    told = json.loads(capfd.readouterr().out)
    assert told["agent"] == "vscode"
    assert (told["url"], told["model"], told["n_ctx"]) == (f"http://127.0.0.1:{port}", "big", 70000)
    (file,) = told["files"]
    assert json.loads(file["text"])[0]["models"][0]["id"] == "big"
    assert told["running"] is True
    assert told["serve"] is None


def test_a_server_is_named_and_one_of_its_models(
    user: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with answering() as port:
        command = ["launch", "codex", "small", "--server", f"127.0.0.1:{port}", "--json"]
        assert execute(command) == 0
        told = json.loads(capfd.readouterr().out)
        assert execute(["launch", "codex", "absent", *command[3:]]) == 3

    assert (told["model"], told["n_ctx"], told["url"]) == ("small", 512, f"http://127.0.0.1:{port}")
    assert "it serves big, small" in capfd.readouterr().err


def test_a_context_that_the_list_leaves_out_is_asked_for(
    user: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with answering(served=[{"id": "m"}]) as port:
        assert execute(["launch", "codex", "--server", f"127.0.0.1:{port}", "--json"]) == 0

    assert json.loads(capfd.readouterr().out)["n_ctx"] == 66_000


def test_a_context_too_short_for_an_agent_is_said(
    user: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with answering() as port:
        server = ["--server", f"127.0.0.1:{port}", "--print"]
        assert execute(["launch", "claude", "small", *server]) == 0
        assert "25,000 to 36,000 tokens" in capfd.readouterr().err
        assert execute(["launch", "claude", "big", *server]) == 0

    assert "better off" not in capfd.readouterr().err


def test_without_a_server_an_editor_is_told_of_the_one_to_start(
    user: Path, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert execute(["launch", "continue", str(model), "--yes"]) == 0

    captured = capfd.readouterr()
    assert f"`localrun serve {model} --ctx 128` starts one at http://127.0.0.1:7411" in captured.err
    assert str(model) in (user / ".continue/models/localrun.yaml").read_text()


def test_without_a_model_on_disk_the_command_that_fetches_one_is_said(
    user: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert execute(["launch", "jetbrains"]) == 3

    assert "localrun pull smollm2" in capfd.readouterr().err


@pytest.mark.parametrize("agent", ["cursor", "jetbrains", "minuet"])
def test_what_only_a_person_can_do_is_the_answer(
    agent: str, user: Path, port: int, capfd: pytest.CaptureFixture[str]
) -> None:
    assert execute(["launch", agent]) == 0

    assert f"http://127.0.0.1:{port}" in capfd.readouterr().out


@pytest.fixture
def model(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.gguf"
    file.write_bytes(small_gguf())
    return file


ZED = """// my settings
{
  "theme": "One Dark" // dark
}
"""


@pytest.fixture
def zed(user: Path) -> Path:
    file = user / ".config" / "zed" / "settings.json"
    file.parent.mkdir(parents=True)
    file.write_text(ZED)
    file.chmod(0o644)
    return file


def backups(file: Path) -> list[Path]:
    return sorted(file.parent.glob(f"{file.name}.localrun-backup-*"))


def test_without_a_terminal_and_a_yes_a_users_file_stays_as_it_is(
    zed: Path, port: int, capfd: pytest.CaptureFixture[str]
) -> None:
    assert execute(["launch", "zed"]) == 2

    captured = capfd.readouterr()
    assert zed.read_text() == ZED
    assert backups(zed) == []
    assert "--yes" in captured.err
    # What may be pasted instead.
    assert "available_models" in captured.out


def test_a_file_is_added_to_and_the_old_one_kept(
    zed: Path, user: Path, port: int, capfd: pytest.CaptureFixture[str]
) -> None:
    told = stub(user, "zed")

    assert execute(["launch", "zed", "--yes", "--", "."]) == 0

    after = zed.read_text()
    (backup,) = backups(zed)
    assert after.startswith('// my settings\n{\n  "theme": "One Dark", // dark\n')
    assert f'"api_url": "http://127.0.0.1:{port}/v1"' in after
    assert backup.read_text() == ZED
    assert stat.S_IMODE(zed.stat().st_mode) == stat.S_IMODE(backup.stat().st_mode) == 0o644
    assert '+  "language_models": {' in capfd.readouterr().err
    lines = told.read_text().splitlines()
    assert lines[0] == "."
    assert "LOCALRUN_API_KEY=localrun" in lines


def test_settings_that_are_there_already_are_not_written_again(
    zed: Path, port: int, capfd: pytest.CaptureFixture[str]
) -> None:
    assert execute(["launch", "zed", "--yes"]) == 0
    written = zed.stat().st_mtime_ns

    assert execute(["launch", "zed"]) == 0

    assert zed.stat().st_mtime_ns == written
    assert len(backups(zed)) == 1
    assert "says so already" in capfd.readouterr().err


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Somebody at the terminal, who says yes or no."""

    def say(yes: bool) -> None:
        monkeypatch.setattr(user_files, "_agreed", lambda file: yes)

    return say


def test_a_no_leaves_the_file_and_starts_nothing(
    zed: Path, user: Path, port: int, answers: Callable[[bool], None]
) -> None:
    told = stub(user, "zed")
    answers(False)

    assert execute(["launch", "zed"]) == 1

    assert zed.read_text() == ZED
    assert backups(zed) == []
    assert not told.exists()


def test_a_file_that_changes_while_its_owner_thinks_is_not_overwritten(
    zed: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meanwhile(_: Path) -> bool:
        zed.write_text("{}")
        return True

    monkeypatch.setattr(user_files, "_agreed", meanwhile)

    assert execute(["launch", "zed"]) == 1

    assert zed.read_text() == "{}"


def test_a_link_to_a_file_stays_a_link(zed: Path, user: Path, port: int) -> None:
    kept = user / "dotfiles.json"
    zed.rename(kept)
    zed.symlink_to(kept)

    assert execute(["launch", "zed", "--yes"]) == 0

    assert zed.is_symlink()
    assert "localrun" in kept.read_text()
    assert len(backups(kept)) == 1


BROKEN = {"no json": b"{", "an array": b"[]", "no text": b"\xff\xfe{}"}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_file_that_cannot_be_added_to_is_named_and_left(
    content: bytes, zed: Path, port: int, capfd: pytest.CaptureFixture[str]
) -> None:
    zed.write_bytes(content)

    assert execute(["launch", "zed", "--yes"]) == 2

    assert zed.read_bytes() == content
    assert str(zed) in capfd.readouterr().err


def test_an_editor_that_is_not_on_path_is_set_up_all_the_same(
    user: Path, port: int, capfd: pytest.CaptureFixture[str]
) -> None:
    assert execute(["launch", "vscode", "--yes"]) == 0

    file = user / ".config" / "Code" / "User" / "chatLanguageModels.json"
    (entry,) = json.loads(file.read_text())
    assert entry["models"][0]["url"] == f"http://127.0.0.1:{port}/v1/chat/completions"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "start it yourself" in capfd.readouterr().err


def test_a_program_that_a_signal_ends_has_a_shells_exit_code(user: Path) -> None:
    program = user / "bin" / "dies"
    program.write_text("#!/bin/sh\nkill -TERM $$\n")
    program.chmod(0o755)

    assert run([str(program)], {}, ()) == 128 + signal.SIGTERM


def test_ctrl_c_while_an_agent_runs_is_the_agents_own(user: Path) -> None:
    # A terminal sends it to both: the agent takes it as it likes, this program waits on.
    program = user / "bin" / "interrupted"
    program.write_text(f"#!/bin/sh\nkill -INT {os.getpid()}\nexit 5\n")
    program.chmod(0o755)

    assert run([str(program)], {}, ()) == 5
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("ctx", ["0", "-1"])
def test_a_context_of_no_tokens_is_refused(ctx: str, user: Path) -> None:
    assert execute(["launch", "jetbrains", "--ctx", ctx]) == 2
