"""Knows no rule of a mixture: which types want an importance matrix, and who goes without one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from localrun.errors import UsageError

_NEEDING: Final = frozenset({"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS"})
"""What llama-quantize makes no weights of without a matrix (``tensor_requires_imatrix`` in
https://github.com/ggml-org/llama.cpp/blob/master/src/llama-quant.cpp)."""
_NEEDING_AT_THE_ENDS: Final = frozenset({"IQ1_S", "IQ2_XXS", "IQ2_XS"})
"""Of these, those whose kernel itself demands one (``ggml_quantize_requires_imatrix``): the others
are allowed for token_embd and output, which a matrix seldom covers."""
_ENDS: Final = frozenset({"token_embd.weight", "per_layer_token_embd.weight", "output.weight"})
_POOR: Final = frozenset({"Q2_K"})
_HINT: Final = "give one with --imatrix FILE, have one made with --collect-imatrix TEXT, or choose"


def needs_importance(name: str, type: str, mixture: str) -> bool:
    """Whether a tensor cannot become ``type`` without a matrix, as llama-quantize decides it."""
    if name in _ENDS:
        return type in _NEEDING_AT_THE_ENDS
    return type in _NEEDING or (type == "Q2_K" and mixture == "Q2_K_S")


def require_importance(
    types: Mapping[str, str], mixture: str, covered: Collection[str] | None
) -> None:
    """Hold that every one of ``types``, by tensor, can be made with a matrix that covers
    ``covered``; None where there is no matrix.

    Raises:
        UsageError: one cannot, which hours of work would end in otherwise.
    """
    lacking = [
        name
        for name, type in types.items()
        if (covered is None or name not in covered) and needs_importance(name, type, mixture)
    ]
    if not lacking:
        return
    others = f" and {len(lacking) - 1} others become" if len(lacking) > 1 else " becomes"
    why = "there is none" if covered is None else "the one given holds nothing for it"
    raise UsageError(
        f"--type {mixture}: {lacking[0]}{others} {types[lacking[0]]}, which needs an importance"
        f" matrix: {why}",
        hint=f"{_HINT} a type of at least 3 bits",
    )


def unweighted_warning(types: Mapping[str, str], covered: Collection[str] | None) -> str | None:
    """What to tell a user whose tensors of few bits are made without a matrix."""
    poor = sum(
        type in _POOR and (covered is None or name not in covered) for name, type in types.items()
    )
    if not poor:
        return None
    return (
        f"{poor} tensors become Q2_K without an importance matrix, which costs much of their"
        " quality: --imatrix FILE or --collect-imatrix TEXT"
    )
