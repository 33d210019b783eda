"""Knows no model: what a client of the chat completions API asked, in our own words."""

from __future__ import annotations

from typing import Any

from localrun.chat.messages import (
    Message,
    ReplyOptions,
    RequestContext,
    Role,
    ToolCall,
    ToolChoice,
)
from localrun.server.forms import grammar_of
from localrun.server.openai.chat_request import ChatMessage, ChatRequest, NamedTool
from localrun.server.sampling import sampling_of
from localrun.server.thinking import thinking_variables


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
    grammar = grammar_of(request)
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    return ReplyOptions(
        sampling=sampling_of(request, logprobs=logprobs),
        max_tokens=request.max_completion_tokens or request.max_tokens,
        stop=tuple(request.stop or ()),
        ignore_end=bool(request.ignore_eos),
        tools=tuple(request.tools or ()),
        tool_choice=_choice(request),
        variables=_variables(request),
        # As llama.cpp has it: an assistant's message at the end is gone on with.
        continues=request.messages[-1].role == "assistant" and not request.messages[-1].tool_calls,
        grammar=None if grammar is None else grammar[1],
        context=context,
    )


def _choice(request: ChatRequest) -> ToolChoice:
    parallel = request.parallel_tool_calls is not False
    choice = request.tool_choice
    if isinstance(choice, NamedTool):
        return ToolChoice("required", choice.function.name, parallel)
    return ToolChoice(choice or "auto", None, parallel)


def _variables(request: ChatRequest) -> dict[str, Any]:
    variables = thinking_variables(effort=request.reasoning_effort)
    return variables | (request.chat_template_kwargs or {})


def form_of(request: ChatRequest) -> str | None:
    """The field that says what form the answer has, if any does."""
    grammar = grammar_of(request)
    return "tools" if grammar is None else grammar[0]
