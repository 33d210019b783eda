"""Knows no request: the line about itself that Claude Code puts before a system prompt.

    x-anthropic-billing-header: cc_version=2.1.177.01c; cc_entrypoint=sdk-cli; cch=36ee5;

It stands in a block of its own or is the first line of one. Its values change with each request,
from version 2.1.181 on with each conversation: whatever stands behind it would never be found
computed. To a model it says nothing. https://github.com/anthropics/claude-code/issues/68900,
https://code.claude.com/docs/en/llm-gateway-protocol#system-prompt-attribution-block
"""

from __future__ import annotations

import re
from typing import Final

# Only pairs are taken: words that follow on the same line are the prompt's own.
_LINE: Final = re.compile(
    r"\s*x-anthropic-billing-header:(?:[ \t]*[\w-]+=[^;\s]*(?:;|(?=\s|$)))*[ \t]*(?:\r?\n)*",
    re.IGNORECASE,
)


def without_attribution(text: str) -> str:
    """The text of a system prompt, or of a block of one, without that line at its front."""
    found = _LINE.match(text)
    return text[found.end() :] if found else text
