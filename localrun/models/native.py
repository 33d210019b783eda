"""Knows no weights: what a GGUF file keeps of a release as it is stored, whatever its mixture.

Experts released in FP4 stay in their own bits (GGUF's MXFP4) wherever a mixture would give them as
many or more: every other type of that size holds the same numbers worse, and a wider one holds
nothing more. Tables that rows are looked up in, Engram's, stay the bytes and scales that they are,
a row's beside each other so that one read of a disk fetches both, or are Q8_0 in every mixture of
fewer bits: each row serves few tokens, and nothing averages its error out.
"""

from __future__ import annotations

import re
from typing import Final

from localrun.formats.types import GGUF_TYPES
from localrun.models.layout import LayoutTensor

FOUR_BITS: Final = "MXFP4"
"""What GGUF calls weights of e2m1 with a scale of e8m0 for 32."""
TABLE_GROUP: Final = 32
"""So many numbers of a table's row share a scale."""
_TYPES: Final = {kind.name: kind for kind in GGUF_TYPES.values()}
_TABLE: Final = re.compile(r"\.engram_embe?d\.weight$")
_TABLE_TYPE: Final = "Q8_0"
# Mixing coefficients of the residual streams, offsets of positions and gates of tables: a low-bit
# type, even BF16, changes every layer's input (https://github.com/ggml-org/llama.cpp/pull/28696).
_WIDE: Final = re.compile(
    r"hc_(?:attn_|ffn_)?(?:fn|base|scale)\.|_compressor_ape\.|tid2eid|engram_[qk]_weight\."
)
# By GGUF's names and by config.json's.
_DEEPSEEK4: Final = frozenset(
    {"deepseek4", "deepseek41", "deepseek_v4", "deepseek_v41", "deepseek_v41_text"}
)
_PLAIN: Final = frozenset({"F32", "F16", "BF16"})


def fixed(architecture: str, name: str) -> bool:
    """Whether a tensor keeps the type of a file of floats in every mixture, though llama.cpp's
    quantizer would narrow it."""
    return architecture in _DEEPSEEK4 and _WIDE.search(name) is not None


def settled(name: str, mixture: str = "") -> str | None:
    """The type of a tensor that no ``mixture`` of few bits decides: a table. None of any other, and
    in a file of floats."""
    return _TABLE_TYPE if _TABLE.search(name) and mixture not in _PLAIN else None


def is_table(name: str) -> bool:
    return _TABLE.search(name) is not None


def stays(type: str, columns: int) -> bool:
    """Whether weights released in 4 bits, rows of ``columns``, are better left so than made
    ``type``."""
    four = _TYPES[FOUR_BITS]
    whole = columns % four.block_elements == 0
    return whole and _TYPES[type].bits_per_weight >= four.bits_per_weight


def table(name: str, shape: tuple[int, ...], scales: tuple[int, ...] | None) -> LayoutTensor:
    """What a table ``[rows, width]`` of a release becomes: bytes with their scales behind them in
    each row, where it is of e4m3 and its e8m0 ``scales`` are one for every 32 of a row, else
    numbers."""
    rows, width = shape
    if scales == (rows, width // TABLE_GROUP) and width % TABLE_GROUP == 0:
        return LayoutTensor(name, (rows, width + scales[1]), _TYPES["I8"])
    whole = width % _TYPES[_TABLE_TYPE].block_elements == 0
    return LayoutTensor(name, shape, _TYPES[_TABLE_TYPE if whole else "BF16"])
