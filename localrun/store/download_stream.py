"""Knows no disk: one file's bytes from an offset on, over an HTTP that is not trusted.

Every answer is held against what was asked: status, range, length, encoding, entity tag
(https://www.rfc-editor.org/rfc/rfc9110#name-range-requests). Redirects are judged one by one; the
token goes to the configured hub and to nobody else.
"""

from __future__ import annotations

import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from localrun.errors import AccessError, DownloadError, VerificationError
from localrun.store.files import ModelFile
from localrun.store.hub_address import Endpoint, tls

if TYPE_CHECKING:
    import httpx2

REDIRECTS_MAX = 5
_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)\Z")
_STRONG = re.compile(r'"([\x21\x23-\x7e]{1,200})"\Z')
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_TRANSIENT = frozenset((408, 425, 429, 500, 502, 503, 504))


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for what. ``attempts`` counts tries in a row that bring no byte."""

    connect_s: float = 15.0
    stall_s: float = 30.0
    attempts: int = 6
    restarts: int = 3
    lock_poll_s: float = 1.0
    sleep: Callable[[float], None] = time.sleep

    def pause(self, failures: int) -> None:
        """Wait longer each time, and not in step with others that failed at the same moment."""
        self.sleep(min(0.5 * 2**failures, 10.0) * random.uniform(0.7, 1.0))  # noqa: S311 jitter


class Interruption(DownloadError):
    """The bytes stopped coming, for a reason that may pass."""


class OutOfDate(DownloadError):
    """What has arrived cannot be continued; from byte 0 it may go."""


class Source:
    """The hub as a place to read files from; safe for several threads. Close it after use."""

    def __init__(self, hub: Endpoint, token: str | None, patience: Patience) -> None:
        import httpx2

        self.stopped = threading.Event()
        self.patience = patience
        self._hub = hub
        self._token = token
        self._open: set[httpx2.Response] = set()
        self._lock = threading.Lock()
        self._client = httpx2.Client(
            verify=tls(),
            follow_redirects=False,
            trust_env=not hub.local,  # no proxy reaches this machine's own port
            timeout=httpx2.Timeout(patience.stall_s, connect=patience.connect_s),
            headers={"Accept-Encoding": "identity", "User-Agent": "localrun"},
        )

    def stop(self) -> None:
        """End every transfer now; a thread that waits for bytes wakes with an ``Interruption``."""
        self.stopped.set()
        with self._lock:
            responses = list(self._open)
        for response in responses:
            stream = response.extensions.get("network_stream")
            raw = stream.get_extra_info("socket") if stream is not None else None
            with suppress(OSError):
                if raw is not None:
                    raw.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._client.close()

    @contextmanager
    def read(
        self, file: ModelFile, offset: int, etag: str | None
    ) -> Iterator[tuple[int, str | None, Iterator[bytes]]]:
        """Ask for ``file`` from ``offset`` on.

        Yields where the bytes really begin (``offset`` or 0), the entity tag, and the bytes.

        Raises:
            OutOfDate: the server's file is not the one that ``offset`` belongs to.
            Interruption: time-outs, dropped connections and a server that is overloaded.
            AccessError, VerificationError, DownloadError: for good.
        """
        headers = {}
        if offset:
            headers["Range"] = f"bytes={offset}-"
            if etag is not None:
                headers["If-Range"] = f'"{etag}"'
        with self.answer(file, headers) as response:
            begin = _judge(file, response, offset, etag)
            yield begin, entity_tag(response), self.chunks(file, response)

    @contextmanager
    def answer(self, file: ModelFile, headers: Mapping[str, str]) -> Iterator[httpx2.Response]:
        """The answer to one GET, redirects followed, its body unread; nothing of it is judged yet.

        Raises:
            Interruption: time-outs and dropped connections, in the ``with`` as well.
            VerificationError, DownloadError: for good.
        """
        with self._translated(file), self._followed(file, headers) as response:
            with self._lock:
                self._open.add(response)
            try:
                if self.stopped.is_set():  # while nobody could end this one's wait
                    raise Interruption(f"{file.name}: stopped")
                yield response
            finally:
                with self._lock:
                    self._open.discard(response)

    def chunks(self, file: ModelFile, response: httpx2.Response) -> Iterator[bytes]:
        """The body as it comes, undecoded, until ``stop``."""
        for chunk in response.iter_raw():
            if self.stopped.is_set():
                raise Interruption(f"{file.name}: stopped")
            yield chunk

    @contextmanager
    def _followed(self, file: ModelFile, headers: Mapping[str, str]) -> Iterator[httpx2.Response]:
        import httpx2

        assert file.url is not None
        url = httpx2.URL(file.url)
        for _ in range(REDIRECTS_MAX + 1):
            try:
                self._hub.check(str(url))
            except DownloadError as error:
                raise DownloadError(f"{file.name}: {error.message}", hint=error.hint) from None
            if self.stopped.is_set():
                raise Interruption(f"{file.name}: stopped")
            trusted = self._hub.sends_token_to(str(url))
            secret = {"Authorization": f"Bearer {self._token}"} if trusted and self._token else {}
            with self._client.stream("GET", url, headers={**headers, **secret}) as response:
                if trusted:
                    _check_linked(file, response)
                if response.status_code not in (301, 302, 303, 307, 308):
                    yield response
                    return
                url = url.join(response.headers.get("Location", ""))
        raise DownloadError(f"{file.name}: more than {REDIRECTS_MAX} redirects")

    @contextmanager
    def _translated(self, file: ModelFile) -> Iterator[None]:
        import httpx2

        try:
            yield
        except httpx2.TimeoutException as error:
            raise Interruption(
                f"{file.name}: nothing arrived for {self.patience.stall_s:g} s"
            ) from error
        except (httpx2.UnsupportedProtocol, httpx2.LocalProtocolError, httpx2.InvalidURL) as error:
            raise DownloadError(f"{file.name}: {error}") from error
        except httpx2.TransportError as error:
            raise Interruption(f"{file.name}: the connection broke: {error}") from error


def _judge(file: ModelFile, response: httpx2.Response, offset: int, etag: str | None) -> int:
    """Where the answer's bytes begin, if it may be used at all."""
    status = response.status_code
    if status == 416 and offset:
        raise OutOfDate(f"{file.name}: the server has no byte {offset}")
    check_status(file, response)
    if status == 200:
        check_length(file, response, file.bytes)
        return 0
    if not offset:
        raise DownloadError(f"{file.name}: the server sends a part where all was asked for")
    check_range(file, response, offset, file.bytes)
    found = entity_tag(response)
    if etag is not None and found is not None and found != etag:
        raise OutOfDate(f"{file.name} changed on the server while it was fetched")
    return offset


def check_status(file: ModelFile, response: httpx2.Response) -> None:
    """Hold that an answer is a file's content, whole (200) or in part (206), as it is on its disk.

    Raises:
        AccessError: gated or private. Interruption: overloaded. DownloadError: anything else.
    """
    status = response.status_code
    if status in (401, 403):
        raise AccessError(f"{file.name}: the hub refuses access ({status})")
    if status in _TRANSIENT:
        raise Interruption(f"{file.name}: the server answers {status}")
    if status not in (200, 206):
        raise DownloadError(f"{file.name}: the server answers {status}")
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding != "identity":
        raise DownloadError(f"{file.name}: sent in encoding {encoding!r}, which was not asked for")


def check_range(file: ModelFile, response: httpx2.Response, offset: int, stop: int) -> None:
    """Hold that a 206 brings bytes ``offset`` up to ``stop`` of a file of the promised size.

    Raises:
        DownloadError: another range, another file's size or another length.
    """
    text = response.headers.get("Content-Range", "")
    found = _RANGE.match(text)
    if found is None or found.groups()[:2] != (str(offset), str(stop - 1)):
        raise DownloadError(f"{file.name}: Content-Range {text[:80]!r} is not what was asked for")
    if found[3] not in ("*", str(file.bytes)):
        raise DownloadError(
            f"{file.name}: the server's file has {found[3]} bytes, the hub promised {file.bytes}"
        )
    check_length(file, response, stop - offset)


def check_length(file: ModelFile, response: httpx2.Response, expected: int) -> None:
    """Raises DownloadError if the answer promises another number of bytes."""
    length = response.headers.get("Content-Length")
    if length is not None and length != str(expected):
        raise DownloadError(
            f"{file.name}: the server sends {length[:20]} bytes where {expected} were expected"
        )


def _check_linked(file: ModelFile, response: httpx2.Response) -> None:
    """The hub itself tells a large file's sha256 on the way to its storage."""
    linked = response.headers.get("X-Linked-Etag", "").strip('"')
    digest = file.digest
    if digest is None or digest.kind != "sha256" or not _SHA256.match(linked):
        return
    if linked != digest.value:
        raise VerificationError(
            f"{file.name}: the hub now serves sha256 {linked}, its listing said {digest.value}"
        )


def entity_tag(response: httpx2.Response) -> str | None:
    """The answer's strong entity tag without its quotes; None without one."""
    found = _STRONG.match(response.headers.get("ETag", ""))
    return found[1] if found else None
