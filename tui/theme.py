"""Knows colours and nothing else: the light and the dark theme."""

from __future__ import annotations

from textual.theme import Theme

DARK = Theme(
    name="localrun-dark",
    dark=True,
    primary="#7cb7ff",
    secondary="#a99cf5",
    accent="#f0a868",
    foreground="#d9dce3",
    background="#13151a",
    surface="#1a1d24",
    panel="#242832",
    success="#86d39a",
    warning="#ecc46b",
    error="#f2777a",
    variables={
        "border": "#7cb7ff",
        "border-blurred": "#343a47",
        "block-cursor-background": "#2f3d52",
        "block-cursor-foreground": "#eef2f8",
        "block-cursor-text-style": "bold",
        "input-cursor-background": "#d9dce3",
        "input-cursor-foreground": "#13151a",
        "input-selection-background": "#7cb7ff 30%",
        "scrollbar": "#2a2f3a",
        "scrollbar-hover": "#3a4150",
        "scrollbar-active": "#7cb7ff",
        "scrollbar-background": "#13151a",
        "scrollbar-background-hover": "#13151a",
        "scrollbar-background-active": "#13151a",
        "markdown-h1-color": "#7cb7ff",
        "markdown-h1-text-style": "bold",
        "markdown-h2-color": "#7cb7ff",
        "markdown-h2-text-style": "bold",
        "markdown-h3-color": "#a99cf5",
        "markdown-h3-text-style": "bold",
    },
)

LIGHT = Theme(
    name="localrun-light",
    dark=False,
    primary="#1b5fb8",
    secondary="#6a4bc4",
    accent="#a8560b",
    foreground="#23262d",
    background="#fbfaf7",
    surface="#f3f1eb",
    panel="#e9e6dd",
    success="#227a3d",
    warning="#8a6200",
    error="#b3282d",
    variables={
        "border": "#1b5fb8",
        "border-blurred": "#cfcabd",
        "block-cursor-background": "#d5e3f6",
        "block-cursor-foreground": "#10233d",
        "block-cursor-text-style": "bold",
        "input-cursor-background": "#23262d",
        "input-cursor-foreground": "#fbfaf7",
        "input-selection-background": "#1b5fb8 22%",
        "scrollbar": "#dcd8cc",
        "scrollbar-hover": "#c8c3b4",
        "scrollbar-active": "#1b5fb8",
        "scrollbar-background": "#fbfaf7",
        "scrollbar-background-hover": "#fbfaf7",
        "scrollbar-background-active": "#fbfaf7",
        "markdown-h1-color": "#1b5fb8",
        "markdown-h1-text-style": "bold",
        "markdown-h2-color": "#1b5fb8",
        "markdown-h2-text-style": "bold",
        "markdown-h3-color": "#6a4bc4",
        "markdown-h3-text-style": "bold",
    },
)


def named(name: str | None) -> str:
    """The Textual theme for what a person writes: ``dark``, ``light`` or one of Textual's own."""
    return {None: DARK.name, "dark": DARK.name, "light": LIGHT.name}.get(name, name or DARK.name)
