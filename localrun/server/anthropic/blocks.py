"""Knows no engine: the blocks that messages are made of, and their limits.

https://docs.claude.com/en/api/messages. What only a server can make of a conversation (searches,
code that it ran, thoughts that are sealed) is let pass and means nothing here. An image that
a person sends is refused, for no model here has a projector; one that a tool brings becomes a note,
because it would come again with each turn of a conversation that nobody could then go on with.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from localrun.server.fields import MAX_NAME_CHARS, Strict, refuse
from localrun.server.images import NEVER_FETCHED, NO_PROJECTOR

_SERVERS: Final = frozenset(
    {
        "redacted_thinking",
        "server_tool_use",
        "web_search_tool_result",
        "web_fetch_tool_result",
        "code_execution_tool_result",
        "bash_code_execution_tool_result",
        "text_editor_code_execution_tool_result",
        "tool_search_tool_result",
        "advisor_tool_result",
        "mcp_tool_use",
        "mcp_tool_result",
        "mcp_tool_listing",
        # Every declared tool is told of from the start.
        "tool_addition",
        "tool_removal",
        "fallback",
    }
)
_KNOWN: Final = frozenset(
    {"text", "compaction", "thinking", "tool_use", "tool_result", "image", "document"}
    | {"search_result"}
)
_IN_RESULTS: Final = frozenset({"text", "search_result", "tool_reference"})
_TEXT_SOURCES: Final = frozenset({"text", "content"})


def blocks_of(content: object) -> object:
    """A text is short for one block of it."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _type_of(value: object) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else None
    return kind if isinstance(kind, str) else None


# Tags in square brackets stay out of the names of fields: see fields.field_name.
def _kind(block: object) -> str:
    kind = _type_of(block)
    if kind in _SERVERS:
        return "[passed]"
    return f"[{kind}]" if kind in _KNOWN else "[unknown]"


def _result_kind(block: object) -> str:
    kind = _type_of(block)
    if kind == "document":
        source = block.get("source") if isinstance(block, dict) else None
        return "[document]" if _type_of(source) in _TEXT_SOURCES else "[unseen]"
    return f"[{kind}]" if kind in _IN_RESULTS else "[unseen]"


def _source_kind(source: object) -> str:
    kind = _type_of(source)
    return f"[{kind}]" if kind in _TEXT_SOURCES else "[unknown]"


class TextBlock(Strict):
    """``cache_control`` is ignored: whatever begins alike is found computed."""

    type: Literal["text"]
    text: str


class CompactionBlock(Strict):
    """The words that another server put in the place of a conversation's beginning."""

    content: str | None = None


class ThinkingBlock(Strict):
    """``signature`` is not looked at: the thoughts are the model's own, or as good."""

    thinking: str = ""


class ToolUseBlock(Strict):
    id: str = Field(min_length=1, max_length=MAX_NAME_CHARS)
    name: str = Field(min_length=1, max_length=MAX_NAME_CHARS)
    input: dict[str, Any]


class SearchResultBlock(Strict):
    source: str
    title: str = ""
    content: Annotated[list[TextBlock], BeforeValidator(blocks_of)]


class ToolReferenceBlock(Strict):
    tool_name: str = Field(max_length=MAX_NAME_CHARS)


class TextSource(Strict):
    data: str


class ContentSource(Strict):
    content: Annotated[
        list[TextBlock],
        BeforeValidator(blocks_of, json_schema_input_type=str | list[dict[str, Any]]),
    ]


class NoTextSource(Strict):
    @model_validator(mode="before")
    @classmethod
    def _refused(cls, source: object) -> object:
        shown = repr(_type_of(source))[:40]
        raise refuse(f"a document comes as text or content here, not as {shown}")


class DocumentBlock(Strict):
    title: str | None = None
    context: str | None = None
    source: Annotated[
        Annotated[TextSource, Tag("[text]")]
        | Annotated[ContentSource, Tag("[content]")]
        | Annotated[NoTextSource, Tag("[unknown]")],
        Discriminator(_source_kind),
    ]


def _no_image(source: object) -> object:
    # Of any other type than base64 it is an address, or a file that is somewhere else.
    kind = _type_of(source)
    raise refuse(NO_PROJECTOR if kind in ("base64", None) else NEVER_FETCHED)


class ImageBlock(Strict):
    source: Annotated[
        dict[str, Any], BeforeValidator(_no_image, json_schema_input_type=dict[str, Any])
    ]


class PassedBlock(Strict):
    """It means nothing here."""


class UnseenBlock(Strict):
    """What a tool brought that no model here can be shown."""

    type: str = Field(max_length=MAX_NAME_CHARS)


class UnknownBlock(Strict):
    @model_validator(mode="before")
    @classmethod
    def _refused(cls, block: object) -> object:
        if not isinstance(block, dict):
            raise refuse("a block is an object with a type")
        raise refuse(f"blocks of the type {repr(block.get('type'))[:40]} are not taken")


ResultBlock = Annotated[
    Annotated[TextBlock, Tag("[text]")]
    | Annotated[DocumentBlock, Tag("[document]")]
    | Annotated[SearchResultBlock, Tag("[search_result]")]
    | Annotated[ToolReferenceBlock, Tag("[tool_reference]")]
    | Annotated[UnseenBlock, Tag("[unseen]")],
    Discriminator(_result_kind),
]


class ToolResultBlock(Strict):
    tool_use_id: str = Field(min_length=1, max_length=MAX_NAME_CHARS)
    content: Annotated[
        list[ResultBlock] | None,
        BeforeValidator(blocks_of, json_schema_input_type=str | list[dict[str, Any]] | None),
    ] = None
    is_error: bool | None = None


Block = Annotated[
    Annotated[TextBlock, Tag("[text]")]
    | Annotated[CompactionBlock, Tag("[compaction]")]
    | Annotated[ThinkingBlock, Tag("[thinking]")]
    | Annotated[ToolUseBlock, Tag("[tool_use]")]
    | Annotated[ToolResultBlock, Tag("[tool_result]")]
    | Annotated[DocumentBlock, Tag("[document]")]
    | Annotated[SearchResultBlock, Tag("[search_result]")]
    | Annotated[ImageBlock, Tag("[image]")]
    | Annotated[PassedBlock, Tag("[passed]")]
    | Annotated[UnknownBlock, Tag("[unknown]")],
    Discriminator(_kind),
]
