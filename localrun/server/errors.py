"""Knows no route: what the port refuses, in the shape of the dialect that was spoken."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from starlette.responses import JSONResponse

from localrun.errors import (
    BusyError,
    ContextLengthError,
    LocalrunError,
    MemoryInUseError,
    ModelNotFoundError,
    RefError,
    RequestError,
    UsageError,
)

RETRY_AFTER_S: Final = 1

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


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why there is no answer. ``param`` is the field at fault, ``facts`` are further numbers."""

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    facts: Mapping[str, int] | None = None


STOPPING: Final = Refusal(503, "the server is shutting down", code="shutdown")
Shape = Callable[[Refusal], dict[str, Any]]


def openai_shape(refusal: Refusal) -> dict[str, Any]:
    """https://platform.openai.com/docs/guides/error-codes; numbers beside as llama.cpp has them."""
    if refusal.status == 401:
        kind = "authentication_error"
    elif refusal.status == 429:
        kind = "rate_limit_error"
    else:
        kind = "invalid_request_error" if refusal.status < 500 else "server_error"
    error = {
        "message": refusal.message,
        "type": kind,
        "code": refusal.code,
        "param": refusal.param,
        **(refusal.facts or {}),
    }
    return {"error": error}


_ANTHROPIC: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def anthropic_shape(refusal: Refusal) -> dict[str, Any]:
    """https://docs.claude.com/en/api/errors"""
    usual = "invalid_request_error" if refusal.status < 500 else "api_error"
    kind = _ANTHROPIC.get(refusal.status, usual)
    message = _naming(refusal)
    if refusal.code == "context_length_exceeded" and refusal.facts:
        # Claude Code reads both numbers in these words, and makes the conversation as much shorter.
        tokens, most = refusal.facts["n_prompt_tokens"], refusal.facts["n_ctx"] - 1
        message = f"prompt is too long: {tokens} tokens > {most} maximum; {message}"
    return {"type": "error", "error": {"type": kind, "message": message}}


def ollama_shape(refusal: Refusal) -> dict[str, Any]:
    """https://docs.ollama.com/api/errors"""
    return {"error": _naming(refusal)}


def _naming(refusal: Refusal) -> str:
    """The message with the field at fault, for shapes that have no other place for it."""
    if refusal.param is None or refusal.param in refusal.message:
        return refusal.message
    # That a prompt is too long is no field's own fault.
    return refusal.message if refusal.facts else f"{refusal.param}: {refusal.message}"


def shape_of(path: str) -> Shape:
    """How errors look to whoever asks for ``path``."""
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        return anthropic_shape
    return ollama_shape if path.startswith("/api/") else openai_shape


def refusal_of(error: LocalrunError) -> Refusal:
    """A typed error: its message and, in brackets, its hint."""
    code = next((code for kind, code in _CODES if isinstance(error, kind)), None)
    param = next((param for kind, param in _PARAMS if isinstance(error, kind)), None)
    facts = None
    if isinstance(error, ContextLengthError):
        facts = {"n_prompt_tokens": error.prompt_tokens, "n_ctx": error.n_ctx}
    if isinstance(error, RequestError):
        param = error.field or param
    message = f"{error.message} ({error.hint})"
    return Refusal(error.http_status, message, code=code, param=param, facts=facts)


def response(
    path: str, refusal: Refusal, *, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    return JSONResponse(shape_of(path)(refusal), status_code=refusal.status, headers=headers)


def response_of(path: str, error: LocalrunError) -> JSONResponse:
    passing = isinstance(error, BusyError | MemoryInUseError)
    headers = {"retry-after": str(RETRY_AFTER_S)} if passing else None
    return response(path, refusal_of(error), headers=headers)
