"""Knows no tensors: which file speaks for which ``model_type`` or GGUF architecture."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from localrun.models.architecture import Architecture

_FAMILIES = {
    "bert": "bert",
    "deepseek": ("deepseek_v2 deepseek_v3 deepseek_v32 kimi_k2 kimi_k25 deepseek2 deepseek32"),
    "deepseek_v4": "deepseek_v4 deepseek4",
    "deepseek_v41": "deepseek_v41 deepseek_v41_text deepseek41",
    "gemma3": "gemma3 gemma3_text",
    "glm": (
        "glm4_moe glm4v_moe glm4v_moe_text glm_moe_dsa glm5_next glm5_next_text"
        " glm4moe glm-dsa glm5-next"
    ),
    "gpt_oss": "gpt_oss gpt-oss",
    "kimi": "kimi_linear kimi_k3 kimi-linear kimi-k3",
    "llama": "llama mistral phi3",
    "olmoe": "olmoe",
    "qwen2": "qwen2",
    "qwen3": "qwen3 qwen3_moe qwen3moe",
    "qwen3_next": (
        "qwen3_next qwen3_5 qwen3_5_text qwen3_5_moe qwen3_5_moe_text qwen3next qwen35 qwen35moe"
    ),
    "qwen4_exp": "qwen4_exp qwen4_exp_text qwen4exp",
}
_FILES = {name: file for file, names in _FAMILIES.items() for name in names.split()}


def family(model_type: str) -> Architecture | None:
    """What is known of a ``model_type`` of a config.json, or of a GGUF's architecture."""
    file = _FILES.get(model_type)
    if file is None:
        return None
    return cast(Architecture, import_module(f"{__name__}.{file}"))


def known() -> tuple[str, ...]:
    """Every name that ``family`` finds, in order."""
    return tuple(sorted(_FILES))
