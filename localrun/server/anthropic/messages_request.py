"""Knows no engine: what a client of Anthropic's messages API may send, and its limits.

https://docs.claude.com/en/api/messages. Fields about its operators' machines and bills
(``service_tier``, ``container``, ``context_management``, ``cache_control``, ``betas``) are ignored,
as are the headers ``anthropic-version`` and ``anthropic-beta``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from localrun.server.anthropic.blocks import (
    Block,
    TextBlock,
    ToolResultBlock,
    ToolUseBlock,
    blocks_of,
)
from localrun.server.fields import MAX_NAME_CHARS, MAX_TOKENS, Body, Stops, Strict, refuse
from localrun.server.sampling import SamplingFields
from localrun.server.tools import MAX_TOOLS, checked_name


class AnthropicMessage(Strict):
    """A ``system`` message may stand in the middle, as Claude Code sends them."""

    role: Literal["user", "assistant", "system"]
    content: Annotated[
        list[Block], BeforeValidator(blocks_of, json_schema_input_type=str | list[dict[str, Any]])
    ]

    @field_validator("content")
    @classmethod
    def _of_its_role(cls, blocks: list[Any], info: ValidationInfo) -> list[Any]:
        role = info.data.get("role", "user")
        for at, block in enumerate(blocks):
            if isinstance(block, ToolUseBlock) and role != "assistant":
                raise refuse(f"block {at} is a tool_use, which only an assistant's message holds")
            if isinstance(block, ToolResultBlock) and role != "user":
                raise refuse(f"block {at} is a tool_result, which only a user's message holds")
        return blocks


class Tool(Strict):
    """A tool of the client's own; of any other ``type`` only Anthropic's servers know."""

    type: str | None = Field(default=None, max_length=MAX_NAME_CHARS)
    name: str = Field(default="", max_length=MAX_NAME_CHARS, validate_default=True)
    description: str | None = None
    input_schema: dict[str, Any] | None = Field(default=None, validate_default=True)

    @property
    def custom(self) -> bool:
        return _is_custom(self.type)

    @field_validator("name")
    @classmethod
    def _named(cls, name: str, info: ValidationInfo) -> str:
        if not _is_custom(info.data.get("type")):
            return name
        if not name:
            raise refuse("missing: a tool has a name")
        return checked_name(name)

    @field_validator("input_schema")
    @classmethod
    def _declared(cls, schema: object, info: ValidationInfo) -> object:
        if schema is None and _is_custom(info.data.get("type")):
            raise refuse("missing: the JSON schema of the tool's input")
        return schema


def _is_custom(kind: str | None) -> bool:
    return kind in (None, "custom")


class ChosenTool(Strict):
    type: Literal["auto", "any", "tool", "none"]
    disable_parallel_tool_use: bool | None = None
    name: str | None = Field(
        default=None, min_length=1, max_length=MAX_NAME_CHARS, validate_default=True
    )

    @field_validator("name")
    @classmethod
    def _which(cls, name: str | None, info: ValidationInfo) -> str | None:
        if name is None and info.data.get("type") == "tool":
            raise refuse("missing: the tool that has to be called")
        return name


class Thinking(Strict):
    """``display`` is not honoured: thoughts are told, as templates want them back."""

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)


class OutputFormat(Strict):
    type: Literal["json_schema"]
    answer_schema: dict[str, Any] = Field(alias="schema")


class OutputConfig(Strict):
    effort: str | None = Field(default=None, min_length=1, max_length=MAX_NAME_CHARS)
    format: OutputFormat | None = None


class Metadata(Strict):
    user_id: str | None = Field(default=None, max_length=MAX_NAME_CHARS)


class Conversation(Body):
    """What a prompt is made of: all of ``POST /v1/messages/count_tokens``."""

    model: str = Field(min_length=1, max_length=4096)
    messages: list[AnthropicMessage] = Field(min_length=1)
    system: Annotated[
        list[TextBlock] | None,
        BeforeValidator(blocks_of, json_schema_input_type=str | list[dict[str, Any]] | None),
    ] = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: ChosenTool | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    # The name of ``output_config.format`` while it was tried out.
    output_format: OutputFormat | None = None
    mcp_servers: list[Any] | None = None

    @field_validator("output_format")
    @classmethod
    def _one_form(cls, value: object, info: ValidationInfo) -> object:
        config = info.data.get("output_config")
        if value is not None and config is not None and config.format is not None:
            raise refuse("the answer has its form by output_config.format already")
        return value

    @field_validator("mcp_servers")
    @classmethod
    def _none_called(cls, value: list[Any] | None) -> list[Any] | None:
        if value:
            raise refuse("this server calls no MCP servers: declare what they offer in tools")
        return value


class MessagesRequest(SamplingFields, Conversation):
    """The body of ``POST /v1/messages``.

    ``max_tokens`` may be left out, as nowhere else: then an answer ends where it ends. Of sampling
    Anthropic's own names are ``temperature``, ``top_p`` and ``top_k``.
    """

    max_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    stream: bool | None = None
    stop_sequences: Stops = None
    metadata: Metadata | None = None
