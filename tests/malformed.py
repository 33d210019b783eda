"""Malformed GGUF files by name, each with the field its refusal must name.

The upper-case names are those of llama.cpp's ``tests/test-gguf.cpp``; ``ollama_*`` are the cases
of Ollama's ``TestDecodeRejectsMalformedGGUFMetadata``; the rest are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

from localrun.formats import limits
from tests.gguf_builder import (
    ARRAY,
    BOOL,
    F32,
    I32,
    STRING,
    TYPE_IDS,
    U8,
    U32,
    U64,
    As,
    gguf_bytes,
    info,
    kv,
    llama_metadata,
    padded,
    raw_gguf,
    string,
    u32,
    u64,
)

_F32, _I8, _I64, _Q4_0 = (TYPE_IDS[name] for name in ("F32", "I8", "I64", "Q4_0"))
_ZEROS = bytes(64)


@dataclass(frozen=True)
class Case:
    data: bytes
    field: str


def _keys(*entries: bytes, count: int | None = None) -> bytes:
    return raw_gguf(*entries, _ZEROS, n_kv=len(entries) if count is None else count)


def _tensors(*entries: bytes, count: int | None = None, data: int = 256) -> bytes:
    head = raw_gguf(*entries, n_tensors=len(entries) if count is None else count)
    return padded(head) + bytes(data)


def _aligned(alignment: As | int, *tensors: bytes) -> bytes:
    head = raw_gguf(kv("general.alignment", alignment), *tensors, n_kv=1, n_tensors=len(tensors))
    return head + bytes(512)


def _nested(depth: int) -> bytes:
    return string("deep") + u32(ARRAY) + (u32(ARRAY) + u64(1)) * depth + u32(U8) + u64(0)


_LLAMA_CPP = {
    "HEADER_BAD_MAGIC": Case(raw_gguf(_ZEROS, magic=b"FUGG"), "magic"),
    "HEADER_BAD_VERSION_0": Case(raw_gguf(_ZEROS, version=0), "version"),
    "HEADER_BAD_VERSION_1": Case(raw_gguf(_ZEROS, version=1), "version"),
    "HEADER_BAD_VERSION_FUTURE": Case(raw_gguf(_ZEROS, version=4), "version"),
    "HEADER_BAD_N_TENSORS": Case(raw_gguf(_ZEROS, n_tensors=2**64 - 1), "tensor_count"),
    "HEADER_BAD_N_KV": Case(raw_gguf(_ZEROS, n_kv=2**64 - 1), "metadata_kv_count"),
    "KV_BAD_KEY_SIZE": Case(_keys(u64(2**64 - 1) + b"key" + u32(U8) + b"\1"), "metadata[0].key"),
    "KV_EMPTY_KEY": Case(_keys(kv("", 1)), "metadata[0].key"),
    "KV_BAD_TYPE": Case(_keys(string("k") + u32(13) + b"\0"), "k: type"),
    "KV_BAD_ARRAY_TYPE": Case(_keys(string("k") + u32(ARRAY) + u32(13) + u64(1)), "k: type"),
    "KV_DUPLICATE_KEY": Case(_keys(kv("k", 1), kv("k", 2)), "metadata[1].key"),
    "KV_BAD_ALIGN": Case(_aligned(13), "general.alignment"),
    "KV_WRONG_TYPE_ALIGN": Case(_aligned(As(I32, 32)), "general.alignment"),
    "TENSORS_BAD_NAME_SIZE": Case(_tensors(info("n" * 64, [8], _F32, 0)), "tensor[0].name"),
    "TENSORS_BAD_N_DIMS": Case(_tensors(info("t", [1] * 5, _F32, 0)), "t: dimensions"),
    "TENSORS_BAD_SHAPE": Case(_tensors(info("t", [2**64 - 1], _F32, 0)), "t: shape[0]"),
    "TENSORS_ZERO_DIM": Case(_tensors(info("t", [8, 0], _F32, 0)), "t: shape[1]"),
    "TENSORS_NE_TOO_BIG": Case(_tensors(info("t", [4 * (2**31 - 1)] * 2, _F32, 0)), "t: offset"),
    "TENSORS_NBYTES_TOO_BIG": Case(_tensors(info("t", [1533931008] * 2, _I64, 0)), "t: offset"),
    "TENSORS_NBYTES_PAD_WRAP": Case(
        _tensors(info("t", [4, 2**30 - 1, 2**30 + 1], _F32, 0)), "t: offset"
    ),
    "TENSORS_BAD_TYPE": Case(_tensors(info("t", [8], 43, 0)), "t: type"),
    "TENSORS_BAD_OFFSET": Case(_tensors(info("t", [8], _F32, 2**64 - 1)), "t: offset"),
    "TENSORS_DUPLICATE_NAME": Case(
        _tensors(info("t", [8], _F32, 0), info("t", [8], _F32, 32)), "tensor[1].name"
    ),
    "TENSORS_BAD_ALIGN": Case(_aligned(13, info("t", [8], _F32, 0)), "general.alignment"),
    "TENSORS_INCONSISTENT_ALIGN": Case(
        _tensors(info("a", [1], _F32, 0), info("b", [1], _F32, 4)), "b: offset"
    ),
    "DATA_NOT_ENOUGH_DATA": Case(_tensors(info("t", [8], _F32, 0), data=31), "t: offset"),
    "DATA_BAD_ALIGN": Case(_aligned(48, info("t", [8], _F32, 0)), "general.alignment"),
    "DATA_INCONSISTENT_ALIGN": Case(
        _tensors(info("a", [3], _F32, 0), info("b", [3], _F32, 12), data=64), "b: offset"
    ),
    "DATA_MEM_SIZE_OVERFLOW": Case(
        _tensors(
            info("a", [0x7FFFFFFFFFFFFFC0], _I8, 0),
            info("b", [0x7FFFFFFFFFFFFFC0], _I8, 0x7FFFFFFFFFFFFFC0),
            data=32,
        ),
        "a: offset",
    ),
}

_OLLAMA = {
    "ollama_v1_zero_length_string": Case(b"GGUF" + u32(1) + u32(0) + u32(1) + u64(0), "version"),
    "ollama_oversized_string": Case(
        raw_gguf(u64(limits.GGUF_STRING_BYTES_MAX + 1), _ZEROS, n_kv=1), "metadata[0].key"
    ),
    "ollama_oversized_collected_array": Case(
        _keys(
            string("tokenizer.ggml.tokens")
            + u32(ARRAY)
            + u32(STRING)
            + u64(limits.GGUF_ARRAY_ELEMENTS_MAX + 1)
        ),
        "tokenizer.ggml.tokens: length",
    ),
    "ollama_zero_alignment": Case(_aligned(0), "general.alignment"),
    "ollama_tensor_elements_overflow": Case(
        _tensors(info("bad.weight", [2**64 - 1, 2], _F32, 0)), "bad.weight: shape[0]"
    ),
    "ollama_too_many_tensor_dimensions": Case(
        _tensors(string("bad.weight") + u32(5)), "bad.weight: dimensions"
    ),
    "ollama_tensor_row_not_multiple_of_block_size": Case(
        _tensors(info("bad.weight", [31], _Q4_0, 0)), "bad.weight: shape[0]"
    ),
}

_OURS = {
    "empty_file": Case(b"", "magic"),
    "magic_alone": Case(b"GGUF", "version"),
    "big_endian": Case(b"GGUF" + (3).to_bytes(4, "big") + _ZEROS, "version"),
    "ends_in_the_tensor_count": Case(b"GGUF" + u32(3) + b"\0" * 7, "tensor_count"),
    "ends_in_the_key_count": Case(b"GGUF" + u32(3) + u64(0) + b"\0" * 7, "metadata_kv_count"),
    "ends_before_the_keys": Case(raw_gguf(n_kv=1), "metadata_kv_count"),
    "ends_before_the_tensors": Case(raw_gguf(n_tensors=1), "tensor_count"),
    "ends_in_a_key": Case(raw_gguf(u64(6), b"abcdef"[:5], n_kv=1), "metadata[0].key"),
    "ends_in_a_value_type": Case(raw_gguf(string("keykey"), b"\1\0\0", n_kv=1), "keykey: type"),
    "ends_in_a_number": Case(raw_gguf(string("k"), u32(U64), b"\0" * 7, n_kv=1), "k"),
    "ends_in_a_string": Case(raw_gguf(string("k"), u32(STRING), u64(9), b"12345678", n_kv=1), "k"),
    "ends_in_an_array": Case(
        raw_gguf(string("k"), u32(ARRAY), u32(F32), u64(3), bytes(11), n_kv=1), "k"
    ),
    "ends_in_an_array_of_strings": Case(
        raw_gguf(
            string("k"), u32(ARRAY), u32(STRING), u64(2), string("abcdefgh"), u64(4), b"abc", n_kv=1
        ),
        "k[1]",
    ),
    "ends_in_a_tensor_name": Case(raw_gguf(u64(30), b"n" * 29, n_tensors=1), "tensor[0].name"),
    "ends_in_a_shape": Case(
        raw_gguf(string("t"), u32(3), u64(1), bytes(7), n_tensors=1), "t: shape[1]"
    ),
    "ends_in_a_tensor_type": Case(
        raw_gguf(string("t"), u32(1), u64(1), bytes(3), n_tensors=1), "t: type"
    ),
    "ends_in_a_tensor_offset": Case(
        raw_gguf(info("t", [8], _F32, 0)[:-1], n_tensors=1), "t: offset"
    ),
    "ends_before_the_data": Case(raw_gguf(info("t", [8], _F32, 0), n_tensors=1), "t: offset"),
    "ends_in_the_last_tensor": Case(
        gguf_bytes(llama_metadata(), [("a", (8,), "F32"), ("b", (8,), "F32")])[:-1], "b: offset"
    ),
    "key_count_2_63": Case(raw_gguf(_ZEROS, n_kv=2**63), "metadata_kv_count"),
    "key_count_over_its_limit": Case(
        raw_gguf(bytes(4000), n_kv=limits.GGUF_KEYS_MAX + 1), "metadata_kv_count"
    ),
    "key_count_over_the_bytes": Case(raw_gguf(bytes(129), n_kv=10), "metadata_kv_count"),
    "tensor_count_over_its_limit": Case(
        raw_gguf(bytes(4000), n_tensors=limits.GGUF_TENSORS_MAX + 1), "tensor_count"
    ),
    "tensor_count_over_the_bytes": Case(raw_gguf(bytes(200), n_tensors=10), "tensor_count"),
    "string_2_60": Case(_keys(string("k") + u32(STRING) + u64(2**60)), "k"),
    "string_in_an_array_2_60": Case(
        _keys(string("k") + u32(ARRAY) + u32(STRING) + u64(1) + u64(2**60)), "k[0]"
    ),
    "array_2_32_of_bytes": Case(
        _keys(string("k") + u32(ARRAY) + u32(U8) + u64(2**32)), "k: length"
    ),
    "array_64_million_of_bytes": Case(_keys(string("k") + u32(ARRAY) + u32(U8) + u64(2**26)), "k"),
    "array_of_strings_over_the_bytes": Case(
        _keys(string("k") + u32(ARRAY) + u32(STRING) + u64(2**20)), "k"
    ),
    "arrays_nested_5000": Case(_keys(_nested(5000)), "deep"),
    "arrays_nested_2": Case(_keys(_nested(2)), "deep"),
    "boolean_of_2": Case(_keys(string("k") + u32(BOOL) + b"\2"), "k"),
    "boolean_of_2_in_an_array": Case(
        _keys(string("k") + u32(ARRAY) + u32(BOOL) + u64(3) + b"\0\1\2"), "k"
    ),
    "key_not_utf8": Case(_keys(kv(b"\xff\xfe", 1)), "metadata[0].key"),
    "key_with_nul": Case(_keys(kv(b"a\0b", 1)), "metadata[0].key"),
    "tensor_name_empty": Case(_tensors(info("", [8], _F32, 0)), "tensor[0].name"),
    "tensor_name_not_utf8": Case(_tensors(info(b"\xc3", [8], _F32, 0)), "tensor[0].name"),
    "tensor_name_with_nul": Case(_tensors(info(b"a\0b", [8], _F32, 0)), "tensor[0].name"),
    "tensor_name_2_63": Case(_tensors(u64(2**63) + bytes(24)), "tensor[0].name"),
    "tensor_dimensions_2_31": Case(_tensors(string("t") + u32(2**31) + bytes(64)), "t: dimensions"),
    "tensor_type_removed": Case(_tensors(info("t", [32], 31, 0)), "t: type"),
    "tensor_type_negative": Case(_tensors(info("t", [32], 2**32 - 1, 0)), "t: type"),
    "tensor_zero_elements": Case(_tensors(info("t", [0], _F32, 0)), "t: shape[0]"),
    "tensors_overlap": Case(
        _tensors(info("a", [16], _F32, 0), info("b", [16], _F32, 32)), "b: offset"
    ),
    "tensors_share_bytes": Case(
        _tensors(info("a", [8], _F32, 0), info("b", [8], _F32, 0)), "b: offset"
    ),
    "tensors_leave_a_gap": Case(
        _tensors(info("a", [8], _F32, 0), info("b", [8], _F32, 64)), "b: offset"
    ),
    "tensor_ends_behind_the_file": Case(_tensors(info("t", [65], _F32, 0)), "t: offset"),
    "like_cve_2026_7482_declared_size_over_the_file": Case(
        _tensors(info("t", [4096, 4096], TYPE_IDS["F16"], 0)), "t: offset"
    ),
    "alignment_3": Case(_aligned(3), "general.alignment"),
    "alignment_2_31": Case(_aligned(2**31), "general.alignment"),
    "alignment_2_21": Case(_aligned(2**21), "general.alignment"),
    "alignment_string": Case(_aligned(As(STRING, "32")), "general.alignment"),
    "alignment_array": Case(_aligned(As(U32, [32])), "general.alignment"),
    "escape_sequence_in_a_name": Case(_tensors(info("\x1b]52;c;x\7", [0], _F32, 0)), "shape[0]"),
}

MALFORMED: dict[str, Case] = {**_LLAMA_CPP, **_OLLAMA, **_OURS}
