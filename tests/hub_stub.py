"""A hub on loopback that speaks enough for huggingface_hub's own client, and lies on request.

with HubStub() as hub:
    commit = hub.add("org/repo", {"model.gguf": b"..."})
    hub.fault("model.gguf", Fault("cut", at=1000))
    settings = hub.settings(tmp_path)
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import threading
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from localrun.config import Settings, settings

LARGE = (".gguf", ".safetensors", ".bin", ".pt", ".model")

Kind = Literal[
    "cut",  # `at` bytes of the body, then the connection ends
    "hold",  # `at` bytes of the body, then nothing until the client goes away
    "stall",  # headers, then nothing until the client goes away
    "good",  # nothing wrong: for a fault that comes after it
    "full",  # 200 and everything, whatever range was asked for
    "bare",  # the range, and no Content-Range
    "range",  # a Content-Range that was not asked for
    "total",  # a Content-Range with another total
    "etag",  # another ETag than before, and the range all the same
    "gzip",
    "empty",  # 200 and no bytes
    "extra",  # more bytes than promised, without a length
    "short",  # fewer bytes than promised, without a length
    "wrong",  # as many bytes as promised, one of them wrong
    "length",  # a Content-Length that is not the file's
    "missing",  # 404
    "gated",  # 401, as a gated repository
    "status",  # the status `at`
    "redirect",  # 302 to `to`
]


@dataclass(frozen=True, slots=True)
class Fault:
    """``times`` answers are bad, the next are good; None for every one."""

    kind: Kind
    at: int = 0
    to: str = ""
    times: int | None = 1


@dataclass(frozen=True, slots=True)
class Asked:
    """One request as it arrived. Header names are lower case."""

    method: str
    path: str
    headers: Mapping[str, str]


@dataclass
class _Repo:
    commit: str
    files: dict[str, bytes]
    card: dict[str, object] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)
    gated: bool = False
    siblings: list[dict[str, object]] | None = None
    sha: str | None = None


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def git_blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def noise(size: int, seed: str = "noise") -> bytes:
    """Bytes that do not compress and are the same every time."""
    return hashlib.shake_256(seed.encode()).digest(size)


@dataclass(frozen=True, slots=True)
class _Part:
    """The part of a file that an answer brings; ``partial`` where a range was asked for."""

    offset: int
    stop: int
    size: int
    partial: bool

    @property
    def status(self) -> int:
        return 206 if self.partial else 200

    @property
    def span(self) -> dict[str, str]:
        if not self.partial:
            return {}
        return {"Content-Range": f"bytes {self.offset}-{self.stop - 1}/{self.size}"}

    def of(self, data: bytes) -> bytes:
        return data[self.offset : self.stop]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64  # a client with many connections at once must not wait for a retry


class HubStub:
    """Serves repositories from memory on 127.0.0.1 until the ``with`` ends."""

    def __init__(self) -> None:
        self.repos: dict[str, _Repo] = {}
        self.asked: list[Asked] = []
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        self.meetings: dict[str, threading.Barrier] = {}
        self.sent: list[tuple[str, int]] = []
        self._server = _Server(("127.0.0.1", 0), _Answer)
        self._server.hub = self  # type: ignore[attr-defined]  # the handler's way back to us
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def add(
        self,
        repo_id: str,
        files: Mapping[str, bytes],
        *,
        licence: str | None = None,
        gated: bool = False,
        tags: list[str] | None = None,
    ) -> str:
        """Publish a commit on main, in place of the repository's last one; returns the commit."""
        listing = sorted((name, sha256(data)) for name, data in files.items())
        commit = hashlib.sha1(repr((repo_id, listing)).encode()).hexdigest()
        card: dict[str, object] = {"license": licence} if licence else {}
        self.repos[repo_id] = _Repo(commit, dict(files), card, tags or [], gated)
        return commit

    def fault(self, file: str, *faults: Fault) -> None:
        """Answer the next requests for the file's content so, one fault after the other."""
        self.faults[file] = list(faults)

    def meet(self, *files: str) -> None:
        """Answer none of the files' requests before all of them are being asked for at once."""
        barrier = threading.Barrier(len(files), timeout=20)
        self.meetings = dict.fromkeys(files, barrier)

    def settings(self, home: Path, **changes: object) -> Settings:
        """Settings of an empty home that use this hub."""
        environment = {
            "LOCALRUN_HOME": str(home / "home"),
            "HF_HOME": str(home / "hf"),
            "HF_ENDPOINT": self.endpoint,
        }
        return settings(environment | {name: str(value) for name, value in changes.items()})

    def gets(self, file: str) -> list[Asked]:
        """The requests for a file's content so far."""
        return [one for one in self.asked if one.method == "GET" and one.path.endswith("/" + file)]

    def __enter__(self) -> HubStub:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def next_fault(self, file: str) -> Fault | None:
        queue = self.faults.get(file)
        if not queue:
            return None
        first = queue[0]
        if first.times is not None:
            if first.times <= 1:
                queue.pop(0)
            else:
                queue[0] = Fault(first.kind, first.at, first.to, first.times - 1)
        return first


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60

    def log_message(self, format: str, *args: object) -> None:
        return None

    def handle(self) -> None:
        try:
            super().handle()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def do_GET(self) -> None:
        self._route(body=True)

    def do_HEAD(self) -> None:
        self._route(body=False)

    @property
    def hub(self) -> HubStub:
        return self.server.hub  # type: ignore[attr-defined,no-any-return]  # set by HubStub

    def _route(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.hub.asked.append(Asked(self.command, path, headers))
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+?)(?:/revision/(.+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        try:
            if api:
                self._info(api[1], api[2] or "main", body)
            elif file:
                self._file(file[1], file[2], file[3], body)
            else:
                self._error(404, "", body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _known(self, repo_id: str, revision: str, body: bool) -> _Repo | None:
        repo = self.hub.repos.get(repo_id)
        if repo is None:
            self._error(404, "RepoNotFound", body)
        elif revision not in ("main", repo.commit):
            self._error(404, "RevisionNotFound", body)
        elif repo.gated and "authorization" not in {name.lower() for name in self.headers}:
            self._error(401, "GatedRepo", body)
        else:
            return repo
        return None

    def _info(self, repo_id: str, revision: str, body: bool) -> None:
        fault = self.hub.next_fault("api")
        if fault is not None:
            self._misbehave(fault, body)
            return
        repo = self._known(repo_id, revision, body)
        if repo is not None:
            document = {
                "id": repo_id,
                "sha": repo.sha or repo.commit,
                "siblings": repo.siblings
                or [_sibling(name, data) for name, data in repo.files.items()],
                "cardData": repo.card,
                "tags": repo.tags,
            }
            self._send(200, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def _misbehave(self, fault: Fault, body: bool) -> None:
        if fault.kind == "redirect":
            self._send(302, b"", {"Location": fault.to})
        elif fault.kind == "gated":
            self._error(401, "GatedRepo", body)
        elif fault.kind == "wrong":
            self._send(200, b"{not json", {"Content-Type": "application/json"})
        elif fault.kind in ("stall", "hold"):
            self._wait_for_client()
        elif fault.kind == "cut":
            self.close_connection = True
        else:
            self._error(fault.at or 404, "", body)

    def _file(self, repo_id: str, revision: str, name: str, body: bool) -> None:
        repo = self._known(repo_id, revision, body)
        if repo is None:
            return
        data = repo.files.get(name)
        if data is None:
            self._error(404, "EntryNotFound", body)
            return
        if name in self.hub.meetings:
            self.hub.meetings[name].wait()
        etag = _etag(name, data)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": repo.commit, "Accept-Ranges": "bytes"}
        if name.endswith(LARGE):
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(data))}
        fault = self.hub.next_fault(name) if body else None
        if fault is None:
            self._content(data, headers, body)
        else:
            self._faulty(fault, data, headers)

    def _asked_part(self, headers: Mapping[str, str], size: int) -> _Part:
        """What the Range header asks for: ``bytes=A-`` or ``bytes=A-B``; without one, all."""
        found = re.fullmatch(r"bytes=([0-9]+)-([0-9]*)", self.headers.get("Range", ""))
        if not found or self.headers.get("If-Range") not in (None, headers["ETag"]):
            return _Part(0, size, size, False)
        stop = int(found[2]) + 1 if found[2] else size
        return _Part(int(found[1]), min(stop, size), size, True)

    def _content(self, data: bytes, headers: dict[str, str], body: bool = True) -> None:
        part = self._asked_part(headers, len(data))
        if part.offset >= len(data) > 0:
            self._send(416, b"", headers | {"Content-Range": f"bytes */{len(data)}"})
            return
        self._send(part.status, part.of(data), headers | part.span, body=body)

    def _faulty(self, fault: Fault, data: bytes, headers: dict[str, str]) -> None:
        part = self._asked_part(headers, len(data))
        asked, spanned = part.of(data), headers | part.span
        match fault.kind:
            case "good":
                self._content(data, headers)
            case "redirect":
                self._send(302, b"", headers | {"Location": fault.to})
            case "gated":
                self._error(401, "GatedRepo", True)
            case "missing":
                self._error(404, "EntryNotFound", True)
            case "status":
                self._error(fault.at, "", True)
            case "full":
                self._send(200, data, headers)
            case "bare":
                self._send(206, asked, headers)
            case "gzip":
                packed = gzip.compress(asked)
                self._send(part.status, packed, spanned | {"Content-Encoding": "gzip"})
            case "empty":
                self._send(part.status, b"", spanned)
            case "range":
                later = replace(part, offset=part.offset + 1, partial=True)
                self._send(206, later.of(data), headers | later.span)
            case "total":
                larger = replace(part, size=10 * part.size + 9, partial=True)
                self._send(206, asked, headers | larger.span)
            case "etag":
                self._send(part.status, asked, spanned | {"ETag": '"changed"'})
            case "wrong":
                self._send(part.status, bytes([asked[0] ^ 1]) + asked[1:], spanned)
            case "length":
                self._send(part.status, asked[:-1], spanned)
            case "extra" | "short":
                content = asked + b"more" if fault.kind == "extra" else asked[:-4]
                self._send(part.status, content, spanned, length=None)
            case "cut" | "hold" | "stall":
                self._interrupted(fault, data, part, spanned)

    def _interrupted(self, fault: Fault, data: bytes, part: _Part, headers: dict[str, str]) -> None:
        until = part.offset if fault.kind == "stall" else max(fault.at, part.offset)
        content = data[part.offset : min(until, part.stop)]
        self._send(part.status, content, headers, length=part.stop - part.offset)
        if fault.kind != "cut":
            self._wait_for_client()
        self.close_connection = True

    def _wait_for_client(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        try:
            self.connection.recv(1)
        except OSError:
            return

    def _send(
        self,
        status: int,
        content: bytes,
        headers: Mapping[str, str],
        *,
        length: int | None = -1,
        body: bool = True,
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if length is None:
            self.send_header("Connection", "close")
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(len(content) if length == -1 else length))
        self.end_headers()
        if body and self.command == "GET":
            self.hub.sent.append((self.path, len(content)))
            self.wfile.write(content)

    def _error(self, status: int, code: str, body: bool) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": code} if code else {}
        self._send(status, b'{"error":"no"}', headers, body=body)


def _etag(name: str, data: bytes) -> str:
    return sha256(data) if name.endswith(LARGE) else git_blob(data)


def _sibling(name: str, data: bytes) -> dict[str, object]:
    entry: dict[str, object] = {"rfilename": name, "size": len(data), "blobId": git_blob(data)}
    if name.endswith(LARGE):
        entry["lfs"] = {"sha256": sha256(data), "size": len(data), "pointerSize": 134}
    return entry
