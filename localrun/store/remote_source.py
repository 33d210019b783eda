"""Knows no format: the first bytes of a file on the hub, fetched by range as a reader wants them.

Every answer must be exactly the range that was asked for, of a file of the listed size
(https://www.rfc-editor.org/rfc/rfc9110#name-range-requests). A server that sends all instead is
refused before its body is read. Addresses, redirects and the token are the downloader's business.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from localrun.errors import DownloadError, HeaderError, VerificationError
from localrun.store import download_stream as stream
from localrun.store.files import ModelFile
from localrun.store.hub_cache import hasher

if TYPE_CHECKING:
    import httpx2

# Of one model. The largest headers known take 16 MiB in all, those of a vocabulary 20.
BYTES_MAX = 128 << 20


@dataclass
class Tally:
    """What a model's files have cost so far: bytes of bodies as they arrived, and requests."""

    bytes: int = 0
    requests: int = 0
    cached: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def asks(self, file: ModelFile, count: int) -> None:
        """Count a request for ``count`` bytes. Raises HeaderError where they would be too many."""
        with self._lock:
            if self.bytes + count > BYTES_MAX:
                problem = f"{count} bytes more than the {self.bytes} read of the model are too many"
                raise HeaderError("header", 0, problem, file=file.name)
            self.requests += 1

    def received(self, count: int) -> None:
        with self._lock:
            self.bytes += count

    def found(self) -> None:
        """Count a file that the cache answered for."""
        with self._lock:
            self.cached += 1


class RemoteFile:
    """A source whose bytes come from the hub: a window from byte 0, which grows as it is read.

    It grows to the next of ``steps``, in bytes from the file's start; behind the last one exactly
    as far as is read. A ``whole`` file is small, asked for in one piece and without a range.
    ``read`` raises what a fetch raises:

    Raises:
        AccessError, VerificationError, DownloadError: naming the file.
        HeaderError: a read behind the file's end, or more bytes than any model's headers take.
    """

    def __init__(
        self,
        file: ModelFile,
        hub: stream.Source,
        tally: Tally,
        steps: Sequence[int] = (),
        *,
        whole: bool = False,
    ) -> None:
        self._file = file
        self._hub = hub
        self._tally = tally
        self._steps = (file.bytes,) if whole else steps
        self._whole = whole
        self._window = bytearray()
        self._etag: str | None = None

    @property
    def size(self) -> int:
        return self._file.bytes

    def read(self, offset: int, length: int) -> bytes:
        stop = offset + length
        if stop > self.size:
            there = self.size - offset
            raise HeaderError("file", offset, f"{length} bytes expected, {there} there")
        if stop > len(self._window):
            # A step below what is read would cost a request and save nothing.
            goal = next((step for step in self._steps if step >= stop), stop)
            self._fetch(min(goal, self.size))
        return bytes(self._window[offset:stop])

    def _fetch(self, stop: int) -> None:
        failures = 0
        while True:
            try:
                self._window += self._once(len(self._window), stop)
                return
            except stream.Interruption:
                failures += 1
                if self._hub.stopped.is_set() or failures >= self._hub.patience.attempts:
                    raise
                self._hub.patience.pause(failures)

    def _once(self, begin: int, stop: int) -> bytes:
        name, count = self._file.name, stop - begin
        self._tally.asks(self._file, count)
        headers = {} if self._whole else {"Range": f"bytes={begin}-{stop - 1}"}
        body = bytearray()
        with self._hub.answer(self._file, headers) as response:
            self._judge(response, begin, stop)
            for chunk in self._hub.chunks(self._file, response):
                self._tally.received(len(chunk))
                body += chunk
                if len(body) > count:
                    raise VerificationError(f"{name}: more than the {count} promised bytes arrived")
        if len(body) < count:
            raise stream.Interruption(f"{name}: {len(body)} of {count} promised bytes arrived")
        return bytes(body)

    def _judge(self, response: httpx2.Response, begin: int, stop: int) -> None:
        file = self._file
        stream.check_status(file, response)
        in_part = response.status_code == 206
        if self._whole and in_part:
            raise DownloadError(f"{file.name}: the server sends a part where all was asked for")
        if self._whole:
            stream.check_length(file, response, stop)
        elif in_part:
            stream.check_range(file, response, begin, stop)
        else:
            raise DownloadError(
                f"{file.name}: the server sends the whole file where {stop - begin} bytes of it "
                "were asked for; headers are read by HTTP range requests only",
                hint="ask a server that honours Range, or `localrun pull` the model",
            )
        etag = stream.entity_tag(response)
        if None not in (etag, self._etag) and etag != self._etag:
            # Two ranges of two files would make a header that nobody wrote.
            raise VerificationError(
                f"{file.name} changed on the server while its header was read",
                hint="run the same command again",
            )
        self._etag = self._etag or etag


def fetch_whole(file: ModelFile, hub: stream.Source, tally: Tally) -> bytes:
    """All of a small file, compared with its digest.

    Raises:
        AccessError, VerificationError, DownloadError: naming the file.
    """
    data = RemoteFile(file, hub, tally, whole=True).read(0, file.bytes)
    if file.digest is not None:
        found = hasher(file.digest.kind, file.bytes)
        found.update(data)
        if found.hexdigest() != file.digest.value:
            raise VerificationError(
                f"{file.name}: {file.digest.kind} {found.hexdigest()} arrived, "
                f"{file.digest.value} was promised"
            )
    return data
