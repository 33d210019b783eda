"""Knows no message: tools of the Responses API as functions, and which tool a call is of.

A model is told of functions alone. What else a client runs itself is a function to the model too:

    function       as it is
    namespace      its tools, named as Codex names them: NAMESPACE__NAME; those of the namespace
                   ``functions`` by their names alone
    custom         a function of one string, ``input``, which the client gets as it is
    local_shell    a function with the fields of its ``exec`` action
    tool_search    a function with its own parameters, where the client is who searches

A name that no model could write is told with underscores, and the client hears its own again. Tools
that only OpenAI runs (``web_search``, ``file_search``, ``mcp``, …) are left out.
https://platform.openai.com/docs/api-reference/responses/create#responses-create-tools, and
https://github.com/openai/codex/blob/main/codex-rs/tools/src/tool_spec.rs
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, model_validator

from localrun.errors import RequestError
from localrun.server.fields import MAX_NAME_CHARS, Strict
from localrun.server.tools import MAX_TOOL_NAME, MAX_TOOLS, function_tool, writable

Kind = Literal["function", "custom", "local_shell", "tool_search"]
DEFAULT_NAMESPACE: Final = "functions"
NO_PARAMETERS: Final = {"type": "object", "properties": {}}
Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS)]


class Declared(Strict):
    """What a client declares is told back to it, fields we do not know among them."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(max_length=MAX_NAME_CHARS)


class FunctionTool(Declared):
    type: Literal["function"]
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _unwrapped(cls, tool: object) -> object:
        """Chat completions have the same within ``function``."""
        if isinstance(tool, dict) and isinstance(tool.get("function"), dict):
            return {"type": "function", **tool["function"]}
        return tool


class InputFormat(Strict):
    """What a custom tool's input is: any text, or one of a grammar, which is told to the model."""

    type: str
    syntax: str | None = None
    definition: str | None = None


class CustomTool(Declared):
    type: Literal["custom"]
    name: Name
    description: str | None = None
    format: InputFormat | None = None


class LocalShellTool(Declared):
    type: Literal["local_shell"]


class ToolSearchTool(Declared):
    type: Literal["tool_search"]
    execution: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None


class OtherTool(Declared):
    pass


def _kind_within(tool: object) -> str | None:
    return _tag(tool, ("function", "custom"))


def _kind(tool: object) -> str | None:
    return _tag(tool, ("function", "custom", "local_shell", "tool_search", "namespace"))


def _tag(tool: object, known: tuple[str, ...]) -> str | None:
    # A model where it is told back.
    kind = tool.get("type") if isinstance(tool, dict) else getattr(tool, "type", None)
    if not isinstance(kind, str):
        return None
    # In brackets: no part of the name by which a field is told.
    return f"[{kind}]" if kind in known else "[other]"


_NO_TOOL: Final = {
    "custom_error_type": "refused",
    "custom_error_message": "not a tool: an object with a type",
}
InnerTool = Annotated[
    Annotated[FunctionTool, Tag("[function]")]
    | Annotated[CustomTool, Tag("[custom]")]
    | Annotated[OtherTool, Tag("[other]")],
    Discriminator(_kind_within, **_NO_TOOL),
]


class NamespaceTool(Declared):
    type: Literal["namespace"]
    name: Name
    tools: list[InnerTool] = Field(default_factory=list, max_length=MAX_TOOLS)


AnyTool = Annotated[
    Annotated[FunctionTool, Tag("[function]")]
    | Annotated[CustomTool, Tag("[custom]")]
    | Annotated[LocalShellTool, Tag("[local_shell]")]
    | Annotated[ToolSearchTool, Tag("[tool_search]")]
    | Annotated[NamespaceTool, Tag("[namespace]")]
    | Annotated[OtherTool, Tag("[other]")],
    Discriminator(_kind, **_NO_TOOL),
]
Tools = Annotated[list[AnyTool], Field(max_length=MAX_TOOLS)]


@dataclass(frozen=True, slots=True)
class Tool:
    """Whom a call goes to, and how the model is told of it."""

    kind: Kind
    name: str
    namespace: str | None
    function: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Toolbox:
    """Tools by the names that the model knows; ``left_out`` are the kinds of the others."""

    by_name: Mapping[str, Tool] = field(default_factory=dict)
    left_out: frozenset[str] = frozenset()
    _known: Mapping[tuple[str | None, str], str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # A conversation may hold thousands of calls.
        known = {(tool.namespace, tool.name): name for name, tool in self.by_name.items()}
        object.__setattr__(self, "_known", known)

    def functions(self, among: frozenset[str] | None = None) -> tuple[Mapping[str, Any], ...]:
        """The declarations of all tools, or of those ``among`` the names."""
        return tuple(
            tool.function for name, tool in self.by_name.items() if among is None or name in among
        )

    def known_as(self, namespace: str | None, name: str) -> str:
        """The name by which the model knows a tool, declared or not."""
        known = self._known.get((_namespace(namespace), name))
        return visible_name(namespace, name) if known is None else known


def visible_name(namespace: str | None, name: str) -> str:
    """As Codex joins the two, with two underscores at least between them; of what no model could
    write, underscores are made."""
    space = _namespace(namespace)
    if space is None:
        return writable(name)
    between = "" if space.endswith("_") or name.startswith("_") else "__"
    return writable(f"{space}{between}{name}")


def toolbox(tools: Iterable[AnyTool]) -> Toolbox:
    """All that a client declares. A tool declared again takes the place of the first.

    Raises:
        RequestError: there are too many.
    """
    by_name: dict[str, Tool] = {}
    left_out: set[str] = set()
    for tool in _flat(tools):
        if isinstance(tool, str):
            left_out.add(tool)
            continue
        by_name[_free_name(tool, by_name)] = tool
        if len(by_name) > MAX_TOOLS:
            message = f"tools: more than {MAX_TOOLS}, those of namespaces and searches included"
            raise RequestError(message, field="tools")
    renamed = {
        name: Tool(tool.kind, tool.name, tool.namespace, _renamed(tool.function, name))
        for name, tool in by_name.items()
    }
    return Toolbox(renamed, frozenset(left_out))


def _free_name(tool: Tool, taken: Mapping[str, Tool]) -> str:
    name = wanted = visible_name(tool.namespace, tool.name)
    count = 1
    while name in taken and (taken[name].namespace, taken[name].name) != (
        tool.namespace,
        tool.name,
    ):
        count += 1
        more = f"_{count}"
        name = wanted[: MAX_TOOL_NAME - len(more)] + more
    return name


def _renamed(function: dict[str, Any], name: str) -> dict[str, Any]:
    return function | {"function": function["function"] | {"name": name}}


def _flat(tools: Iterable[AnyTool]) -> Iterator[Tool | str]:
    """Every tool that the client runs, and the kind of every other one."""
    for tool in tools:
        match tool:
            case NamespaceTool():
                for inner in tool.tools:
                    yield _tool(inner, _namespace(tool.name))
            case _:
                yield _tool(tool, None)


def _namespace(name: str | None) -> str | None:
    return None if name in (None, "", DEFAULT_NAMESPACE) else name


def _tool(tool: Declared, namespace: str | None) -> Tool | str:
    match tool:
        case FunctionTool():
            parameters = tool.parameters or NO_PARAMETERS
            told = function_tool(tool.name, tool.description or "", parameters)
            return Tool("function", tool.name, namespace, told)
        case CustomTool():
            told = function_tool(tool.name, _freeform(tool), _ONE_TEXT)
            return Tool("custom", tool.name, namespace, told)
        case LocalShellTool():
            told = function_tool("local_shell", _SHELL_DESCRIPTION, _SHELL_PARAMETERS)
            return Tool("local_shell", "local_shell", None, told)
        case ToolSearchTool(execution="client"):
            parameters = tool.parameters or _QUERY
            told = function_tool("tool_search", tool.description or "", parameters)
            return Tool("tool_search", "tool_search", None, told)
        case _:
            return tool.type


def _freeform(tool: CustomTool) -> str:
    said = tool.description or ""
    if tool.format is not None and tool.format.definition:
        syntax = tool.format.syntax or "its"
        said += f"\n\nThe input follows this {syntax} grammar:\n{tool.format.definition}"
    return said.lstrip("\n")


_ONE_TEXT: Final = {
    "type": "object",
    "properties": {"input": {"type": "string", "description": "The whole input of the tool."}},
    "required": ["input"],
    "additionalProperties": False,
}
_QUERY: Final = {
    "type": "object",
    "properties": {"query": {"type": "string"}},
    "required": ["query"],
}
_SHELL_DESCRIPTION: Final = "Runs a command on the user's machine and returns its output."
_SHELL_PARAMETERS: Final = {
    "type": "object",
    "properties": {
        "command": {
            "type": "array",
            "items": {"type": "string"},
            "description": "The program and its arguments.",
        },
        "working_directory": {"type": "string"},
        "timeout_ms": {"type": "integer"},
    },
    "required": ["command"],
}
