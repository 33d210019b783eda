"""Knows no item: contents of the Responses API as one text, a line or more for each part.

https://platform.openai.com/docs/api-reference/responses/create#responses-create-input
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator

from localrun.server.parts import texts_of


def joined(content: object) -> object:
    """A content as one text. A part that is none is refused."""
    return "\n".join(texts_of(content)) if isinstance(content, list) else content


def result_of(content: object) -> object:
    """What a tool said as one text, with a note in place of each part that is none."""
    return "\n".join(texts_of(content, noted=True)) if isinstance(content, list) else content


Text = Annotated[str, BeforeValidator(joined, json_schema_input_type=str | list[dict[str, Any]])]
ResultText = Annotated[
    str, BeforeValidator(result_of, json_schema_input_type=str | list[dict[str, Any]])
]
