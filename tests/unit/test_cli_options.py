"""Flags whose values have a form of their own, wherever they come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from localrun.cli.app import execute
from localrun.cli.options import parse_duration
from localrun.cli.run import MAX_SCHEMA_CHARS, read_schema
from localrun.config import settings
from localrun.errors import UsageError

DURATIONS = {
    "0": 0,
    "90": 90,
    "90s": 90,
    "5m": 300,
    "1h": 3600,
    "1.5 H": 5400,
    " 2 m ": 120,
    "0.5": 0.5,
    "-1": -1,
    "-1.0": -1,
}


@pytest.mark.parametrize(("text", "seconds"), DURATIONS.items())
def test_a_duration_is_seconds_or_a_number_with_its_unit(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "m", "-2", "-1m", "1d", "5 minutes", "1e3", "nan", "٣m", "1:30"]
)
def test_what_is_no_duration_is_refused_with_what_is(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_duration(text)

    assert repr(text) in refused.value.message
    assert "-1 never" in refused.value.hint


def test_a_duration_comes_from_the_file_then_the_environment_then_the_line(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings().config_file
    config.parent.mkdir(parents=True)
    config.write_text('keep-alive = "1d"\n')

    assert execute(["serve", "--port", "70000"]) == 2
    assert "keep_alive: '1d' is not a duration" in capsys.readouterr().err
    monkeypatch.setenv("LOCALRUN_KEEP_ALIVE", "2d")
    assert execute(["serve", "--port", "70000"]) == 2
    assert "LOCALRUN_KEEP_ALIVE: '2d'" in capsys.readouterr().err
    assert execute(["serve", "--port", "70000", "--keep-alive", "3d"]) == 2
    assert "'3d'" in capsys.readouterr().err
    # With a good one, it is the port that is at fault.
    assert execute(["serve", "--port", "70000", "--keep-alive", "-1"]) == 2
    assert "--port '70000'" in capsys.readouterr().err


SCHEMA = '{"type": "object", "properties": {"größe": {"type": "integer"}}}'


def test_a_schema_is_written_out_or_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_bytes(b"\xef\xbb\xbf" + SCHEMA.encode())

    assert read_schema(SCHEMA) == SCHEMA
    assert read_schema(f"\n {SCHEMA}").strip() == SCHEMA
    assert read_schema(str(file)) == SCHEMA


BAD_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not JSON"),
    "a list": (b"[]", "not a JSON object"),
    "half": (b'{"type": ', "not JSON"),
    "deep": (b"[" * 100_000, "not JSON"),
    "not utf-8": (b'{"\xff": 1}', "not UTF-8"),
    "too long": (b" " * (MAX_SCHEMA_CHARS + 1), "longer than"),
}


@pytest.mark.parametrize(("content", "said"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_file_that_is_no_schema_is_named(content: bytes, said: str, tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_bytes(content)

    with pytest.raises(UsageError, match=said) as refused:
        read_schema(str(file))
    assert str(file) in refused.value.message


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("{", "not JSON"),
        ("./absent.json", "No such file"),
        (".", "Is a directory"),
        ("a\0b", "null byte|not UTF-8"),
        ("{" + " " * MAX_SCHEMA_CHARS + "}", "longer than"),
        ('{"a": "\udcff"}', "not text"),
    ],
    ids=["half", "no file", "a directory", "no name", "too long", "no text"],
)
def test_an_argument_that_is_no_schema_is_refused_by_its_flag(argument: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as refused:
        read_schema(argument)
    assert refused.value.message.startswith("--json-schema")
