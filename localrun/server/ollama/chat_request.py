"""Knows no engine: what a client of ``POST /api/chat`` may send, and its limits.

https://docs.ollama.com/api/chat
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from localrun.server.fields import MAX_NAME_CHARS, Strict
from localrun.server.ollama.fields import GeneratingBody, Images
from localrun.server.tools import Tools


class Function(Strict):
    name: str = Field(min_length=1, max_length=MAX_NAME_CHARS)
    arguments: dict[str, Any] = Field(default_factory=dict)


class CalledTool(Strict):
    id: str | None = Field(default=None, max_length=MAX_NAME_CHARS)
    function: Function


class ChatMessage(Strict):
    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: Images = None
    tool_calls: list[CalledTool] | None = None
    tool_call_id: str | None = Field(default=None, max_length=MAX_NAME_CHARS)
    tool_name: str | None = Field(default=None, max_length=MAX_NAME_CHARS)


class ChatRequest(GeneratingBody):
    """The body of ``POST /api/chat``. Without messages the model is loaded, or unloaded."""

    messages: list[ChatMessage] | None = None
    tools: Tools = None
