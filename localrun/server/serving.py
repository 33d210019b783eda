"""Knows no route: the listening socket, and the server that runs an application on it.

The socket is opened first and on its own: what is wrong with a host or port is said before any
model is touched.
"""

from __future__ import annotations

import contextlib
import ipaddress
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from types import FrameType

import uvicorn

from localrun.errors import ServerError, UsageError
from localrun.server.app import ServedApp
from localrun.server.guards import MAX_HEADER_BYTES
from localrun.server.log import Form, log_to
from localrun.server.protocol import DeadlineProtocol

DEFAULT_HOST = "127.0.0.1"
# Nobody else's: not among the ports that other runtimes and their clients use.
DEFAULT_PORT = 7411
# Where clients look that cannot be told another port: Ollama's, and llama.vim's.
COMPAT_PORTS = (11434, 8012)
IDLE_S = 5
# How long streams may take to end once they were told.
GOODBYE_S = 5
INTERRUPTED = 130


def parse_port(text: str) -> int:
    """``auto`` is 0: any free port.

    Raises:
        UsageError: neither ``auto`` nor 0 to 65535.
    """
    if text == "auto":
        return 0
    if text.isascii() and text.isdigit() and int(text) <= 65535:
        return int(text)
    raise UsageError(f"--port {text!r} is neither a number up to 65535 nor auto")


def listen(host: str, port: int, *, api_key: str | None) -> socket.socket:
    """Open the listening socket. Without a key it can only be one that this machine alone reaches.

    Raises:
        UsageError: not a host of this machine; or one that others reach, without an API key.
        ServerError: the port is in use or not allowed.
    """
    if not host:
        raise UsageError("--host is empty", hint=f"leave it away to serve on {DEFAULT_HOST}")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        raise UsageError(f"--host {host!r} is not an address of this machine: {error}") from error
    family, _, _, _, address = found[0]
    if not api_key and not _is_loopback(str(address[0])):
        raise UsageError(
            f"--host {host} can be reached from other machines",
            hint="set --api-key (or LOCALRUN_API_KEY), or leave --host away",
        )
    # asyncio sends small writes at once only where the protocol is named; else every answer of two
    # writes, and every streamed token, waits for the client's delayed acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        # A server that just ended must not block its own port; a running one still does.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise ServerError(f"port {port} on {host}: {error.strerror}") from error
    listener.setblocking(False)
    return listener


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def listen_compatibly(
    taken: int, *, api_key: str | None, ports: Sequence[int] = COMPAT_PORTS
) -> tuple[list[socket.socket], list[int]]:
    """Sockets on 127.0.0.1 for ``ports`` but ``taken``, and the ports that others use."""
    listeners, refused = [], []
    for port in ports:
        if port == taken:
            continue
        try:
            listeners.append(listen(DEFAULT_HOST, port, api_key=api_key))
        except ServerError:
            refused.append(port)
    return listeners, refused


async def serve(app: ServedApp, *listeners: socket.socket, log: Form | None = "text") -> int:
    """Serve on every listener until SIGINT or SIGTERM; the exit code that says which.

    Streams under way end with an event, then the app's models are closed. A second SIGINT does not
    wait for clients. Requests are logged to stderr in lines of the form ``log``, None: nowhere.
    """
    if log is not None:
        log_to(form=log)
    server = StoppingServer(server_config(app), app)
    with contextlib.ExitStack() as stack:
        for listener in listeners:
            stack.enter_context(listener)
        await server.serve(sockets=list(listeners))
    return INTERRUPTED if server.ended_by == signal.SIGINT else 0


def server_config(app: ServedApp) -> uvicorn.Config:
    """uvicorn as we run it: our protocol, no WebSocket, no trust in forwarding headers.

    Its log of requests is off: it has raw paths and query strings in it.
    """
    return uvicorn.Config(
        app,
        http=DeadlineProtocol,
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=IDLE_S,
        timeout_graceful_shutdown=GOODBYE_S,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
    )


class StoppingServer(uvicorn.Server):
    """Tells the app that it stops, and leaves the exit code to its caller."""

    def __init__(self, config: uvicorn.Config, app: ServedApp) -> None:
        super().__init__(config)
        self._app = app
        self.ended_by: int | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn would raise the signal again at the end, which kills the process.
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {
            number: signal.signal(number, self.handle_exit)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.ended_by = self.ended_by or sig
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._app.stopping.set()
        await super().shutdown(sockets)
