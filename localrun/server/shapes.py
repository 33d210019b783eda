"""Knows no route: errors and timings in the shapes that clients of the OpenAI API read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import JSONResponse

from localrun.engine.request import Timings
from localrun.errors import (
    BusyError,
    ContextLengthError,
    LocalrunError,
    MemoryInUseError,
    ModelNotFoundError,
    RefError,
    UsageError,
)

# The codes OpenAI's clients branch on; the others are ours.
_CODES: tuple[tuple[type[LocalrunError], str], ...] = (
    (ContextLengthError, "context_length_exceeded"),
    (ModelNotFoundError, "model_not_found"),
    (BusyError, "queue_full"),
    (MemoryInUseError, "memory_in_use"),
    (UsageError, "invalid_request"),
)
_PARAMS: tuple[tuple[type[LocalrunError], str], ...] = (
    (ContextLengthError, "messages"),
    (ModelNotFoundError, "model"),
    (RefError, "model"),
)
RETRY_AFTER_S = 1


def error_body(
    status: int, message: str, *, code: str | None = None, param: str | None = None
) -> dict[str, Any]:
    """https://platform.openai.com/docs/guides/error-codes"""
    if status == 401:
        kind = "authentication_error"
    elif status == 429:
        kind = "rate_limit_error"
    else:
        kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "code": code, "param": param}}


def error_response(
    status: int,
    message: str,
    *,
    code: str | None = None,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    body = error_body(status, message, code=code, param=param)
    return JSONResponse(body, status_code=status, headers=headers)


def body_of(error: LocalrunError) -> dict[str, Any]:
    """A typed error as a body: its message and, in brackets, its hint."""
    code = next((code for kind, code in _CODES if isinstance(error, kind)), None)
    param = next((param for kind, param in _PARAMS if isinstance(error, kind)), None)
    message = f"{error.message} ({error.hint})"
    return error_body(error.http_status, message, code=code, param=param)


def response_of(error: LocalrunError) -> JSONResponse:
    passing = isinstance(error, BusyError | MemoryInUseError)
    headers = {"retry-after": str(RETRY_AFTER_S)} if passing else None
    return JSONResponse(body_of(error), status_code=error.http_status, headers=headers)


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
