"""Knows no model: what a client of Anthropic's messages API asked, in our own words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from localrun.chat.messages import (
    Message,
    ReplyOptions,
    RequestContext,
    ToolCall,
    ToolChoice,
)
from localrun.errors import RequestError
from localrun.server.anthropic.attribution import without_attribution
from localrun.server.anthropic.blocks import (
    Block,
    CompactionBlock,
    DocumentBlock,
    ResultBlock,
    SearchResultBlock,
    TextBlock,
    TextSource,
    ThinkingBlock,
    ToolReferenceBlock,
    ToolResultBlock,
    ToolUseBlock,
    UnseenBlock,
)
from localrun.server.anthropic.call_ids import own_id
from localrun.server.anthropic.messages_request import (
    Conversation,
    MessagesRequest,
    OutputFormat,
    Tool,
)
from localrun.server.forms import schema_grammar
from localrun.server.images import unseen
from localrun.server.sampling import sampling_of
from localrun.server.thinking import thinking_variables
from localrun.server.tools import function_tool, warn_of_left_out

# Between blocks; an assistant's are pieces of one text.
_APART: Final = "\n\n"


def messages_of(request: Conversation) -> list[Message]:
    """The conversation, its system prompt first, without Claude Code's line about itself."""
    messages: list[Message] = []
    _add_system(messages, request.system or ())
    names: dict[str, str] = {}
    for message in request.messages:
        if message.role == "system":
            _add_system(messages, message.content)
        elif message.role == "assistant":
            messages.append(_assistant(message.content))
            names |= {call.id: call.name for call in messages[-1].tool_calls}
        else:
            messages += _user(message.content, names)
    return messages


def _add_system(messages: list[Message], blocks: Iterable[Block]) -> None:
    texts = (without_attribution(text) for text in _texts(blocks))
    words = _APART.join(text for text in texts if text)
    if words:
        messages.append(Message("system", words))


def _assistant(blocks: Sequence[Block]) -> Message:
    thoughts = [each.thinking for each in blocks if isinstance(each, ThinkingBlock)]
    return Message(
        "assistant",
        "".join(_texts(blocks)),
        reasoning="\n".join(filter(None, thoughts)) or None,
        tool_calls=tuple(
            ToolCall(own_id(each.id), each.name, each.input)
            for each in blocks
            if isinstance(each, ToolUseBlock)
        ),
    )


def _user(blocks: Sequence[Block], names: dict[str, str]) -> Iterator[Message]:
    """What a tool said is a message of its own, in its place."""
    said: list[Block] = []
    for block in blocks:
        if not isinstance(block, ToolResultBlock):
            said.append(block)
            continue
        if said:
            yield Message("user", _APART.join(_texts(said)))
            said = []
        id = own_id(block.tool_use_id)
        yield Message("tool", _result(block), tool_call_id=id, name=names.get(id))
    if said or not blocks:
        yield Message("user", _APART.join(_texts(said)))


def _result(block: ToolResultBlock) -> str:
    words = _APART.join(_texts(block.content or ()))
    # No template has a word for it, and most tools say it themselves.
    if block.is_error and "error" not in words[:100].lower():
        return f"Error: {words}"
    return words


def _texts(blocks: Iterable[Block | ResultBlock]) -> Iterator[str]:
    for block in blocks:
        if isinstance(block, TextBlock):
            yield block.text
        elif isinstance(block, CompactionBlock):
            yield block.content or ""
        elif isinstance(block, DocumentBlock):
            yield _document(block)
        elif isinstance(block, SearchResultBlock):
            yield "\n".join((block.title, block.source, *_texts(block.content)))
        elif isinstance(block, ToolReferenceBlock):
            yield block.tool_name
        elif isinstance(block, UnseenBlock):
            yield unseen(block.type)


def _document(block: DocumentBlock) -> str:
    source = block.source
    if isinstance(source, TextSource):
        words = source.data
    else:
        words = _APART.join(_texts(getattr(source, "content", ())))
    return "\n".join(text for text in (block.title, block.context, words) if text)


def options_of(request: MessagesRequest, context: RequestContext) -> ReplyOptions:
    """Sampling as asked, the engine's defaults for the rest.

    Raises:
        RequestError: as ``prompting_of``.
    """
    return replace(
        prompting_of(request),
        sampling=sampling_of(request),
        max_tokens=request.max_tokens,
        stop=tuple(request.stop_sequences or ()),
        context=context,
    )


def prompting_of(request: Conversation) -> ReplyOptions:
    """Those options that a prompt depends on.

    Raises:
        RequestError: the answer's beginning ends in white space, or the tool to be called is none.
    """
    continues = _continues(request)
    form = _form(request)
    return ReplyOptions(
        tools=tuple(
            function_tool(tool.name, tool.description or "", tool.input_schema or {})
            for tool in _own(request.tools or ())
        ),
        tool_choice=_choice(request),
        variables=_variables(request, continues),
        continues=continues,
        grammar=None if form is None else schema_grammar(form.answer_schema),
    )


def _own(tools: Sequence[Tool]) -> list[Tool]:
    """Those tools that the client runs itself. The others are of its maker's servers."""
    return [tool for tool in tools if tool.custom]


def warn_of_tools(request: Conversation) -> None:
    """Say which tools the model is not told of."""
    warn_of_left_out(tool.type or "" for tool in request.tools or () if not tool.custom)


def _continues(request: Conversation) -> bool:
    """Whether an assistant's message at the end is the beginning of the answer.

    https://docs.claude.com/en/docs/build-with-claude/prompt-engineering/prefill-claudes-response
    """
    last = request.messages[-1]
    if last.role != "assistant" or any(isinstance(each, ToolUseBlock) for each in last.content):
        return False
    begun = "".join(_texts(last.content))
    if begun != begun.rstrip():
        at = f"messages[{len(request.messages) - 1}].content"
        raise RequestError(
            f"{at}: final assistant content cannot end with trailing whitespace", field=at
        )
    return True


def _choice(request: Conversation) -> ToolChoice:
    choice, tools = request.tool_choice, request.tools or []
    if choice is None:
        return ToolChoice()
    parallel = not choice.disable_parallel_tool_use
    if choice.type in ("auto", "none"):
        return ToolChoice("none" if choice.type == "none" else "auto", None, parallel)
    if choice.type == "any":
        # Where all were left out, there is none to call.
        none_left = bool(tools) and not _own(tools)
        return ToolChoice("auto" if none_left else "required", None, parallel)
    if choice.name not in {tool.name for tool in tools}:
        raise RequestError(
            f"tool_choice.name: no tool is called {choice.name!r}", field="tool_choice.name"
        )
    if choice.name not in {tool.name for tool in _own(tools)}:
        return ToolChoice("auto", None, parallel)
    return ToolChoice("required", choice.name, parallel)


def _variables(request: Conversation, continues: bool) -> dict[str, Any]:
    """Without a word about it a model does as it does; what the client began is no thought."""
    thinking, config = request.thinking, request.output_config
    thinks = None if thinking is None else thinking.type != "disabled"
    variables = thinking_variables(
        thinks=False if thinks is None and continues else thinks,
        effort=None if config is None else config.effort,
    )
    if thinking is not None and thinking.budget_tokens is not None:
        variables["thinking_budget"] = thinking.budget_tokens
    return variables


def form_of(request: Conversation) -> str:
    """The field that says what form the answer has."""
    if request.output_format is not None:
        return "output_format"
    return "tools" if _form(request) is None else "output_config.format"


def _form(request: Conversation) -> OutputFormat | None:
    config = request.output_config
    return (None if config is None else config.format) or request.output_format
