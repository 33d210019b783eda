"""Knows no format: the largest claims a model file's header may make, each with whose number it is.

Every limit comes on top of the first rule, that no count exceeds what the remaining bytes can hold.
"""

from __future__ import annotations

# GGUF. The first three are Ollama's (fs/gguf/gguf.go); dimensions and names are ggml's own.
GGUF_STRING_BYTES_MAX = 16 * 1024**2
GGUF_ARRAY_ELEMENTS_MAX = 64 * 1024**2
GGUF_DIMENSIONS_MAX = 4
GGUF_TENSOR_NAME_BYTES_MAX = 63
GGUF_DIMENSION_MAX = 2**63 - 1
# A power of two, as https://github.com/ggml-org/ggml/pull/1516 proposes.
GGUF_ALIGNMENT_MAX = 1024**2
GGUF_KEYS_MAX = 65_536
GGUF_TENSORS_MAX = 1_000_000
# An empty key or name, a type, and the smallest value: what the remaining bytes are divided by.
GGUF_KEY_BYTES_MIN = 13
GGUF_TENSOR_BYTES_MIN = 24
# Ours. The largest vocabularies in use (262,144 tokens with scores and merges) need 20 MiB.
GGUF_HEADER_BYTES_MAX = 64 * 1024**2
ARRAY_NESTING_MAX = 1

# safetensors. The header's length is the library's own (safetensors/src/tensor.rs).
SAFETENSORS_HEADER_BYTES_MAX = 100_000_000
SAFETENSORS_TENSORS_MAX = 1_000_000
SAFETENSORS_DIMENSIONS_MAX = 64
# Ours: commas and opening brackets, so that what JSON builds of a header stays below 1 GiB.
SAFETENSORS_JSON_MARKS_MAX = 12_000_000
SAFETENSORS_INDEX_BYTES_MAX = 100_000_000
CONFIG_BYTES_MAX = 16 * 1024**2

SHARDS_MAX = 4096
