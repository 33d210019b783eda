"""Knows no runner: the file of log-probabilities that llama-perplexity writes and reads.

All numbers are little-endian (``perplexity`` and ``kl_divergence`` in
https://github.com/ggml-org/llama.cpp/blob/master/tools/perplexity/perplexity.cpp):

    "_logits_"   int32 n_ctx   int32 n_vocab   int32 windows
    int32 token [windows * n_ctx]
    for each window, for each counted position: one record of ``scores.record_type``

A file of 141 Llama-3 windows takes 9 GB: neither side ever holds more than the part it works on.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Protocol

import numpy as np

from localrun.errors import SourceError, UsageError
from localrun.evaluate.scores import record_type
from localrun.evaluate.windows import Windows, counted
from localrun.store.disk import disk_errors, require_space

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAGIC: Final = b"_logits_"
_HEADER: Final = struct.Struct("<8siii")
_HINT: Final = "save it again: `localrun evaluate perplexity REF --text FILE --save-logits FILE`"
# No definition of the records goes beyond these; rounding of float32 is allowed for.
_STEEPEST: Final = 16.01 / 65535
_LIKELIEST: Final = 0.01
_SHORTEST: Final = 3
# So that one window's tokens and one record stay small, whatever a header says.
_LARGEST: Final = 1 << 24


class Sink(Protocol):
    """Where bytes go: a file, or one of the store's on its way."""

    def write(self, data: bytes, /) -> object: ...


class LogitsWriter:
    """Writes the log-probabilities of ``windows`` to ``sink``, part by part, in order.

    Raises:
        DiskFullError, LocalrunError: as ``disk_errors``, naming ``place``.
    """

    def __init__(self, sink: Sink, place: Path, windows: Windows) -> None:
        self._sink, self._place, self._windows = sink, place, windows
        self._missing = windows.count * counted(windows.n_ctx)
        self._begun = False

    def add(self, records: NDArray[Any], n_vocab: int) -> None:
        """Append records of ``scores.encode``, all of one vocabulary."""
        if not self._begun:
            self._begin(n_vocab)
        if len(records) > self._missing:
            raise ValueError("more records than the windows have")
        self._missing -= len(records)
        with disk_errors(self._place, records.nbytes):
            self._sink.write(records.tobytes())

    @property
    def whole(self) -> bool:
        """Whether every record has been written."""
        return self._begun and self._missing == 0

    def _begin(self, n_vocab: int) -> None:
        self._begun = True
        windows = self._windows
        size = _bytes(windows.n_ctx, n_vocab, windows.count)
        require_space(self._place, size)
        with disk_errors(self._place, size):
            self._sink.write(_HEADER.pack(MAGIC, windows.n_ctx, n_vocab, windows.count))
            for at in range(windows.count):
                self._sink.write(windows.tokens(at).astype("<i4").tobytes())


class LogitsFile:
    """A file of log-probabilities, read part by part; also the ``Windows`` it was made of.

    Raises:
        SourceError: the file is no such file, is not as long as it says, or holds impossible
            values: from the constructor and from both readers.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self.name = file, name
        size = os.fstat(file.fileno()).st_size
        file.seek(0)
        head = file.read(_HEADER.size)
        if len(head) < _HEADER.size or not head.startswith(MAGIC):
            raise self._refused("it does not begin as a file of log-probabilities does")
        _, self.n_ctx, self.n_vocab, self.count = _HEADER.unpack(head)
        self._check("n_ctx", self.n_ctx, _SHORTEST)
        self._check("n_vocab", self.n_vocab, 1)
        self._check("n_chunk", self.count, 1)
        promised = _bytes(self.n_ctx, self.n_vocab, self.count)
        if size != promised:
            raise self._refused(f"it has {size} bytes, its header promises {promised}")
        self._record = record_type(self.n_vocab)

    def tokens(self, at: int) -> NDArray[np.int32]:
        """The tokens of window ``at``, ``[n_ctx]``."""
        place = _HEADER.size + 4 * self.n_ctx * at
        found = np.frombuffer(self._read(place, 4 * self.n_ctx), "<i4").astype(np.int32)
        if found.min() < 0 or found.max() >= self.n_vocab:
            raise self._refused(f"window {at} has a token beyond its {self.n_vocab}")
        return found

    def records(self, at: int, part: slice) -> NDArray[Any]:
        """Records ``part`` of window ``at``."""
        size = self._record.itemsize
        place = _HEADER.size + 4 * self.n_ctx * self.count
        place += size * (at * counted(self.n_ctx) + part.start)
        found = np.frombuffer(self._read(place, size * (part.stop - part.start)), self._record)
        scale, least = found["scale"].astype(np.float64), found["least"].astype(np.float64)
        # Written so that NaN is refused too.
        fine = (scale >= 0) & (scale <= _STEEPEST) & (least + scale * 65535 <= _LIKELIEST)
        if not (fine & (least > -np.inf)).all():
            raise self._refused(f"window {at} has a log-probability that none can be")
        return found

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> LogitsFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _read(self, place: int, size: int) -> bytes:
        self._file.seek(place)
        found = self._file.read(size)
        if len(found) != size:
            raise self._refused("it was cut while it was read")
        return found

    def _check(self, field: str, value: int, least: int) -> None:
        if not least <= value <= _LARGEST:
            raise self._refused(f"{field} is {value}, not {least} to {_LARGEST}")

    def _refused(self, problem: str) -> SourceError:
        return SourceError(f"{self.name}: {problem}", hint=_HINT)


def open_logits(path: Path) -> LogitsFile:
    """Open a file of log-probabilities.

    Raises:
        UsageError: it cannot be opened. SourceError: as ``LogitsFile``.
    """
    if not path.is_file():  # opening a pipe would wait for a writer
        raise UsageError(f"{path}: no such file of log-probabilities")
    try:
        file = path.open("rb")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    try:
        return LogitsFile(file, str(path))
    except BaseException:
        file.close()
        raise


def looks_like_logits(path: Path) -> bool:
    """Whether a file begins as one of log-probabilities does."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def _bytes(n_ctx: int, n_vocab: int, windows: int) -> int:
    record = 8 + 2 * (2 * ((n_vocab + 1) // 2))
    return _HEADER.size + windows * (4 * n_ctx + counted(n_ctx) * record)
