"""Knows no connection: OpenAI's chat completions, as JSON to send and chunks to read.

https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from localrun.chat.messages import Message, ReplyEvent, ReplyOptions
from localrun.chat.templates import printable
from localrun.engine.request import FinishReason, Timings
from localrun.errors import EngineError, LocalrunError, ServerError

_CONTEXT_FIELDS = ("n_ctx", "max_model_len", "context_length", "context_window")
_FINISH = {"length": FinishReason.LENGTH, "error": FinishReason.ERROR}


def request_body(model: str, messages: Sequence[Message], options: ReplyOptions) -> dict[str, Any]:
    """The JSON of ``POST /v1/chat/completions``. Reasoning of earlier turns stays here."""
    sampling = options.sampling
    body: dict[str, Any] = {
        "model": model,
        "messages": [_wire_message(message) for message in messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repeat_penalty": sampling.repeat_penalty,
    }
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    if options.max_tokens is not None:
        body["max_tokens"] = options.max_tokens
    if options.stop:
        body["stop"] = list(options.stop)
    if options.ignore_end:
        body["ignore_eos"] = True  # llama.cpp's name; a server that lacks it ends where it does
    if options.tools:
        body["tools"] = [dict(tool) for tool in options.tools]
    return body


def _wire_message(message: Message) -> dict[str, Any]:
    wire: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        wire["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(dict(call.arguments))},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        wire["tool_call_id"] = message.tool_call_id
    if message.name is not None:
        wire["name"] = message.name
    return wire


class Answer:
    """Collects what the chunks of one stream say about its end."""

    def __init__(self) -> None:
        self._finish: FinishReason | None = None
        self._error: LocalrunError | None = None
        self._prompt_tokens: int | None = None
        self._timings: Timings | None = None

    def read(self, data: str) -> list[ReplyEvent]:
        """What one chunk adds to the answer."""
        if data.strip() == "[DONE]":
            return []
        chunk = _object(data)
        if "error" in chunk:
            self._finish = FinishReason.ERROR
            told = printable(str(error_object(data.encode()).get("message") or "error"))
            self._error = EngineError(told, hint="look at that server's log")
            return []
        usage, timings = chunk.get("usage"), chunk.get("timings")
        if isinstance(usage, dict) and isinstance(usage.get("prompt_tokens"), int):
            self._prompt_tokens = usage["prompt_tokens"]
        if isinstance(timings, dict):
            self._timings = _timings(timings)
        choices = chunk.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else {}
        return self._choice(choice) if isinstance(choice, dict) else []

    def _choice(self, choice: Mapping[str, Any]) -> list[ReplyEvent]:
        reason = choice.get("finish_reason")
        if isinstance(reason, str):
            self._finish = _FINISH.get(reason, FinishReason.STOP)
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            return []
        events = []
        reasoning = delta.get("reasoning_content") or delta.get("reasoning")
        if isinstance(reasoning, str):
            events.append(ReplyEvent(reasoning=reasoning))
        if isinstance(delta.get("content"), str) and delta["content"]:
            events.append(ReplyEvent(text=delta["content"]))
        return events

    def last(self) -> ReplyEvent:
        """The one event that ends the answer."""
        finish, error = self._finish, self._error
        if finish is None:
            finish = FinishReason.ERROR
            error = EngineError("the server ended the stream before the answer")
        return ReplyEvent(
            prompt_tokens=self._prompt_tokens, finish=finish, timings=self._timings, error=error
        )


def _object(data: str | bytes) -> dict[str, Any]:
    """A JSON object, or an empty one: servers pad streams with what is none."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def error_object(content: bytes) -> dict[str, Any]:
    """The ``error`` of a body, at least its ``message``."""
    error = _object(content).get("error")
    return error if isinstance(error, dict) else {"message": error}


def models(content: bytes) -> dict[str, dict[str, Any]]:
    """The entries of ``GET /v1/models`` by id. Raises ServerError where it is no such list."""
    data = _object(content).get("data")
    if not isinstance(data, list):
        raise ServerError(
            "the model list is not OpenAI's", hint="is the URL that of an OpenAI-compatible server?"
        )
    return {str(entry["id"]): entry for entry in data if isinstance(entry, dict) and "id" in entry}


def context_length(entry: Mapping[str, Any]) -> int:
    """Tokens a served model holds; 0 where the list does not say."""
    meta = entry.get("meta")
    places = [entry, meta] if isinstance(meta, dict) else [entry]
    for place in places:
        for field in _CONTEXT_FIELDS:
            if isinstance(place.get(field), int) and place[field] > 0:
                return int(place[field])
    return 0


def _timings(fields: Mapping[str, Any]) -> Timings | None:
    names = ("prompt_n", "cache_n", "predicted_n", "prompt_ms", "predicted_ms")
    values = [fields.get(name, 0) for name in names]
    if not all(isinstance(value, int | float) and value >= 0 for value in values):
        return None
    fresh, cached, generated, prompt_ms, predicted_ms = values
    return Timings(
        prompt_tokens=int(fresh) + int(cached),
        cached_tokens=int(cached),
        generated_tokens=int(generated),
        prefill_s=prompt_ms / 1000,
        decode_s=predicted_ms / 1000,
    )
