"""Knows no model: what a client of the Responses API asked, in our own words."""

from __future__ import annotations

import base64
import binascii
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from localrun.chat.messages import (
    Message,
    ReplyOptions,
    RequestContext,
    Role,
    ToolCall,
    ToolChoice,
)
from localrun.engine.request import Grammar
from localrun.errors import RequestError
from localrun.server.forms import schema_grammar
from localrun.server.openai.responses.items import (
    AgentMessageItem,
    CallOutputItem,
    CustomCallItem,
    FunctionCallItem,
    Item,
    MessageItem,
    MoreToolsItem,
    OtherItem,
    ReasoningItem,
    SearchCallItem,
    SearchOutputItem,
    ShellCallItem,
)
from localrun.server.openai.responses.request import Named, ResponsesRequest
from localrun.server.openai.responses.tools import Toolbox, toolbox
from localrun.server.sampling import sampling_of
from localrun.server.thinking import thinking_variables
from localrun.server.tools import listed, warn_of_left_out

logger = logging.getLogger("localrun.server")

# Before the text of a thought that went through a client as one it cannot read.
_SEAL: Final = "localrun."


def toolbox_of(request: ResponsesRequest) -> Toolbox:
    """All tools that the request declares, within its conversation too.

    What is left out is no reason to refuse: agents send tools that only OpenAI runs to everyone.
    """
    tools = list(request.tools or ())
    for item in request.input:
        if isinstance(item, MoreToolsItem | SearchOutputItem):
            tools += item.tools
    box = toolbox(tools)
    warn_of_left_out(box.left_out)
    return box


def messages_of(request: ResponsesRequest, tools: Toolbox) -> list[Message]:
    """The conversation, ``instructions`` first.

    Raises:
        RequestError: there is none.
    """
    turns = _Turns(tools)
    if request.instructions:
        turns.said("system", request.instructions)
    for item in request.input:
        turns.take(item)
    if turns.skipped:
        logger.warning("items that mean nothing here are left out: %s", listed(turns.skipped))
    if not turns.made:
        raise RequestError("input is empty: there is nothing to answer", field="input")
    return [turn.message() for turn in turns.made]


@dataclass(slots=True)
class _Turn:
    """A message in the making, joined once: it may be made of thousands of items."""

    role: Role
    texts: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    thought: str | None = None
    answers: str | None = None
    name: str | None = None

    def message(self) -> Message:
        return Message(
            self.role,
            "\n\n".join(filter(None, self.texts)),
            reasoning=self.thought,
            tool_calls=tuple(self.calls),
            tool_call_id=self.answers,
            name=self.name,
        )


class _Turns:
    """Messages in the making: what an assistant thought, said and called in a row is one."""

    def __init__(self, tools: Toolbox) -> None:
        self.made: list[_Turn] = []
        self.skipped: set[str] = set()
        self._tools = tools
        self._called: dict[str, str] = {}
        self._thought: str | None = None

    def take(self, item: Item) -> None:
        match item:
            case MessageItem(role="assistant"):
                self._assistant().texts.append(item.content)
            case MessageItem(role="user"):
                self.said("user", item.content)
            case MessageItem():
                self.said("system", item.content)
            case AgentMessageItem():
                self.said("user", item.content)
            case ReasoningItem():
                self._thought = thought_of(item) or self._thought
            case CallOutputItem():
                self._came(item.call_id or item.id or "", item.output)
            case SearchOutputItem():
                found = list(toolbox(item.tools).by_name)
                self._came(item.call_id or "", json.dumps({"tools": found}))
            case FunctionCallItem() | CustomCallItem() | ShellCallItem() | SearchCallItem():
                self._calls(_call(item, self._tools))
            case OtherItem():
                self.skipped.add(item.type)
            case _:
                pass

    def said(self, role: Role, content: str) -> None:
        # A thought that nothing followed is of an answer that was broken off.
        self._thought = None
        if role == "system" and len(self.made) == 1 and self.made[0].role == "system":
            # Templates take one at the start, and this API begins with several.
            self.made[0].texts.append(content)
            return
        self.made.append(_Turn(role, [content]))

    def _came(self, id_: str, output: str) -> None:
        self._thought = None
        name = self._called.get(id_)
        self.made.append(_Turn("tool", [output], answers=id_ or None, name=name))

    def _calls(self, call: ToolCall) -> None:
        self._called[call.id] = call.name
        self._assistant().calls.append(call)

    def _assistant(self) -> _Turn:
        """The turn that goes on, or a new one where a new thought has begun."""
        thought, self._thought = self._thought, None
        if not self.made or self.made[-1].role != "assistant" or thought:
            self.made.append(_Turn("assistant", thought=thought))
        return self.made[-1]


def _call(
    item: FunctionCallItem | CustomCallItem | ShellCallItem | SearchCallItem, tools: Toolbox
) -> ToolCall:
    match item:
        case FunctionCallItem():
            name = tools.known_as(item.namespace, item.name)
            return ToolCall(item.call_id, name, item.arguments)
        case CustomCallItem():
            name = tools.known_as(item.namespace, item.name)
            return ToolCall(item.call_id, name, {"input": item.input})
        case ShellCallItem():
            action = item.action.model_dump(exclude_none=True)
            return ToolCall(item.call_id or item.id or "", "local_shell", action)
        case SearchCallItem():
            return ToolCall(item.call_id or "", "tool_search", item.arguments)


def thought_of(item: ReasoningItem) -> str:
    """The text of a thought, where we can read it."""
    return item.content or item.summary or _unsealed(item.encrypted_content or "")


def sealed(thought: str) -> str:
    """A thought in the form that clients keep unread and send back. It is no secret."""
    return _SEAL + base64.b64encode(thought.encode("utf-8", "replace")).decode()


def _unsealed(content: str) -> str:
    if not content.startswith(_SEAL):
        return ""
    try:
        return base64.b64decode(content.removeprefix(_SEAL), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""


def options_of(request: ResponsesRequest, tools: Toolbox, context: RequestContext) -> ReplyOptions:
    """Sampling as asked, the engine's defaults for the rest.

    Raises:
        RequestError: ``tool_choice`` is of a tool that is not there.
    """
    choice, among = _choice(request, tools)
    return ReplyOptions(
        sampling=sampling_of(request, logprobs=_logprobs(request)),
        max_tokens=request.max_output_tokens,
        tools=tools.functions(among),
        tool_choice=choice,
        variables=_variables(request),
        grammar=_grammar(request),
        context=context,
    )


def client_of(request: ResponsesRequest) -> str | None:
    return request.user or request.safety_identifier or request.prompt_cache_key


def form_of(request: ResponsesRequest) -> str:
    """The field that says what form the answer has."""
    return "tools" if _grammar(request) is None else "text.format"


def _logprobs(request: ResponsesRequest) -> int | None:
    if request.top_logprobs or request.includes("message.output_text.logprobs"):
        return request.top_logprobs or 0
    return None


def _variables(request: ResponsesRequest) -> dict[str, Any]:
    effort = None if request.reasoning is None else request.reasoning.effort
    return thinking_variables(effort=effort) | (request.chat_template_kwargs or {})


def _grammar(request: ResponsesRequest) -> Grammar | None:
    form = None if request.text is None else request.text.format
    if form is None or form.type == "text":
        return None
    return schema_grammar(form.json_schema if form.type == "json_schema" else None)


def _choice(request: ResponsesRequest, tools: Toolbox) -> tuple[ToolChoice, frozenset[str] | None]:
    """The choice, and the tools it is among where they are not all."""
    parallel = request.parallel_tool_calls is not False
    asked = request.tool_choice
    if asked is None or asked.type in ("auto", "none"):
        none = asked is not None and asked.type == "none"
        return ToolChoice("none" if none else "auto", None, parallel), None
    if asked.type == "required":
        if not tools.by_name:
            raise _refused("required, and there is no tool that could be called")
        return ToolChoice("required", None, parallel), None
    if asked.type != "allowed_tools":
        return ToolChoice("required", _chosen(asked, tools), parallel), None
    among = frozenset(_allowed(asked.tools or (), tools))
    if asked.mode == "required" and not among:
        raise _refused("required, and there is none of its tools that could be called")
    return ToolChoice(asked.mode or "auto", None, parallel), among


def _chosen(asked: Named, tools: Toolbox) -> str:
    name = _known(asked, tools)
    if name is None:
        raise _refused(f"{asked.type[:40]} {(asked.name or '')[:80]!r} is no tool that is declared")
    return name


def _allowed(asked: Sequence[Named], tools: Toolbox) -> list[str]:
    """Those that are there: among them may be tools that are left out."""
    return [name for name in (_known(each, tools) for each in asked) if name is not None]


def _known(asked: Named, tools: Toolbox) -> str | None:
    name = tools.known_as(asked.namespace, asked.name or asked.type)
    return name if name in tools.by_name else None


def _refused(problem: str) -> RequestError:
    return RequestError(f"tool_choice: {problem}", field="tool_choice")
