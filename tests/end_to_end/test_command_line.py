"""The commands as a person types them: whole processes, the default model, exit codes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from localrun.config import settings
from localrun.ref import parse
from tests.gguf_builder import gguf_bytes, llama_metadata

FRANCE = "Name the capital of France."
LOCALRUN = [sys.executable, "-P", "-m", "localrun.cli"]


def localrun(
    *arguments: str, stdin: str = "", **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*LOCALRUN, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **variables},
    )


def test_run_answers_on_stdout_and_says_its_statistics_on_stderr(smollm2_path: Path) -> None:
    outcome = localrun("run", str(smollm2_path), FRANCE, "--temperature", "0", "--stats")

    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout == "The capital of France is Paris.\n"
    assert "answer 8 tokens" in outcome.stderr
    assert "prompt 36 tokens (0 cached)" in outcome.stderr


def test_run_reads_what_is_piped_behind_its_prompt(smollm2_path: Path) -> None:
    outcome = localrun(
        "run", str(smollm2_path), "Name the capital", "--temperature", "0", stdin="of France.\n"
    )

    assert "Paris" in outcome.stdout


def test_run_refuses_input_that_is_not_text_naming_the_byte(smollm2_path: Path) -> None:
    outcome = subprocess.run(
        [*LOCALRUN, "run", str(smollm2_path), "Summarise"],
        input=b"caf\xe9 au lait",
        capture_output=True,
        timeout=120,
    )

    assert outcome.returncode == 2
    assert b"byte 3 is 0xe9" in outcome.stderr
    assert outcome.stdout == b""


@pytest.mark.skipif(os.name == "nt", reason="arguments are text there")
@pytest.mark.parametrize("arguments", [[b"caf\xe9"], [b"hi", b"--system", b"caf\xe9"]])
def test_run_refuses_an_argument_that_is_not_text(
    arguments: list[bytes], smollm2_path: Path
) -> None:
    outcome = subprocess.run(
        [*map(os.fsencode, [*LOCALRUN, "run", str(smollm2_path)]), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=120,
        env=os.environ | {"PYTHONUTF8": "1"},
    )

    assert outcome.returncode == 2
    assert b"character 3 cannot be read" in outcome.stderr


def test_bench_measures_any_lengths_and_prints_one_document(smollm2_path: Path) -> None:
    outcome = localrun("bench", str(smollm2_path), *["-p", "24", "-n", "4", "-r", "1", "--json"])

    assert outcome.returncode == 0, outcome.stderr
    tests = json.loads(outcome.stdout)["tests"]
    assert [test["test"] for test in tests] == ["pp24", "tg4"]
    assert all(test["tps"] > 0 for test in tests)


CLOSED = {"input": "<&-", "output": ">&-", "errors": "2>&-", "all three": "<&- >&- 2>&-"}


@pytest.mark.skipif(os.name == "nt", reason="a shell closes the streams")
@pytest.mark.parametrize("streams", CLOSED.values(), ids=CLOSED.keys())
def test_streams_closed_by_the_shell_are_no_failure(streams: str, home: Path) -> None:
    command = f'exec "$0" "$@" {streams}'
    outcome = subprocess.run(
        ["/bin/sh", "-c", command, *LOCALRUN, "list"],
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert outcome.returncode == 0, outcome.stderr
    assert "error" not in outcome.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_a_full_disk_behind_a_redirection_is_no_defect(smollm2_path: Path) -> None:
    with open("/dev/full", "w") as full:
        outcome = subprocess.run(
            [*LOCALRUN, "show", str(smollm2_path)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
        )

    assert outcome.returncode == 1
    assert "standard output: No space left" in outcome.stderr
    assert "internal error" not in outcome.stderr


def test_the_same_seed_gives_the_same_text_and_another_another(smollm2_path: Path) -> None:
    def story(seed: int) -> str:
        return localrun(
            "run", str(smollm2_path), "Tell a story.", "--seed", str(seed), "--max-tokens", "8"
        ).stdout

    assert story(1) == story(1)
    assert story(1) != story(2)


def test_interrupting_a_run_ends_it_cleanly_with_130(smollm2_path: Path) -> None:
    running = subprocess.Popen(
        [*LOCALRUN, "run", str(smollm2_path), "Count to one thousand.", "--temperature", "0"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stdout is not None
    first = running.stdout.read(1)
    running.send_signal(signal.SIGINT)
    rest, errors = running.communicate(timeout=60)

    assert running.returncode == 130
    assert first + rest
    assert "Traceback" not in errors


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(smollm2_path: Path) -> None:
    outcome = localrun("run", str(smollm2_path), "word " * 600, "--ctx", "512")

    assert outcome.returncode == 2
    assert "the context holds 512" in outcome.stderr
    assert "tokens" in outcome.stderr
    assert outcome.stdout == ""


USAGE = {
    "no prompt": (["run", "smollm2"], 2, "no prompt"),
    "a reference that does not parse": (["run", "a|b", "hi"], 2, "a reference is NAME"),
    "an unknown name": (["run", "smolm2", "hi"], 3, "smollm2"),
    "an absent hub model": (["run", "hf:org/repo", "hi"], 3, "localrun pull hf:org/repo"),
    "an absent path": (["run", "./absent.gguf", "hi"], 3, "absent.gguf"),
    "an unknown backend": (["run", "MODEL", "hi", "--backend", "abacus"], 2, "abacus"),
    "too many threads": (["run", "MODEL", "hi", "--threads", "9999"], 2, "--threads 9999"),
    "a context of nothing": (["run", "MODEL", "hi", "--ctx", "0"], 2, "--ctx 0"),
    "a size that is none": (["run", "MODEL", "hi", "--ram", "lots"], 2, "lots"),
    "more than the limit": (["run", "MODEL", "hi", "--ram", "1MB"], 4, "does not fit: ram lacks"),
    "an absurd temperature": (["run", "MODEL", "hi", "--temperature", "-1"], 2, "temperature"),
    "an open port without a key": (["serve", "--host", "0.0.0.0"], 2, "--api-key"),
    "a port that is none": (["serve", "--port", "70000"], 2, "70000"),
    "chat in a pipe": (["chat", "MODEL"], 2, "terminal"),
    "nothing to stop": (["stop"], 1, "no such server"),
    "a flag nobody has": (["list", "--colour"], 2, "--colour"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "code", "said"), USAGE.values(), ids=USAGE.keys())
def test_what_cannot_be_done_is_said_in_one_line_with_its_exit_code(
    arguments: list[str], code: int, said: str, smollm2_path: Path, home: Path
) -> None:
    outcome = localrun(*[str(smollm2_path) if word == "MODEL" else word for word in arguments])

    assert outcome.returncode == code, outcome.stderr
    assert said in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert outcome.stdout == ""


def test_an_unknown_model_is_answered_with_three_names(home: Path) -> None:
    outcome = localrun("pull", "zzzz")

    assert outcome.returncode == 3
    assert outcome.stderr.splitlines()[0].count(",") == 2


def test_a_corrupt_file_is_refused_naming_field_and_offset(tmp_path: Path, home: Path) -> None:
    hostile = tmp_path / "hostile.gguf"
    whole = gguf_bytes(llama_metadata())
    hostile.write_bytes(whole[:-1] if len(whole) < 64 else whole[:60])

    for command in (["show", str(hostile)], ["run", str(hostile), "hi"], ["import", str(hostile)]):
        outcome = localrun(*command)

        assert outcome.returncode == 5, outcome.stderr
        assert "hostile.gguf" in outcome.stderr
        assert "at byte" in outcome.stderr


def test_a_file_deleted_behind_our_back_is_listed_as_missing_and_not_run(
    smollm2_path: Path, tmp_path: Path, home: Path
) -> None:
    mine = tmp_path / "mine.gguf"
    os.link(smollm2_path, mine)
    assert localrun("import", str(mine), "--name", "me/mine").returncode == 0
    mine.unlink()

    listed = json.loads(localrun("list", "--json").stdout)["models"]
    run = localrun("run", "local:me/mine", "hi")

    assert [(model["ref"], model["state"]) for model in listed] == [
        ("local:me/mine", "missing files")
    ]
    assert run.returncode == 3
    assert "missing files mine.gguf" in run.stderr
    assert "import PATH --name me/mine" in run.stderr
    assert "Traceback" not in run.stderr


def test_a_request_cannot_make_the_server_open_a_path(smollm2_path: Path, home: Path) -> None:
    """Neither the file nor whether it is there: both answers are the same."""
    with subprocess.Popen(
        [*LOCALRUN, "serve", "--port", "auto"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        try:
            answers = [
                httpx2.post(
                    f"{url}/chat/completions",
                    json={"model": path, "messages": [{"role": "user", "content": "hi"}]},
                    timeout=60,
                )
                for path in (str(smollm2_path), "/absent/model.gguf", "./absent.gguf", "~")
            ]
        finally:
            server.terminate()

    assert [answer.status_code for answer in answers] == [404] * 4
    said = {answer.json()["error"]["message"].partition("': ")[2] for answer in answers}
    assert len(said) == 1
    assert "a request cannot name a path" in said.pop()


def test_a_port_in_use_is_named(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        outcome = localrun("serve", "--port", str(port))

    assert outcome.returncode == 1
    assert str(port) in outcome.stderr


# Runs at the start of every interpreter, the engine's child included.
WITHOUT_LLAMA = """
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "llama_cpp" else found(name, *more)
"""


def test_without_its_library_run_exits_6_with_the_command_and_the_rest_works(
    smollm2_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_LLAMA)
    bare = {"PYTHONPATH": str(tmp_path)}

    run = localrun("run", str(smollm2_path), "hi", **bare)
    doctor = localrun("doctor", **bare)

    assert run.returncode == 6
    assert "pip install llama-cpp-python==" in run.stderr
    assert doctor.returncode == 0
    assert "pip install llama-cpp-python==" in doctor.stdout
    assert localrun("list", **bare).returncode == 0
    assert localrun("show", str(smollm2_path), **bare).returncode == 0


def test_show_and_list_print_one_document(smollm2_path: Path) -> None:
    shown = json.loads(localrun("show", str(smollm2_path), "--json").stdout)

    assert shown["architecture"] == "llama"
    assert shown["parameters"] == 134_515_008
    assert shown["tensors"] == 272
    assert shown["files"][0]["path"] == str(smollm2_path)


def test_flags_come_from_the_file_then_the_environment_then_the_line(home: Path) -> None:
    config = settings().config_file
    config.parent.mkdir(parents=True)
    config.write_text('port = "70001"\n')

    from_file = localrun("serve")
    from_environment = localrun("serve", LOCALRUN_PORT="70002")
    from_line = localrun("serve", "--port", "70003", LOCALRUN_PORT="70002")

    assert "70001" in from_file.stderr
    assert "70002" in from_environment.stderr
    assert "70003" in from_line.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("temprature = 1\n", "did you mean temperature"),
        ('ref = "smollm2"\n', "no flag is called 'ref'"),
        ("max-tokens = 1\nmax_tokens = 2\n", "'max_tokens' is set twice"),
        ("ctx = [1]\n", "config.toml: 'ctx' is a list, --ctx takes one value"),
        ("port = {}\n", "'port'"),
        ("=", "config.toml"),
    ],
)
def test_a_configuration_that_cannot_be_meant_is_refused(text: str, said: str, home: Path) -> None:
    config = settings().config_file
    config.parent.mkdir(parents=True)
    config.write_text(text)

    outcome = localrun("list")

    assert outcome.returncode == 2
    assert said in outcome.stderr


FROM_CONFIG = {
    "a flag of another command": ('cors-origin = ["http://a.example"]', ["list"], 0, ""),
    "one value for a list": ('cors-origin = "http://a"\nport = "70001"', ["serve"], 2, "70001"),
    "a size in bytes": ("ram = 1000000", ["run", "MODEL", "hi"], 4, "0.00 allowed by --ram"),
    "a size that is none": ("ram = 1.5", ["run", "MODEL", "hi"], 2, "config.toml: ram: size '1.5'"),
    "a word for a number": ('ctx = "abc"', ["run", "MODEL", "hi"], 2, "config.toml: ctx: "),
    "a number for a switch": ("stats = 3", ["run", "MODEL", "hi"], 2, "config.toml: stats: "),
}


@pytest.mark.parametrize(
    ("text", "arguments", "code", "said"), FROM_CONFIG.values(), ids=FROM_CONFIG.keys()
)
def test_what_config_sets_is_read_as_its_flag_is_and_named_when_it_cannot_be(
    text: str, arguments: list[str], code: int, said: str, smollm2_path: Path, home: Path
) -> None:
    config = settings().config_file
    config.parent.mkdir(parents=True)
    config.write_text(text)

    outcome = localrun(*[str(smollm2_path) if word == "MODEL" else word for word in arguments])

    assert outcome.returncode == code, outcome.stderr
    assert said in outcome.stderr
    assert "internal error" not in outcome.stderr


def test_a_bad_variable_is_named_and_one_of_another_kind_is_left_alone(home: Path) -> None:
    bad = localrun("list", LOCALRUN_JSON="banana")
    version = localrun("list", "--json", LOCALRUN_VERSION="1.2.3")

    assert bad.returncode == 2
    assert "LOCALRUN_JSON: " in bad.stderr
    assert version.returncode == 0
    assert json.loads(version.stdout) == {"models": []}


def test_the_catalogue_lists_names_that_parse_with_their_source_and_licence(home: Path) -> None:
    listed = json.loads(localrun("list", "--catalogue", "--json").stdout)["models"]

    assert len(listed) >= 20
    for model in listed:
        assert str(parse(model["ref"])) == model["ref"]
        assert model["licence"]
        assert str(parse(model["source"])) == model["source"]
