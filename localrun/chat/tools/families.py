"""Knows no model's name: the family of a chat template, by what stands in its source."""

from __future__ import annotations

import re
from typing import Final

from localrun.chat.tools.deepseek import DEEPSEEK
from localrun.chat.tools.dsml import DSML
from localrun.chat.tools.family import Family
from localrun.chat.tools.gemma import GEMMA, GEMMA_3
from localrun.chat.tools.glm import GLM
from localrun.chat.tools.hermes import HERMES, LISTS
from localrun.chat.tools.kimi import KIMI
from localrun.chat.tools.llama import LLAMA
from localrun.chat.tools.mistral import MISTRAL
from localrun.chat.tools.qwen_coder import MINIMAX, QWEN_CODER

# The first that fits: forms that share a mark with another come before it.
FAMILIES: Final[tuple[Family, ...]] = (
    DSML,
    DEEPSEEK,
    KIMI,
    GEMMA,
    MISTRAL,
    MINIMAX,
    QWEN_CODER,
    GLM,
    LISTS,
    HERMES,
    LLAMA,
    GEMMA_3,
)
_TOOLS: Final = re.compile(r"\btools\b")


def family_of(template: str | None) -> Family:
    """How a model with this template writes calls; Hermes where nothing is known."""
    source = template or ""
    for family in FAMILIES:
        if any(all(mark in source for mark in marks) for marks in family.known_by):
            return family
    return HERMES


def takes_tools(template: str | None) -> bool:
    """Whether the template tells the model of the tools that it is given."""
    return template is not None and _TOOLS.search(template) is not None
