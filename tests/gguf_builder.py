"""Builds GGUF and safetensors files byte by byte, well-formed or not."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from localrun.formats.types import GGUF_TYPES, SAFETENSORS_TYPES

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
_CODES = "BbHhIif?saQqd"
TYPE_IDS = {kind.name: number for number, kind in GGUF_TYPES.items()}


class As:
    """A value with its GGUF type spelled out: ``As(U16, 3)``, ``As(F32, [0.5])`` for an array."""

    def __init__(self, kind: int, value: Any) -> None:
        self.kind = kind
        self.value = value


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def _guess(value: Any) -> int:
    if isinstance(value, bool):
        return BOOL
    if isinstance(value, str | bytes):
        return STRING
    if isinstance(value, float):
        return F32
    return I64 if value < 0 else U32 if value < 2**32 else U64


def _plain(kind: int, value: Any) -> bytes:
    return string(value) if kind == STRING else struct.pack(f"<{_CODES[kind]}", value)


def kv(key: str | bytes, value: Any) -> bytes:
    """One key with its value; lists and tuples become arrays of their first element's type."""
    typed = isinstance(value, As)
    item = value.value if typed else value
    if isinstance(item, list | tuple):
        kind = value.kind if typed else _guess(item[0]) if item else U32
        body = b"".join(_plain(kind, each) for each in item)
        return string(key) + u32(ARRAY) + u32(kind) + u64(len(item)) + body
    kind = value.kind if typed else _guess(item)
    return string(key) + u32(kind) + _plain(kind, item)


def info(name: str | bytes, dims: Iterable[int], kind: int, offset: int) -> bytes:
    """One tensor info as it stands in the file: ``dims`` innermost first."""
    dims = list(dims)
    body = b"".join(map(u64, dims))
    return string(name) + u32(len(dims)) + body + u32(kind) + u64(offset)


def raw_gguf(
    *parts: bytes, n_tensors: int = 0, n_kv: int = 0, version: int = 3, magic: bytes = b"GGUF"
) -> bytes:
    """Magic, version and counts, whatever they claim, and then the parts."""
    return magic + u32(version) + u64(n_tensors) + u64(n_kv) + b"".join(parts)


def padded(data: bytes, alignment: int = 32) -> bytes:
    return data + bytes(-len(data) % alignment)


def gguf_bytes(
    metadata: Mapping[str, Any] | None = None,
    tensors: Sequence[tuple[str, Sequence[int], str]] = (),
    *,
    version: int = 3,
    alignment: int = 32,
    data: Mapping[str, bytes] | None = None,
) -> bytes:
    """A well-formed file. ``tensors`` are (name, shape outermost first, type name).

    A tensor's bytes come from ``data`` or are zero. Set ``general.alignment`` in ``metadata``
    too when ``alignment`` is not 32.
    """
    metadata = metadata or {}
    infos, blobs, offset = b"", b"", 0
    for name, shape, type_name in tensors:
        kind = GGUF_TYPES[TYPE_IDS[type_name]]
        size = math.prod(shape) // kind.block_elements * kind.block_bytes
        infos += info(name, reversed(shape), TYPE_IDS[type_name], offset)
        blobs += padded((data or {}).get(name, bytes(size)), alignment)
        offset += size + -size % alignment
    keys = b"".join(kv(key, value) for key, value in metadata.items())
    head = raw_gguf(keys, infos, n_tensors=len(tensors), n_kv=len(metadata), version=version)
    return padded(head, alignment) + blobs


def llama_metadata(**changes: Any) -> dict[str, Any]:
    """The keys of a small llama; ``changes`` replace by the part after ``llama.``."""
    metadata: dict[str, Any] = {
        "general.architecture": "llama",
        "general.name": "Tiny",
        "general.license": "apache-2.0",
        "llama.block_count": 2,
        "llama.context_length": 128,
        "llama.embedding_length": 64,
        "llama.feed_forward_length": 128,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": ["a", "b", "c", "<|end|>"],
        "tokenizer.chat_template": "{{ messages[0].content }}",
    }
    for key, value in changes.items():
        metadata[f"llama.{key.replace('__', '.')}"] = value
    return metadata


def split_gguf(count: int, tensors_each: int = 1) -> list[bytes]:
    """The parts of one model, each with its own tensors ``part{i}.{j}``."""
    parts = []
    for number in range(count):
        split = {
            "split.no": As(U16, number),
            "split.count": As(U16, count),
            "split.tensors.count": As(I32, count * tensors_each),
        }
        metadata = {**(llama_metadata() if number == 0 else {}), **split}
        tensors = [(f"part{number}.{index}", (2, 32), "F32") for index in range(tensors_each)]
        parts.append(gguf_bytes(metadata, tensors))
    return parts


def safetensors_bytes(
    tensors: Sequence[tuple[str, Sequence[int], str]] = (),
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """A well-formed safetensors file of zeros."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, shape, type_name in tensors:
        kind = SAFETENSORS_TYPES[type_name]
        end = offset + math.prod(shape) // kind.block_elements * kind.block_bytes
        entries[name] = {"dtype": type_name, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    return raw_safetensors(json.dumps(entries), offset)


def raw_safetensors(
    header: str | bytes, data_bytes: int = 0, *, length: int | None = None
) -> bytes:
    """Any header text with its length in front and zeros behind."""
    raw = header.encode() if isinstance(header, str) else header
    return u64(len(raw) if length is None else length) + raw + bytes(data_bytes)
