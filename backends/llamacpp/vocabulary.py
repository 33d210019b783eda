"""Knows no context: a model's tokens as bytes, and text into tokens."""

from __future__ import annotations

import ctypes

from llama_cpp import llama_cpp as llama

from localrun.engine.runner import FillInMiddle, Vocabulary
from localrun.errors import EngineError

_PIECE_BYTES = 256


def read_vocabulary(vocab: int) -> Vocabulary:
    """Ask the library for every token."""
    buffer = ctypes.create_string_buffer(_PIECE_BYTES)
    tokens: list[bytes] = []
    names: dict[int, str] = {}
    end: list[int] = []
    to_piece, is_end = llama.llama_token_to_piece, llama.llama_vocab_is_eog
    for token in range(llama.llama_vocab_n_tokens(vocab)):
        size = to_piece(vocab, token, buffer, _PIECE_BYTES, 0, False)
        if size > 0:
            tokens.append(buffer.raw[:size])
        elif size < 0:
            tokens.append(_piece(vocab, token, special=False))
        else:
            tokens.append(b"")
            if llama.llama_vocab_is_control(vocab, token):
                names[token] = _piece(vocab, token, special=True).decode("utf-8", "replace")
        if is_end(vocab, token):
            end.append(token)
    return Vocabulary(
        tokens=tuple(tokens),
        bos=_or_none(llama.llama_vocab_bos(vocab)),
        eos=_or_none(llama.llama_vocab_eos(vocab)),
        end=frozenset(end),
        add_bos=llama.llama_vocab_get_add_bos(vocab),
        names=names,
        fim=_fill_in_middle(vocab),
    )


def _fill_in_middle(vocab: int) -> FillInMiddle | None:
    prefix = _or_none(llama.llama_vocab_fim_pre(vocab))
    suffix = _or_none(llama.llama_vocab_fim_suf(vocab))
    middle = _or_none(llama.llama_vocab_fim_mid(vocab))
    if prefix is None or suffix is None or middle is None:
        return None
    return FillInMiddle(
        prefix,
        suffix,
        middle,
        repository=_or_none(llama.llama_vocab_fim_rep(vocab)),
        file=_or_none(llama.llama_vocab_fim_sep(vocab)),
    )


def _piece(vocab: int, token: int, *, special: bool) -> bytes:
    size = _PIECE_BYTES
    while True:
        buffer = ctypes.create_string_buffer(size)
        written = llama.llama_token_to_piece(vocab, token, buffer, size, 0, special)
        if written >= 0:
            return buffer.raw[:written]
        size = -written


def _or_none(token: int) -> int | None:
    return token if token >= 0 else None


def tokenize(vocab: int, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
    """Text into ids. Half a surrogate pair, which UTF-8 has no bytes for, reads as U+FFFD.

    Raises:
        EngineError: the library failed.
    """
    try:
        data = text.encode()
    except UnicodeEncodeError:
        data = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()
    # A token is at least a byte long; the few more are special ones at both ends.
    capacity = len(data) + 8
    while True:
        buffer = (llama.llama_token * capacity)()
        count = llama.llama_tokenize(
            vocab, data, len(data), buffer, capacity, add_special, parse_special
        )
        if count >= 0:
            return buffer[:count]
        if -count <= capacity:
            raise EngineError(f"a text of {len(data)} bytes could not be tokenized")
        capacity = -count
