"""Knows no dialect: parts of a message's content as text.

OpenAI's two APIs name the same parts differently, and clients mix them. An image that a person
sends is refused; see ``images``. https://platform.openai.com/docs/api-reference/chat/create and
https://platform.openai.com/docs/api-reference/responses/create#responses-create-input
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import BeforeValidator

from localrun.server.fields import refuse
from localrun.server.images import address_of, unseen, why_no_image

# Where the text of each kind of part is; None: it has none for us.
_TEXTS: Final[Mapping[str, str | None]] = {
    "input_text": "text",
    "output_text": "text",
    "reasoning_text": "text",
    "refusal": "refusal",
    "summary_text": "text",
    "text": "text",
    # Nobody but who encrypted it can read it.
    "encrypted_content": None,
}
_IMAGES: Final = frozenset({"input_image", "image_url", "computer_screenshot"})


def texts_of(parts: list[Any], *, noted: bool = False) -> list[str]:
    """The text of each part that has one. ``noted``: in place of any other kind stands a note, as
    for what a tool brings; else it is refused."""
    texts = [_text_of(index, part, noted) for index, part in enumerate(parts)]
    return [text for text in texts if text is not None]


def _text_of(index: int, part: object, noted: bool) -> str | None:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(part, dict) or not isinstance(kind, str):
        raise refuse(f"part {index} is no object with a type")
    if noted and kind not in _TEXTS:
        return unseen(kind)
    if kind in _IMAGES:
        raise refuse(f"part {index} is an image: {why_no_image(address_of(part))}")
    if kind not in _TEXTS:
        shown = repr(kind)[:40]
        raise refuse(f"part {index} has the type {shown}: this server takes text parts only")
    place = _TEXTS[kind]
    if place is None:
        return None
    text = part.get(place)
    if not isinstance(text, str):
        raise refuse(f"part {index} has no {place}")
    return text


def joined(content: object) -> object:
    """A message's content as one string."""
    return "".join(texts_of(content)) if isinstance(content, list) else content


Content = Annotated[
    str | None,
    BeforeValidator(joined, json_schema_input_type=str | list[dict[str, Any]] | None),
]
