"""Knows no dialect: how to draw, as clients of llama.cpp and of OpenAI say it, in our own words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from pydantic import Field

from localrun.engine import limits
from localrun.engine.request import SamplingParams
from localrun.server.fields import MAX_TOKENS, Bias, Breakers, Strict


class SamplingFields(Strict):
    """Beside OpenAI's own the names of llama.cpp, each in its range. None is the engine's default.

    https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md
    """

    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), le=2**63 - 1)
    logit_bias: Bias = None
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    top_k: int | None = Field(default=None, ge=0, le=MAX_TOKENS)
    min_p: float | None = Field(default=None, ge=0, le=1)
    typical_p: float | None = Field(default=None, ge=0, le=1)
    repeat_penalty: float | None = Field(default=None, gt=0, le=10)
    repeat_last_n: int | None = Field(default=None, ge=-1, le=MAX_TOKENS)
    dry_multiplier: float | None = Field(default=None, ge=0, le=100)
    dry_base: float | None = Field(default=None, ge=1, le=100)
    dry_allowed_length: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    dry_penalty_last_n: int | None = Field(default=None, ge=-1, le=MAX_TOKENS)
    dry_sequence_breakers: Breakers | None = None
    xtc_probability: float | None = Field(default=None, ge=0, le=1)
    xtc_threshold: float | None = Field(default=None, ge=0, le=1)


# Fields that are SamplingParams' own, and those that have another name there.
_SAME: Final = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "repeat_penalty",
    "presence_penalty",
    "frequency_penalty",
    "dry_multiplier",
    "dry_base",
    "dry_allowed_length",
    "xtc_probability",
    "xtc_threshold",
)
_RENAMED: Final = {"penalty_window": "repeat_last_n", "dry_window": "dry_penalty_last_n"}


def sampling_of(asked: SamplingFields, *, logprobs: int | None = None) -> SamplingParams:
    """What was asked, the engine's defaults for the rest; ``logprobs`` as ``SamplingParams``."""
    names = {name: name for name in _SAME} | _RENAMED
    values = {ours: getattr(asked, theirs) for ours, theirs in names.items()}
    given: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
    if asked.seed is not None:
        given["seed"] = asked.seed % (limits.MAX_SEED + 1)
    if asked.dry_sequence_breakers is not None:
        given["dry_breakers"] = tuple(asked.dry_sequence_breakers)
    if asked.logit_bias:
        given["logit_bias"] = tuple(asked.logit_bias.items())
    return replace(SamplingParams(), logprobs=logprobs, **given)
