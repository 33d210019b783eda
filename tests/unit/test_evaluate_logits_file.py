"""llama-perplexity's file of log-probabilities: its bytes, and what is no such file."""

from __future__ import annotations

import errno
import io
import os
import shutil
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from localrun.errors import DiskFullError, SourceError, UsageError
from localrun.evaluate.logits_file import LogitsFile, LogitsWriter, looks_like_logits, open_logits
from localrun.evaluate.scores import encode
from localrun.evaluate.windows import TextWindows, counted, cut

N_CTX, VOCABULARY, COUNT = 8, 5, 3
RECORD = 8 + 2 * 6


def windows() -> TextWindows:
    return cut([token % VOCABULARY for token in range(N_CTX * COUNT)], N_CTX)


def logits(seed: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    rows = np.random.default_rng(seed).normal(size=(counted(N_CTX), VOCABULARY))
    return (rows * 4).astype(np.float32)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "reference.kld"
    with path.open("wb") as file:
        writer = LogitsWriter(file, path, windows())
        for at in range(COUNT):
            assert not writer.whole
            writer.add(encode(logits(at)), VOCABULARY)
        assert writer.whole
    return path


def test_a_file_holds_magic_sizes_tokens_and_records_in_this_order(written: Path) -> None:
    data = written.read_bytes()

    assert data[:20] == b"_logits_" + struct.pack("<iii", N_CTX, VOCABULARY, COUNT)
    tokens = np.frombuffer(data[20 : 20 + 4 * N_CTX * COUNT], "<i4")
    np.testing.assert_array_equal(tokens, windows().ids)
    records = data[20 + 4 * N_CTX * COUNT :]
    assert records == b"".join(encode(logits(at)).tobytes() for at in range(COUNT))
    assert len(records) == COUNT * 3 * RECORD  # 8 tokens: of the second half all but the last


def test_what_was_written_is_read_in_any_part(written: Path) -> None:
    with open_logits(written) as file:
        assert (file.n_ctx, file.n_vocab, file.count) == (N_CTX, VOCABULARY, COUNT)
        np.testing.assert_array_equal(file.tokens(2), windows().tokens(2))
        part = file.records(1, slice(1, 3))

    np.testing.assert_array_equal(part, encode(logits(1))[1:3])


def test_more_records_than_the_windows_have_are_refused(written: Path) -> None:
    writer = LogitsWriter(io.BytesIO(), written, cut(range(8), 8))
    writer.add(encode(logits(0)), VOCABULARY)

    with pytest.raises(ValueError, match="more records"):
        writer.add(encode(logits(0)), VOCABULARY)


def header(n_ctx: int = N_CTX, n_vocab: int = VOCABULARY, count: int = COUNT) -> bytes:
    return b"_logits_" + struct.pack("<iii", n_ctx, n_vocab, count)


MALFORMED = {
    "empty": (lambda data: b"", "does not begin"),
    "cut in its header": (lambda data: data[:15], "does not begin"),
    "another magic": (lambda data: b"_logitz_" + data[8:], "does not begin"),
    "a model": (lambda data: b"GGUF" + data[4:], "does not begin"),
    "one byte short": (lambda data: data[:-1], "its header promises"),
    "one byte long": (lambda data: data + b"\0", "its header promises"),
    "one window more promised": (lambda data: header(count=COUNT + 1) + data[20:], "promises"),
    "negative context": (lambda data: header(n_ctx=-8) + data[20:], "n_ctx is -8"),
    "nothing counted": (lambda data: header(n_ctx=2) + data[20:], "n_ctx is 2"),
    "no vocabulary": (lambda data: header(n_vocab=0) + data[20:], "n_vocab is 0"),
    "no windows": (lambda data: header(count=0) + data[20:], "n_chunk is 0"),
    "sizes whose product overflows": (
        lambda data: header(1 << 30, 1 << 30, 1 << 30) + data[20:],
        "n_ctx is 1073741824",
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_file_is_refused_when_it_is_opened(written: Path, name: str) -> None:
    change, problem = MALFORMED[name]
    written.write_bytes(change(written.read_bytes()))

    with pytest.raises(SourceError, match=problem) as caught:
        open_logits(written)

    assert str(written) in caught.value.message
    assert "--save-logits" in caught.value.hint


@pytest.mark.parametrize("token", [-1, VOCABULARY, 2**31 - 1])
def test_a_token_beyond_the_vocabulary_is_refused(written: Path, token: int) -> None:
    data = bytearray(written.read_bytes())
    data[20 + 4 * N_CTX : 24 + 4 * N_CTX] = struct.pack("<i", token)
    written.write_bytes(data)

    with open_logits(written) as file, pytest.raises(SourceError, match="window 1 has a token"):
        file.tokens(1)


@pytest.mark.parametrize(
    ("scale", "least"),
    [(np.nan, -3), (np.inf, -3), (-1e-6, -3), (1.0, -3), (1e-4, np.nan), (1e-4, -np.inf), (0, 1)],
)
def test_a_record_that_no_distribution_has_is_refused(
    written: Path, scale: float, least: float
) -> None:
    data = bytearray(written.read_bytes())
    data[-RECORD : -RECORD + 8] = struct.pack("<ff", scale, least)
    written.write_bytes(data)

    with open_logits(written) as file, pytest.raises(SourceError, match="window 2 has a log-prob"):
        file.records(2, slice(0, 3))


def zeros(path: Path, n_ctx: int, n_vocab: int, count: int) -> Path:
    """A file with holes for all but its header: each record a certainty."""
    with path.open("wb") as file:
        file.write(header(n_ctx, n_vocab, count))
        file.truncate(20 + count * (4 * n_ctx + counted(n_ctx) * (8 + 2 * n_vocab)))
    return path


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = zeros(tmp_path / "shrinking.kld", 8, 100_000, 2)

    with open_logits(path) as file:
        os.truncate(path, path.stat().st_size - 3)
        with pytest.raises(SourceError, match="cut while it was read"):
            file.records(1, slice(0, 3))


def test_a_sparse_file_of_a_terabyte_takes_no_memory_to_look_at(tmp_path: Path) -> None:
    n_vocab = 1 << 20
    count = (1 << 40) // (511 * (8 + 2 * n_vocab))
    path = zeros(tmp_path / "sparse.kld", 1024, n_vocab, count)

    with open_logits(path) as found:
        assert found.count == count
        assert found.records(count - 1, slice(510, 511))["scale"] == 0


def test_what_is_no_file_is_refused_and_a_pipe_waited_for_by_nobody(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    for path in (pipe, tmp_path, tmp_path / "absent"):
        with pytest.raises(UsageError, match="no such file"):
            open_logits(path)


def test_a_file_is_known_by_its_first_bytes(written: Path, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")

    assert looks_like_logits(written)
    assert not looks_like_logits(tmp_path / "model.gguf")
    assert not looks_like_logits(tmp_path / "absent")


def test_a_disk_that_is_too_small_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=100))
    sink = io.BytesIO()
    writer = LogitsWriter(sink, tmp_path / "new.kld", windows())

    with pytest.raises(DiskFullError) as caught:
        writer.add(encode(logits(0)), VOCABULARY)

    assert caught.value.needed_bytes == 20 + COUNT * (4 * N_CTX + 3 * RECORD) - 100
    assert sink.getvalue() == b""


def test_a_disk_that_fills_up_meanwhile_is_a_full_disk(tmp_path: Path) -> None:
    class Filling(io.BytesIO):
        def write(self, data: object, /) -> int:
            if self.tell() > 150:  # behind the tokens and the first window
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)  # type: ignore[arg-type]

    writer = LogitsWriter(Filling(), tmp_path / "new.kld", windows())

    writer.add(encode(logits(0)), VOCABULARY)

    with pytest.raises(DiskFullError, match=r"new\.kld"):
        writer.add(encode(logits(1)), VOCABULARY)


def test_an_open_file_without_a_name_is_read_too(written: Path) -> None:
    with written.open("rb") as file:
        assert LogitsFile(file, "the reference").count == COUNT
