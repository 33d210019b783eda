"""Knows no plan: what a console recorded, as an SVG or HTML file that fetches nothing.

rich's own templates load a font from a network; these name fonts that systems have. Every run of
text in the SVG has its length fixed, so cells stay aligned in whatever font there is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.terminal_theme import TerminalTheme

_FONTS = "'DejaVu Sans Mono', Menlo, Consolas, 'Liberation Mono', monospace"
_BACKGROUND = "#12161c"
_SVG = (
    """<svg viewBox="0 0 {terminal_width} {terminal_height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: """
    + _FONTS
    + """; font-size: {char_height}px; line-height: {line_height}px; white-space: pre; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>
{lines}
</defs>
<rect width="{terminal_width}" height="{terminal_height}" rx="10" fill=\""""
    + _BACKGROUND
    + """\"/>
<g clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""
)
_HTML = (
    """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="UTF-8">
<title>Memory plan</title>
<style>
{stylesheet}
body {{ color: {foreground}; background-color: {background}; margin: 2em; }}
pre {{ font-family: """
    + _FONTS
    + """; font-size: 14px; line-height: 1.25; }}
</style>
</head>
<body>
<pre><code style="font-family: inherit">{code}</code></pre>
</body>
</html>
"""
)


def svg(console: Console) -> str:
    """The record of ``console`` as one well-formed SVG document."""
    return console.export_svg(title="", theme=_theme(), code_format=_SVG, unique_id="plan")


def html(console: Console) -> str:
    """The record of ``console`` as one HTML page."""
    return console.export_html(theme=_theme(), code_format=_HTML)


def _theme() -> TerminalTheme:
    from rich.terminal_theme import TerminalTheme

    normal = [
        (18, 22, 28),
        (240, 100, 90),
        (90, 200, 130),
        (230, 190, 80),
        (100, 160, 240),
        (200, 130, 220),
        (90, 200, 210),
        (215, 220, 228),
    ]
    return TerminalTheme((18, 22, 28), (215, 220, 228), normal)
