"""What a thread that waits for the other side's bytes is given, and what does not wake it."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from localrun.engine.process.inbox import inbox


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    here, there = socket.socketpair()
    with here, there:
        yield here, there


def test_bytes_come_as_they_were_sent_until_the_other_side_closes(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    here, there = ends
    sent = bytes(range(256)) * 4096
    sender = threading.Thread(target=lambda: (there.sendall(sent), there.close()))
    sender.start()
    read = inbox(here)

    assert read.read(5) == sent[:5]
    assert read.read(len(sent)) == sent[5:]
    assert read.read(1) == b""
    sender.join()


@pytest.mark.skipif(sys.platform != "linux", reason="counts switches as Linux tells them")
def test_who_waits_is_not_woken_when_what_was_sent_is_read(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    here, there = ends
    waits = threading.Event()
    thread = threading.Thread(target=lambda: (waits.set(), inbox(here).read(1)))
    thread.start()
    waits.wait()
    status = Path(f"/proc/self/task/{thread.native_id}/status")

    def switches() -> int:
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("voluntary"))
        return int(line.split()[1])

    before = switches()
    for _ in range(2000):
        here.sendall(b"token")
        assert there.recv(5) == b"token"
    woken = switches() - before
    there.sendall(b"!")
    thread.join()

    assert woken < 20
