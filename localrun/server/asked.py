"""Knows no model: what a client of the chat completions API asked, in our own words."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any, Final

from localrun.chat.messages import Message, ReplyOptions, RequestContext, Role, ToolCall
from localrun.engine.request import Grammar, SamplingParams
from localrun.server.guards import Headers, presented_keys
from localrun.server.schemas import ChatMessage, ChatRequest

# Fields of a body that are SamplingParams' own, and those that have another name there.
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
_ANY_OBJECT: Final = {"type": "object"}


def messages_of(request: ChatRequest) -> list[Message]:
    return [_message(message) for message in request.messages]


def _message(message: ChatMessage) -> Message:
    role: Role = "system" if message.role == "developer" else message.role
    calls = tuple(
        ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments)
        for call in message.tool_calls or ()
    )
    return Message(
        role=role,
        content=message.content or "",
        reasoning=message.reasoning_content,
        tool_calls=calls,
        tool_call_id=message.tool_call_id,
        name=message.name,
    )


def options_of(request: ChatRequest, context: RequestContext) -> ReplyOptions:
    """Sampling as asked, the engine's defaults for the rest."""
    tools = () if request.tool_choice == "none" else tuple(request.tools or ())
    return ReplyOptions(
        sampling=_sampling(request),
        max_tokens=request.max_completion_tokens or request.max_tokens,
        stop=tuple(request.stop or ()),
        ignore_end=bool(request.ignore_eos),
        # Agents send tools of kinds that only their own maker runs: a template knows functions.
        tools=tuple(tool for tool in tools if tool.get("type") == "function"),
        grammar=grammar_of(request),
        context=context,
    )


def _sampling(request: ChatRequest) -> SamplingParams:
    names = {name: name for name in _SAME} | _RENAMED
    asked = {ours: getattr(request, theirs) for ours, theirs in names.items()}
    given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    if request.seed is not None:
        given["seed"] = request.seed % 2**64
    if request.dry_sequence_breakers is not None:
        given["dry_breakers"] = tuple(request.dry_sequence_breakers)
    if request.logit_bias:
        given["logit_bias"] = tuple(request.logit_bias.items())
    if request.logprobs:
        given["logprobs"] = request.top_logprobs or 0
    return replace(SamplingParams(), **given)


def grammar_of(request: ChatRequest) -> Grammar | None:
    """The one form that an answer is asked in, if any."""
    form = request.response_format
    schema = request.json_schema if request.json_schema is not None else request.guided_json
    if form is not None and form.type == "json_schema" and form.json_schema is not None:
        schema = form.json_schema.json_schema
    elif form is not None and form.type == "json_object":
        schema = _ANY_OBJECT if form.object_schema is None else form.object_schema
    if schema is not None:
        return Grammar("json_schema", json.dumps(schema))
    if request.grammar is not None:
        return Grammar("gbnf", request.grammar)
    if request.guided_regex is not None:
        return Grammar("regex", request.guided_regex)
    if request.guided_choice is not None:
        return Grammar("choice", json.dumps(request.guided_choice))
    return None


def context_of(headers: Headers, peer: str, user: str | None) -> RequestContext:
    """Who asks, by the API key that was sent, else by the ``peer``'s address.

    The key itself goes no further than this digest. Clients take turns by key and, among those of
    one, by the ``user`` that the body names, which shares what its key is given; without a key the
    name is all that tells programs of one machine apart.
    """
    key = next(iter(presented_keys(headers)), b"")
    owner = hashlib.sha256(b"localrun owner\0" + key).hexdigest()[:32] if key else ""
    client = f"{owner}/{user or ''}" if owner else f"{peer} {user or ''}"
    return RequestContext(owner=owner, client=client)
