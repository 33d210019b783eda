"""Knows no family's form: a call that a model has to make, as an opening and a grammar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from localrun.chat import reasoning
from localrun.chat.tools import harmony
from localrun.chat.tools.declared import Tools, declared
from localrun.chat.tools.families import family_of
from localrun.chat.tools.family import Asked
from localrun.engine.request import Grammar
from localrun.errors import RequestError


@dataclass(frozen=True, slots=True)
class ForcedCall:
    """``opening`` ends the prompt and is the first that the answer's reader is fed; ``grammar``
    holds what follows it."""

    opening: str
    grammar: Grammar


def forced_call(
    template: str | None,
    prompt_tail: str,
    tools: Sequence[Mapping[str, Any]],
    *,
    name: str | None,
    parallel: bool,
) -> ForcedCall:
    """A call in the family's own form, with arguments that satisfy the tool's schema.

    ``name`` None is any of ``tools``, and then several calls where ``parallel`` and no control
    token has to stand between them. A reasoning block that the prompt has opened is closed.

    Raises:
        RequestError: no tool has that name, or a schema is not JSON.
    """
    known = declared(tools)
    asked = Asked(_wanted(known, name).declared, parallel and name is None, template or "")
    if harmony.is_harmony(template):
        made = harmony.forced(asked, prompt_tail)
        opening = made.opening
    else:
        made = family_of(template).forced(asked)
        opening = reasoning.closing(template, prompt_tail) + made.opening
    source = "\n".join([f"start: {made.start}", *made.rules])
    return ForcedCall(opening, Grammar("lark", source))


def _wanted(tools: Tools, name: str | None) -> Tools:
    if not tools.declared:
        raise RequestError("tool_choice asks for a call, but tools declares no function")
    if name is None:
        return tools
    if name not in tools:
        raise RequestError(
            f"tool_choice names {name!r}, which is not among tools",
            hint=f"tools declares {', '.join(sorted(tools.by_name)[:8])}",
        )
    return Tools((tools.by_name[name],))
