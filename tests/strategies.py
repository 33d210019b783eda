"""Hypothesis strategies shared by all rooms' tests."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from localrun.formats.types import GGUF_TYPES
from tests.gguf_builder import BOOL, F32, F64, I8, I16, I32, I64, STRING, U8, U16, U32, U64, As

_INTEGERS = {
    U8: (0, 2**8 - 1),
    I8: (-(2**7), 2**7 - 1),
    U16: (0, 2**16 - 1),
    I16: (-(2**15), 2**15 - 1),
    U32: (0, 2**32 - 1),
    I32: (-(2**31), 2**31 - 1),
    U64: (0, 2**64 - 1),
    I64: (-(2**63), 2**63 - 1),
}
Tensors = list[tuple[str, tuple[int, ...], str]]


def texts(max_size: int = 12) -> st.SearchStrategy[str]:
    """Any text that UTF-8 can hold, NUL excepted."""
    return st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=max_size)


def _values(kind: int) -> st.SearchStrategy[Any]:
    if kind == BOOL:
        return st.booleans()
    if kind == STRING:
        return texts()
    if kind in (F32, F64):
        return st.floats(width=32, allow_nan=False)
    return st.integers(*_INTEGERS[kind])


@st.composite
def metadata_values(draw: st.DrawFn) -> As:
    """A scalar or an array of any GGUF value type, spelled out."""
    kind = draw(st.sampled_from([*_INTEGERS, BOOL, STRING, F32, F64]))
    if draw(st.booleans()):
        return As(kind, draw(st.lists(_values(kind), max_size=5)))
    return As(kind, draw(_values(kind)))


@st.composite
def headers(draw: st.DrawFn) -> tuple[dict[str, As], Tensors]:
    """What ``gguf_bytes`` makes a well-formed file of: metadata and tensors of every type."""
    keys = texts().filter(lambda key: key not in ("", "general.alignment"))
    metadata = draw(st.dictionaries(keys, metadata_values(), max_size=6))
    names = draw(
        st.lists(texts().filter(lambda n: 0 < len(n.encode()) < 64), unique=True, max_size=5)
    )
    tensors: Tensors = []
    for name in names:
        kind = draw(st.sampled_from(list(GGUF_TYPES.values())))
        outer = draw(st.lists(st.integers(1, 3), max_size=3))
        inner = kind.block_elements * draw(st.integers(1, 2))
        tensors.append((name, (*outer, inner), kind.name))
    return metadata, tensors
