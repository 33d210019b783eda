"""Knows no frame: bytes from a socket, for a thread that waits for nothing else."""

from __future__ import annotations

import io
import select
import socket
from typing import Any, BinaryIO


class _Polled(io.RawIOBase):
    """A thread that waits in ``recv`` is woken each time the other side has read what was sent to
    it, for each token that is; one that waits in ``poll`` is not."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._ready = select.poll()
        self._ready.register(channel, select.POLLIN)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._ready.poll()
        return self._channel.recv_into(buffer)


def inbox(channel: socket.socket) -> BinaryIO:
    """What the other side sends, to be read by one thread."""
    return io.BufferedReader(_Polled(channel))
