"""Knows no item: parts of contents of the Responses API, as one text.

An image that a person sends is refused, for no model here has a projector; one that a tool brings
becomes a note, as it would come again with each turn of a conversation that could then not go on.
https://platform.openai.com/docs/api-reference/responses/create#responses-create-input
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import BeforeValidator

from localrun.server.fields import refuse

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


# Of a tool's result, where a part is that this model cannot take.
_UNSEEN: Final = "[an image or file that this model cannot see]"


def joined(content: object) -> object:
    """A content as one text: one line or more for each part. Any other kind of part is refused."""
    return _joined(content, noted=False)


def result_of(content: object) -> object:
    """What a tool said as one text, with a note in place of each part that is none."""
    return _joined(content, noted=True)


def _joined(content: object, *, noted: bool) -> object:
    if not isinstance(content, list):
        return content
    texts = [_text_of(index, part, noted) for index, part in enumerate(content)]
    return "\n".join(text for text in texts if text is not None)


def _text_of(index: int, part: object, noted: bool) -> str | None:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(part, dict) or not isinstance(kind, str):
        raise refuse(f"part {index} is no object with a type")
    if noted and kind not in _TEXTS:
        return _UNSEEN
    if kind in _IMAGES:
        raise refuse(f"part {index} is an image: {_why_no_image(part)}")
    if kind not in _TEXTS:
        raise refuse(f"part {index} has the type {kind[:40]!r}: this server takes text parts only")
    place = _TEXTS[kind]
    if place is None:
        return None
    text = part.get(place)
    if not isinstance(text, str):
        raise refuse(f"part {index} has no {place}")
    return text


def _why_no_image(part: dict[str, Any]) -> str:
    url = part.get("image_url")
    if isinstance(url, str) and not url.startswith("data:"):
        return "URLs are not fetched, an image has to be sent as data:image/…;base64,…"
    return "this model has no projector, so it takes none"


Text = Annotated[str, BeforeValidator(joined, json_schema_input_type=str | list[dict[str, Any]])]
ResultText = Annotated[
    str, BeforeValidator(result_of, json_schema_input_type=str | list[dict[str, Any]])
]
