"""Knows no conversation: the items of a request's ``input``, and their limits.

https://platform.openai.com/docs/api-reference/responses/create#responses-create-input; what Codex
sends beside is in https://github.com/openai/codex/blob/main/codex-rs/protocol/src/models.rs
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator

from localrun.server.calls import JsonObject
from localrun.server.fields import MAX_NAME_CHARS, Strict, refuse
from localrun.server.openai.responses.parts import ResultText, Text
from localrun.server.openai.responses.tools import Name, Tools

Id = Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS)]


class MessageItem(Strict):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Text


class AgentMessageItem(Strict):
    """What another agent of the client says to this one."""

    type: Literal["agent_message"]
    content: Text


class ReasoningItem(Strict):
    """What was thought before; ``encrypted_content`` holds the text if it was this server's."""

    type: Literal["reasoning"]
    summary: Text = ""
    content: Text | None = None
    encrypted_content: str | None = None


class FunctionCallItem(Strict):
    type: Literal["function_call"]
    call_id: Id
    name: Name
    namespace: str | None = Field(default=None, max_length=MAX_NAME_CHARS)
    arguments: JsonObject = Field(default_factory=dict)


class CustomCallItem(Strict):
    type: Literal["custom_tool_call"]
    call_id: Id
    name: Name
    namespace: str | None = Field(default=None, max_length=MAX_NAME_CHARS)
    input: str


class ShellAction(Strict):
    command: list[str]
    working_directory: str | None = None
    timeout_ms: int | None = None


class ShellCallItem(Strict):
    type: Literal["local_shell_call"]
    id: Id | None = None
    call_id: Id | None = None
    action: ShellAction


class SearchCallItem(Strict):
    type: Literal["tool_search_call"]
    call_id: Id | None = None
    arguments: JsonObject = Field(default_factory=dict)


class SearchOutputItem(Strict):
    """The tools that a search found: they may be called from here on."""

    type: Literal["tool_search_output"]
    call_id: Id | None = None
    tools: Tools = Field(default_factory=list)


class MoreToolsItem(Strict):
    type: Literal["additional_tools"]
    tools: Tools = Field(default_factory=list)


class CallOutputItem(Strict):
    """What a call came to; a local shell's output has its call's id as its own."""

    type: Literal["function_call_output", "custom_tool_call_output", "local_shell_call_output"]
    id: Id | None = None
    call_id: Id | None = None
    output: ResultText


class StoredItem(Strict):
    """Stands for what a server would have to remember, or to make of the conversation."""

    type: str

    @field_validator("type")
    @classmethod
    def _refused(cls, value: str) -> str:
        raise refuse(f"{value}: this server keeps no items, send all of the conversation")


class OtherItem(Strict):
    """What only its maker can make something of."""

    type: str


_TAGS: Final = {
    "message": "[message]",
    "agent_message": "[agent]",
    "reasoning": "[reasoning]",
    "function_call": "[function]",
    "custom_tool_call": "[custom]",
    "local_shell_call": "[shell]",
    "tool_search_call": "[search]",
    "function_call_output": "[output]",
    "custom_tool_call_output": "[output]",
    "local_shell_call_output": "[output]",
    "tool_search_output": "[found]",
    "additional_tools": "[tools]",
    "item_reference": "[stored]",
    "compaction_trigger": "[stored]",
}


def _tag(item: object) -> str | None:
    if not isinstance(item, dict):
        return None
    # The shortest form of a message has no type.
    kind = item.get("type", "message")
    return _TAGS.get(kind, "[other]") if isinstance(kind, str) else None


Item = Annotated[
    Annotated[MessageItem, Tag("[message]")]
    | Annotated[AgentMessageItem, Tag("[agent]")]
    | Annotated[ReasoningItem, Tag("[reasoning]")]
    | Annotated[FunctionCallItem, Tag("[function]")]
    | Annotated[CustomCallItem, Tag("[custom]")]
    | Annotated[ShellCallItem, Tag("[shell]")]
    | Annotated[SearchCallItem, Tag("[search]")]
    | Annotated[CallOutputItem, Tag("[output]")]
    | Annotated[SearchOutputItem, Tag("[found]")]
    | Annotated[MoreToolsItem, Tag("[tools]")]
    | Annotated[StoredItem, Tag("[stored]")]
    | Annotated[OtherItem, Tag("[other]")],
    Discriminator(
        _tag,
        custom_error_type="refused",
        custom_error_message="not an item: an object with a type, or a message",
    ),
]


def items_of(value: object) -> object:
    """A text alone is what the user says."""
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


Input = Annotated[list[Item], BeforeValidator(items_of, json_schema_input_type=str | list[Item])]
