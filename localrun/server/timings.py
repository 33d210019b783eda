"""Knows no route: what an answer cost, in the shapes that clients of several dialects read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from localrun.engine.request import Timings


def usage(choices: Sequence[Timings]) -> dict[str, Any]:
    """Tokens of the answers to one prompt, which counts once.

    Cached is what was so for every choice: all but the first find the prompt computed.
    https://platform.openai.com/docs/api-reference/chat/object
    """
    prompt = choices[0].prompt_tokens
    generated = sum(timings.generated_tokens for timings in choices)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {
            "cached_tokens": min(timings.cached_tokens for timings in choices)
        },
    }


def llama_timings(timings: Timings) -> dict[str, float]:
    """llama.cpp's ``timings``: counts, milliseconds, tokens per second; ``draft_n`` where tokens
    were guessed ahead.

    https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md
    """
    fresh = timings.prompt_tokens - timings.cached_tokens
    steps = max(timings.generated_tokens - 1, 0)
    prefill_ms, decode_ms = timings.prefill_s * 1e3, timings.decode_s * 1e3
    drafted: dict[str, float] = {}
    if timings.drafted_tokens:
        drafted = {"draft_n": timings.drafted_tokens, "draft_n_accepted": timings.accepted_tokens}
    return {
        "cache_n": timings.cached_tokens,
        "prompt_n": fresh,
        "prompt_ms": prefill_ms,
        "prompt_per_token_ms": prefill_ms / fresh if fresh else 0.0,
        "prompt_per_second": timings.prefill_tps,
        "predicted_n": timings.generated_tokens,
        "predicted_ms": decode_ms,
        "predicted_per_token_ms": decode_ms / steps if steps else 0.0,
        "predicted_per_second": timings.decode_tps,
        **drafted,
    }
