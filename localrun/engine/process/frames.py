"""Knows neither sockets nor processes: what crosses the engine's process boundary, as bytes.

A frame is a 4-byte big-endian length and that many bytes of UTF-8 JSON holding one object with a
``type``. Nothing is pickled, and no class outside the tables here can be named by a frame.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from typing import Any, BinaryIO

from localrun import errors
from localrun.errors import EngineError, LocalrunError

Frame = dict[str, Any]

# A prompt of a million tokens takes 5 MB; the largest request body (32 MiB) fits as one text.
MAX_FRAME_BYTES = 64 * 1024 * 1024
PREFIX = struct.Struct("!I")

# What an error carries beside message and hint.
_ERROR_FIELDS = {
    "RequestError": ("field",),
    "ContextLengthError": ("prompt_tokens", "n_ctx"),
    "ModelNotFoundError": ("nearest",),
    "HeaderError": ("field", "offset", "problem", "file"),
    "DoesNotFitError": ("shortfall",),
    "DiskFullError": ("place", "needed_bytes"),
    "DiskReadError": ("file", "offset", "problem", "tensor"),
    "OutOfMemoryError": ("tier", "needed_bytes", "held_bytes"),
}

# Made once: json.dumps would make one for each frame, and json.loads first guess the encoding.
_encode = json.JSONEncoder(ensure_ascii=True, separators=(",", ":")).encode
_decode = json.JSONDecoder().raw_decode
_MISMATCH = "the engine's process is damaged or of another version: start localrun again"


def pack(frame: Frame) -> bytes:
    """Bytes of one frame.

    Raises:
        EngineError: it would exceed ``MAX_FRAME_BYTES``.
    """
    body = _encode(frame).encode()
    if len(body) > MAX_FRAME_BYTES:
        raise EngineError(
            f"a message of {len(body)} bytes to or from the engine: the limit is {MAX_FRAME_BYTES}",
            hint="send a shorter text",
        )
    return PREFIX.pack(len(body)) + body


def body_size(prefix: bytes | bytearray) -> int:
    """How many bytes follow ``prefix``.

    Raises:
        EngineError: more than ``MAX_FRAME_BYTES``; nothing should be read or allocated for it.
    """
    size: int = PREFIX.unpack(prefix)[0]
    if size > MAX_FRAME_BYTES:
        raise EngineError(
            f"a frame announces {size} bytes: the limit is {MAX_FRAME_BYTES}", hint=_MISMATCH
        )
    return size


def unpack(body: bytes | bytearray) -> Frame:
    """The object in a frame's body.

    Raises:
        EngineError: not JSON, or not an object with a ``type``.
    """
    try:
        text = str(body, "utf-8")
        frame, end = _decode(text)
    except (ValueError, RecursionError) as error:
        raise EngineError(
            f"a frame of {len(body)} bytes is not JSON: {error}", hint=_MISMATCH
        ) from error
    if end < len(text):
        raise EngineError(f"a frame of {len(body)} bytes goes on after its JSON", hint=_MISMATCH)
    if not isinstance(frame, dict) or not isinstance(frame.get("type"), str):
        raise EngineError("a frame is not an object with a type", hint=_MISMATCH)
    return frame


def read_frame(stream: BinaryIO) -> Frame | None:
    """The next frame, blocking; None at the end of the stream.

    Raises:
        EngineError: the frame is too large, cut short or malformed.
    """
    prefix = stream.read(PREFIX.size)
    if not prefix:
        return None
    if len(prefix) < PREFIX.size:
        raise EngineError("the stream ends inside a frame", hint=_MISMATCH)
    size = body_size(prefix)
    body = stream.read(size)
    if len(body) < size:
        raise EngineError("the stream ends inside a frame", hint=_MISMATCH)
    return unpack(body)


class FrameBuffer:
    """Frames out of bytes that come in pieces of any size."""

    def __init__(self) -> None:
        self._begun = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that are whole now.

        Raises:
            EngineError: a frame is too large or malformed; nothing after it can be read.
        """
        whole: bytes | bytearray = data
        if self._begun:
            self._begun += data
            whole = self._begun
        frames, at = [], 0
        while len(whole) - at >= PREFIX.size:
            start = at + PREFIX.size
            end = start + body_size(whole[at:start])
            if end > len(whole):
                break
            frames.append(unpack(whole[start:end]))
            at = end
        if whole is self._begun:
            del self._begun[:at]
        elif at < len(data):
            self._begun += data[at:]
        return frames


def error_fields(error: LocalrunError) -> Frame:
    """An error by the nearest class of the tree, with its message, hint and own fields."""
    kind = next(cls for cls in type(error).__mro__ if cls.__name__ in _ERROR_CLASSES)
    own = {name: getattr(error, name) for name in _fields_of(kind)}
    return {"class": kind.__name__, "message": error.message, "hint": error.hint, "fields": own}


def error_of(fields: Frame) -> LocalrunError:
    """The error again. A class this program does not know becomes an EngineError."""
    kind = _ERROR_CLASSES.get(str(fields.get("class")), EngineError)
    # The classes build their messages from different arguments: the finished text is put back.
    error = kind.__new__(kind)
    LocalrunError.__init__(error, str(fields.get("message")), hint=str(fields.get("hint")))
    own = fields.get("fields", {})
    for name in _fields_of(kind):
        value = own.get(name)
        setattr(error, name, tuple(value) if isinstance(value, list) else value)
    return error


def _fields_of(kind: type[LocalrunError]) -> list[str]:
    return [name for base in kind.__mro__ for name in _ERROR_FIELDS.get(base.__name__, ())]


def _tree(root: type[LocalrunError]) -> Iterable[type[LocalrunError]]:
    yield root
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from _tree(child)


_ERROR_CLASSES = {cls.__name__: cls for cls in _tree(LocalrunError)}
