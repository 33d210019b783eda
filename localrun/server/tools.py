"""Knows no model: tools that a request declares, as JSON schemas of functions."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WrapValidator
from pydantic_core import PydanticOmit

from localrun.server.fields import Strict, refuse

_LOG: Final = logging.getLogger("localrun.server")
MAX_TOOLS: Final = 512
MAX_TOOL_NAME: Final = 128
_MOST_LISTED: Final = 20
# A name is written between a family's marks, quotes and tags, and has to be read back from there.
_STRANGE: Final = re.compile(r"[^A-Za-z0-9_.:/-]")


def writable(name: str) -> str:
    """A name that any model can write, made of another: the same where that is one."""
    return _STRANGE.sub("_", name)[:MAX_TOOL_NAME]


def checked_name(name: str) -> str:
    """The name of a tool that can be read back out of an answer; any other is refused."""
    if not name or writable(name) != name:
        raise refuse(
            f"{name[:80]!r} is no name for a tool: "
            f"it has 1 to {MAX_TOOL_NAME} letters, digits and _ . : / -"
        )
    return name


ToolName = Annotated[str, AfterValidator(checked_name)]


class _Function(Strict):
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None


class _Declared(Strict):
    type: Literal["function"] = "function"
    function: _Function


def _checked(tool: object) -> object:
    """The tool as it was sent: templates know more of its fields than we do."""
    if not isinstance(tool, dict):
        raise refuse("not an object")
    if _kind_of(tool) != "function":
        raise PydanticOmit
    _Declared.model_validate(tool)
    return {"type": "function", **tool}


def _kind_of(tool: dict[str, Any]) -> object:
    return tool.get("type", "function" if "function" in tool else "")


def _functions_of(tools: object, check: Callable[[object], object]) -> object:
    """Those tools that are functions. Agents send others that only their own maker runs."""
    checked = check(tools)
    if isinstance(tools, list) and isinstance(checked, list) and len(checked) < len(tools):
        kinds = (_kind_of(tool) for tool in tools)
        warn_of_left_out(str(kind) for kind in kinds if kind != "function")
    return checked


Tools = Annotated[
    Annotated[
        list[Annotated[dict[str, Any], BeforeValidator(_checked)]], Field(max_length=MAX_TOOLS)
    ]
    | None,
    WrapValidator(_functions_of, json_schema_input_type=list[dict[str, Any]] | None),
]


def function_tool(name: str, description: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """A declaration as chat templates expect it."""
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": parameters},
    }


def warn_of_left_out(kinds: Iterable[str]) -> None:
    """Say which tools a model is not told of; nothing where there are none. They are no reason to
    refuse: agents send tools that only their own maker's servers run to everyone."""
    left = set(kinds)
    if left:
        _LOG.warning("tools that nobody here runs are left out: %s", listed(left))


def listed(kinds: Iterable[str]) -> str:
    """For the log: a client chose these words, and could write lines of its own with them."""
    shown = sorted(ascii(kind) if ascii(kind)[1:-1] != kind else kind for kind in kinds)
    return ", ".join(kind[:80] for kind in shown[:_MOST_LISTED])
