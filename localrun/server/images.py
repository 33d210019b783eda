"""Knows no dialect: why an image is refused: no model here has a projector, and none is fetched.

An address in a request is never asked for anything: whoever sent it could have this machine look
where they themselves cannot.
"""

from __future__ import annotations

import re
from typing import Any, Final

NO_PROJECTOR: Final = "this model takes no images: it has no projector for them (send text alone)"
NEVER_FETCHED: Final = (
    "URLs are never fetched, nor files from elsewhere: "
    "send the image itself in base64, as data:image/…;base64,…"
)
_DATA: Final = re.compile(r"\s*data:", re.IGNORECASE)
_BASE64: Final = re.compile(r"[A-Za-z0-9+/=_\s-]*")
# An address shows itself at its beginning; images are megabytes.
_LOOKED_AT: Final = 256


def why_no_image(image: object) -> str:
    """``image`` is its address: ``data:`` and what it is, or where it would have to be fetched."""
    if isinstance(image, str) and not _DATA.match(image):
        return NEVER_FETCHED
    return NO_PROJECTOR


def why_no_bare_image(image: object) -> str:
    """The same where an image may be base64 alone, as Ollama and llama.cpp have it."""
    if isinstance(image, str) and _BASE64.fullmatch(image[:_LOOKED_AT]):
        return NO_PROJECTOR
    return why_no_image(image)


def unseen(kind: str) -> str:
    """The note in place of what a tool brought. Refused, it would be so again with each turn, and
    the conversation could not go on. ``kind`` is its type on the wire."""
    return f"[{kind[:40]}: this model cannot be shown it]"


def address_of(part: dict[str, Any]) -> object:
    """Where a part of a content says what its image is: ``image_url``, itself or its ``url``."""
    found = part.get("image_url")
    return found.get("url") if isinstance(found, dict) else found
