"""Knows no template: the limits of a rendering and the frames between the two processes.

Four bytes of length, big-endian, then JSON in UTF-8.

    ->  {"template": str, "variables": {...}}
    <-  {"ready": true}                                 once, when the limits stand
    <-  {"text": str}                                   rendered
    <-  {"error": kind, "message": str}                 kind: raised | limit | failed
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import IO, Any

SOURCE_BYTES_MAX = 256 * 1024
OUTPUT_BYTES_MAX = 8 * 1024 * 1024
ADDRESS_SPACE_BYTES = 256 * 1024 * 1024
DEADLINE_S = 1.0
CPU_SECONDS = 2
# No conversation that renders within OUTPUT_BYTES_MAX is longer, quoting included.
REQUEST_BYTES_MAX = 32 * 1024 * 1024
FRAME_BYTES_MAX = 64 * 1024 * 1024
MESSAGE_MAX = 2000


def read_frame(reader: IO[bytes]) -> bytes | None:
    """One frame's body; None where the stream ended or a length is beyond ``FRAME_BYTES_MAX``."""
    head = reader.read(4)
    if len(head) < 4:
        return None
    length = int.from_bytes(head, "big")
    if length > FRAME_BYTES_MAX:
        return None
    body = reader.read(length)
    return body if len(body) == length else None


def encode(value: Mapping[str, Any], default: Callable[[Any], Any] | None = None) -> bytes:
    """A frame's body. Lone surrogates, which no tokenizer could read, become question marks."""
    return json.dumps(value, ensure_ascii=False, default=default).encode("utf-8", "replace")


def write_frame(writer: IO[bytes], body: bytes) -> None:
    """Raises BrokenPipeError where the other process has ended."""
    writer.write(len(body).to_bytes(4, "big") + body)
    writer.flush()
