"""Hostile GGUF headers: refused by field and offset, quickly, and before anything is allocated."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localrun.errors import HeaderError
from localrun.formats.gguf import read_gguf
from localrun.formats.reader import BytesSource
from localrun.models.describe import describe
from tests.gguf_builder import F32, STRING, U8, As, gguf_bytes, llama_metadata, raw_gguf
from tests.malformed import MALFORMED
from tests.mutations import mutated

CHILD = Path(__file__).with_name("header_child.py")
SEEDS = [
    gguf_bytes(llama_metadata(), [("a", (2, 32), "Q4_0"), ("b", (8,), "F32")]),
    gguf_bytes(
        {
            "general.architecture": "llama",
            "llama.attention.head_count": [4, 0],
            "general.alignment": 64,
            "flags": [True, False],
            "bytes": As(U8, [1, 2, 3]),
            "scores": As(F32, [0.5, -1.0]),
            "texts": As(STRING, []),
        },
        [("t", (2, 3, 256), "IQ2_XXS")],
        alignment=64,
    ),
    raw_gguf(),
]


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_file_is_refused_by_field_and_offset(name: str) -> None:
    case = MALFORMED[name]
    with pytest.raises(HeaderError) as caught:
        read_gguf(BytesSource(case.data), "bad.gguf")

    error = caught.value
    assert case.field in error.field
    assert 0 <= error.offset <= len(case.data)
    assert str(error).startswith(f"bad.gguf: {error.field} at byte {error.offset}: ")
    assert str(error).isprintable()


def test_the_table_names_at_least_40_files() -> None:
    assert len(MALFORMED) >= 40


def _report(folder: Path) -> dict[str, tuple[str, str, float, int]]:
    child = subprocess.run(
        [sys.executable, str(CHILD), str(folder)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    report: dict[str, tuple[str, str, float, int]] = json.loads(child.stdout)
    return report


@pytest.mark.skipif(sys.platform == "win32", reason="RLIMIT_AS is POSIX")
def test_each_is_refused_in_50_ms_and_64_mib_in_a_limited_process(tmp_path: Path) -> None:
    for name, case in MALFORMED.items():
        (tmp_path / f"{name}.gguf").write_bytes(case.data)
    (tmp_path / "well_formed.gguf").write_bytes(SEEDS[0])
    report = _report(tmp_path)

    assert report.pop("well_formed")[:2] == ["", ""]
    assert {name for name, row in report.items() if row[0] == "HeaderError"} == set(MALFORMED)
    slow = {name: row[2] for name, row in report.items() if row[2] > 0.050}
    large = {name: row[3] for name, row in report.items() if row[3] > 64 * 1024**2}
    assert (slow, large) == ({}, {})


def test_a_file_cut_at_any_byte_is_refused() -> None:
    whole = SEEDS[0]
    needed = len(whole)  # the last tensor's 32 bytes end on the alignment
    for length in range(needed):
        with pytest.raises(HeaderError):
            read_gguf(BytesSource(whole[:length]), "cut.gguf")


def read_or_refuse(data: bytes) -> bool:
    """Anything but HeaderError fails the test that calls this."""
    try:
        header = read_gguf(BytesSource(data), "m.gguf")
        assert all(t.offset + t.bytes <= len(data) for t in header.tensors)
        describe(header)
    except HeaderError:
        return False
    return True


def test_mutated_files_are_read_or_refused() -> None:
    files = list(mutated(SEEDS, 10_000, seed=1, head=900))
    accepted = sum(map(read_or_refuse, files))

    assert 0 < accepted < len(files)


@pytest.mark.long
def test_half_a_million_mutated_files_are_read_or_refused() -> None:
    accepted = sum(map(read_or_refuse, mutated(SEEDS, 500_000, seed=2, head=900)))

    assert 0 < accepted < 500_000


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.binary(max_size=200), st.integers(0, 3), st.integers(0, 3))
def test_any_bytes_behind_a_plausible_start_are_read_or_refused(
    data: bytes, n_tensors: int, n_kv: int
) -> None:
    read_or_refuse(raw_gguf(data, n_tensors=n_tensors, n_kv=n_kv))


@pytest.mark.long
@settings(max_examples=50_000, deadline=None)
@given(st.binary(max_size=400), st.integers(0, 9), st.integers(0, 9))
def test_50_000_starts_are_read_or_refused(data: bytes, n_tensors: int, n_kv: int) -> None:
    read_or_refuse(raw_gguf(data, n_tensors=n_tensors, n_kv=n_kv))
