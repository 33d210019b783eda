"""Knows no files: whether a vocabulary has what marks a gap in a text.

Three tokens do: before the text in front of the gap, before the text behind it, and before what is
to stand between. A GGUF file names their ids, or llama.cpp finds them by their texts; both as
llama.cpp does it: https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

# The ids' names in a header, the older ones behind.
_KEYS: Final = (
    ("tokenizer.ggml.fim_pre_token_id", "tokenizer.ggml.prefix_token_id"),
    ("tokenizer.ggml.fim_suf_token_id", "tokenizer.ggml.suffix_token_id"),
    ("tokenizer.ggml.fim_mid_token_id", "tokenizer.ggml.middle_token_id"),
)
PREFIX: Final = frozenset(
    (
        "<|fim_prefix|>",  # Qwen
        "<fim-prefix>",
        "<fim_prefix>",  # StarCoder, Granite
        "<｜fim▁begin｜>",  # DeepSeek
        "<PRE>",
        "▁<PRE>",  # CodeLlama
        "<|code_prefix|>",  # GLM
        "<|prefix|>",  # Falcon
    )
)
SUFFIX: Final = frozenset(
    (
        "<|fim_suffix|>",
        "<fim-suffix>",
        "<fim_suffix>",
        "<｜fim▁hole｜>",
        "<SUF>",
        "▁<SUF>",
        "<|code_suffix|>",
        "<|suffix|>",
    )
)
MIDDLE: Final = frozenset(
    (
        "<|fim_middle|>",
        "<fim-middle>",
        "<fim_middle>",
        "<｜fim▁end｜>",
        "<MID>",
        "▁<MID>",
        "<|code_middle|>",
        "<|middle|>",
    )
)
# What begins a repository's name and another file's, and what fills a text up.
REPOSITORY: Final = frozenset(
    ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>")
)
FILE: Final = frozenset(("<|file_sep|>",))
PAD: Final = frozenset(("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"))
_TEXTS: Final = (PREFIX, SUFFIX, MIDDLE)
_ANY: Final = frozenset[str]().union(*_TEXTS)


def fills_gaps(metadata: Mapping[str, object], tokens: Iterable[object]) -> bool:
    """Whether all three tokens are there."""
    held = _ANY.intersection(tokens)
    return all(
        not texts.isdisjoint(held) or any(key in metadata for key in keys)
        for texts, keys in zip(_TEXTS, _KEYS, strict=True)
    )
